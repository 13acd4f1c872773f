"""The checkpoints of one run: saved and read by rank zero, restored on every rank."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch

from distgan.config.flat import flat_values, identity_values
from distgan.config.scaling import FOLLOWERS
from distgan.config.schema import Config
from distgan.errors import UserError
from distgan.evaluation.evaluator import Evaluator
from distgan.evaluation.tracker import VerdictTracker
from distgan.gan import GAN
from distgan.networks.generator_file import WAS_IMPROVING, YOUNG_UNTIL
from distgan.run import checkpoints
from distgan.run.checkpoints import Tensors, checkpoint_name
from distgan.run.folder import sync_rows
from distgan.run.session import Session
from distgan.runtime.distributed import World
from distgan.text import first_line

Checkpoint = tuple[Tensors, dict[str, Any]]


@dataclass
class RunState:
    """The state of a run apart from its GAN and its evaluator."""

    images_seen: int = 0  # real images consumed by all ranks together: the clock of the run
    train_seconds: float = 0.0
    wandb_id: str | None = None
    rollbacks: int = 0
    # `images_seen` of the newest checkpoint whose verdict is healthy. 0 means the first checkpoint.
    healthy_images: int = 0
    # Whether an evaluation was due when the run was interrupted, which the next start makes up for.
    owes_evaluation: bool = False

    @classmethod
    def of_checkpoint(cls, contents: dict[str, Any]) -> Self:
        """Return the state in a checkpoint; raises KeyError if a value is missing."""
        values = {"owes_evaluation": False} | contents  # earlier versions did not have it
        return cls(**{name: values[name] for name in vars(cls())})


class Checkpointer:
    """Saves and restores one run. Every method is collective; only rank zero touches files."""

    def __init__(self, session: Session, config: Config, *, gan: GAN, evaluator: Evaluator) -> None:
        self.session, self.config, self.gan, self.evaluator = session, config, gan, evaluator
        self.world, self.folder = session.world, session.run_dir / "checkpoints"
        self.state = RunState()
        self.saved = self.pointers()

    def restore_newest(self) -> list[str]:
        """Restore the newest intact checkpoint, if there is one.

        Returns notes for the user about damaged checkpoints and changed settings. Raises UserError
        if the run folder belongs to a run with other settings.
        """
        found = self.world.run_on_main(
            lambda: find_checkpoint(self.session.run_dir, self.config, self.session.fingerprint)
        )
        contents = self.restore(found[:2] if found else None)
        if contents is None:
            return []
        self.state = RunState.of_checkpoint(contents)
        self.saved = self.pointers()
        notes = [*(found[2] if found else ()), *self.evaluator.notes]
        if contents["world_size"] != self.world.size:
            notes.append(f"processes: {contents['world_size']} before, {self.world.size} now")
        return notes

    def restore(self, checkpoint: Checkpoint | None) -> dict[str, Any] | None:
        """Load rank zero's checkpoint on every rank and return its contents; None if there is none.

        The other ranks read no files, because a shared file system may show them an older state.
        """
        contents = self.world.broadcast_object(checkpoint[1] if checkpoint else None)
        if contents is None:
            return None
        tensors = broadcast_tensors(
            checkpoint[0] if checkpoint else {}, self.world, self.session.device
        )
        try:
            self.gan.load_state(tensors, contents["players"])
            self.evaluator.load_state_dict(contents["quality"])
            RunState.of_checkpoint(contents)
        except (
            ValueError, KeyError, TypeError, AttributeError, RuntimeError, IndexError
        ) as error:  # fmt: skip
            raise UserError(
                f"the newest checkpoint in {self.folder} does not belong to this run "
                f"({type(error).__name__}: {first_line(error)}); remove it to resume from the one "
                "before"
            ) from None
        return contents

    def roll_back(self) -> None:
        """Restore the last healthy checkpoint, or the first, but keep `images_seen`."""
        path, evaluator = self.folder / checkpoint_name(self.state.healthy_images), self.evaluator
        try:
            checkpoint = self.world.run_on_main(lambda: checkpoints.load(path))
        except UserError as error:
            raise UserError(
                f"cannot roll back to the last healthy checkpoint: {error}; set "
                "collapse.action=warn or stop"
            ) from None
        self.restore(checkpoint)
        # The best of the saved ones, which are kept: the newest evaluation may not have been saved.
        _, evaluator.best_value, evaluator.best_images = self.saved
        evaluator.tracker.restart(images_seen=self.state.images_seen)
        self.state.rollbacks += 1

    def save(self, *, must_succeed: bool) -> str | None:
        """Save the run and remove older checkpoints; return what went wrong, or None.

        Raises RuntimeError if the ranks' weights differ, and UserError if `must_succeed` and the
        checkpoint cannot be written.
        """
        if self.evaluator.verdict.name == "healthy" and is_finite(self.gan):
            self.state.healthy_images = self.state.images_seen
        self.gan.recalibrate_batch_norm(seed=self.config.train.seed)
        self.gan.check_replicas()
        problem = self.world.broadcast_from_main(lambda: self.write(must_succeed=must_succeed))
        if problem is None:
            self.saved = self.pointers()
        else:  # refer to the checkpoints that exist
            healthy, self.evaluator.best_value, self.evaluator.best_images = self.saved
            self.state.healthy_images = healthy
        return problem

    def pointers(self) -> tuple[int, float | None, int | None]:
        """Return `healthy_images`, and the value and images of the best evaluation."""
        evaluator = self.evaluator
        return self.state.healthy_images, evaluator.best_value, evaluator.best_images

    def write(self, *, must_succeed: bool) -> str | None:
        """Write a checkpoint on rank zero; return what went wrong, or None."""
        tensors, plain = self.gan.state()
        contents = asdict(self.state) | {
            "players": plain,
            "quality": self.evaluator.state_dict(),
            **facts_for_verdicts(self.evaluator.tracker),
            "config": flat_values(self.config),
            "fingerprint": self.session.fingerprint,
            "world_size": self.world.size,
            "generator": self.gan.spec.to_dict(),
        }
        try:
            sync_rows(self.session.run_dir)
            checkpoints.save(
                self.folder, images_seen=self.state.images_seen, tensors=tensors, state=contents
            )
        except OSError as error:
            problem = f"could not save a checkpoint to {self.folder}: {error.strerror or error}"
            if must_succeed:
                raise UserError(
                    f"{problem}; free some space and repeat the command to resume from the "
                    "previous checkpoint"
                ) from None
            return f"{problem}; the previous checkpoint is kept"
        self.prune()
        return None

    def prune(self) -> None:
        """Remove old checkpoints, keeping the newest ones, the best and the last healthy one."""
        wanted = {checkpoint_name(self.state.healthy_images)}
        if self.evaluator.best_images is not None:
            wanted.add(checkpoint_name(self.evaluator.best_images))
        newest, keep = checkpoint_name(self.state.images_seen), self.config.checkpoint.keep
        checkpoints.prune(self.folder, newest=newest, keep=keep, wanted=wanted)


def is_finite(gan: GAN) -> bool:
    """Return whether all weights are finite numbers. They are the same on all ranks."""
    weights = [p.detach() for network in gan.networks().values() for p in network.parameters()]
    return bool(torch.stack(torch._foreach_norm(weights)).isfinite().all())


def facts_for_verdicts(tracker: VerdictTracker) -> dict[str, Any]:
    """Return what a generator's files say about its run, for later verdicts on its images."""
    return {YOUNG_UNTIL: tracker.young_until, WAS_IMPROVING: tracker.is_improving}


def find_checkpoint(
    run_dir: Path, config: Config, fingerprint: str
) -> tuple[Tensors, dict[str, Any], list[str]] | None:
    """Return (tensors, contents, notes for the user) of the newest intact checkpoint, or None.

    Raises UserError if the checkpoint belongs to a run with other settings or another dataset.
    """
    notes: list[str] = []
    found = checkpoints.load_latest(run_dir / "checkpoints", notes.append)
    if found is None:
        return None
    tensors, contents = found
    missing = {"config", "fingerprint", "world_size", "images_seen"} - contents.keys()
    if missing or not isinstance(contents["config"], dict):
        raise UserError(
            f"the newest checkpoint in {run_dir / 'checkpoints'} was not written by distgan or was "
            f"edited (state.json: {', '.join(sorted(missing)) or 'config'}); remove it to resume "
            "from the one before"
        )
    now, identity = flat_values(config), identity_values(config)
    then = flat_values(Config()) | contents["config"]
    changed = {
        name: f"{name} was {then[name]}, now {now[name]}" for name in now if then[name] != now[name]
    }
    different = [name for name in changed if name in identity]
    if "train.batch_size" in different:  # setting it back sets back what follows it
        different = [name for name in different if name not in FOLLOWERS]
    conflicts = [changed[name] for name in different]
    if contents["fingerprint"] != fingerprint:
        was, is_now = str(contents["fingerprint"])[:12], fingerprint[:12]
        conflicts.append(f"the dataset's fingerprint was {was}, now {is_now}")
    if conflicts:
        raise UserError(
            f"{run_dir} contains a run with other settings: {'; '.join(conflicts)}. "
            "Set them back, or choose another folder with --run-dir"
        )
    return tensors, contents, [*notes, *changed.values()]


def broadcast_tensors(tensors: Tensors, world: World, device: torch.device) -> Tensors:
    """Return rank zero's tensors on every rank; the other ranks pass an empty dict."""
    layout = [(name, tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()]
    received = {}
    for name, shape, dtype in world.broadcast_object(layout):
        own = tensors.get(name)
        received[name] = (
            torch.empty(shape, dtype=dtype, device=device) if own is None else own.to(device)
        )
        world.broadcast_([received[name]])
    return received
