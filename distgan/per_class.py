"""One GAN per class: an ordinary run for each class in turn, then one joint generator.

RUN/classes/<number>-<name>/   run folder of one class, as with `data.classes=[name]` alone
RUN/status.json                status of the class in training, then of all classes together
RUN/generator.safetensors      a mixture of the classes' generators, evaluated on the whole dataset
"""

import gc
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from distgan.config.flat import to_toml
from distgan.config.schema import Config
from distgan.errors import UserError
from distgan.evaluation.verdict import assess
from distgan.images import save_grid, to_uint8
from distgan.networks.build import build_generator
from distgan.networks.generator_file import (
    WAS_IMPROVING,
    YOUNG_UNTIL,
    facts_of_parts,
    is_generator,
    load_generator,
    save_generator,
)
from distgan.networks.latents import generate, sample_latents
from distgan.networks.mixture import Mixture, MixtureSpec, choose_class, mixture_spec
from distgan.reporting.console import say, show_table
from distgan.reporting.run_logger import RunLogger
from distgan.reporting.wandb_sink import grouped_in_wandb
from distgan.run.checkpointer import find_checkpoint
from distgan.run.class_plan import ClassRun, plan_classes
from distgan.run.files import read_rows, read_status, training_seconds
from distgan.run.folder import FINISHED_STATES, ClassFolder, RunFolder, explained
from distgan.run.preflight import check_agreement, settings_for
from distgan.run.reporter import first_reals
from distgan.run.sample_grid import NUM_SAMPLES
from distgan.run.session import build_evaluator, open_session, recorded_outcome
from distgan.runtime.distributed import launched_world_size
from distgan.runtime.heartbeat import Heartbeat
from distgan.runtime.provenance import provenance
from distgan.runtime.signals import Interrupt
from distgan.trainer import Trainer
from shards.files import write_atomic

COLUMNS = 8  # images per class in classes.png
OpenFolder = Callable[[Path], RunFolder]


class PerClassTrainer:
    """One GAN per class on this process; `run` trains unfinished classes, then joins all."""

    def __init__(
        self,
        config: Config,
        *,
        name: str,
        recipe: str = "",
        run_dir: Path | None,
        interrupt: Interrupt,
        command: list[str],
        dry: bool = False,
    ) -> None:
        self.recipe = recipe
        self.name, self.interrupt, self.command = name, interrupt, command
        self.given = config  # before it is adapted to the processes
        self.config = config = settings_for(config, launched_world_size())
        self.session = open_session(config, name=name, run_dir=run_dir)
        self.world, self.run_dir = self.session.world, self.session.run_dir
        self.classes = plan_classes(config, self.session.reader)
        self.folder: RunFolder | None = None  # of the whole run, on rank zero

    def run(self) -> str:
        """Train, and return `done`, `preempted` or `collapsed`.

        With `networks.only_class`, train only that class and leave the files of the whole run.
        """
        with grouped_in_wandb(self.run_dir.name):
            only = self.config.networks.only_class is not None
            return self.trainer(self.only_class()).run() if only else self.run_all()

    def run_all(self) -> str:
        """Train all classes, and join them."""
        self.folder = self.world.run_on_main(self.open_folder)
        trained = self.world.broadcast_from_main(self.images_by_class)
        self.describe()  # not before: a run with other settings keeps its own
        outcome = self.train_classes(trained)
        if outcome == "done":
            return self.join(sum(trained.values()))
        if self.folder is not None:
            self.folder.close()
        return outcome

    def only_class(self) -> ClassRun:
        """Return the class of `networks.only_class`; raises UserError if there is none."""
        wanted = self.config.networks.only_class
        for each in self.classes:
            if each.number == wanted:
                return each
        choice = ", ".join(f"{each.number} {each.name}" for each in self.classes)
        raise UserError(f"networks.only_class={wanted}: no such class; choose from {choice}")

    # ----------------------------------------------------------------------------------- training

    def open_folder(self) -> RunFolder:
        """Open the folder of the whole run on rank zero."""
        folder = RunFolder(self.run_dir)
        if any(folder.checkpoints.iterdir()):
            raise UserError(
                f"{self.run_dir} contains a run of one GAN; choose another folder with --run-dir"
            )
        return folder

    def describe(self) -> None:
        """Write the settings of the whole run and show its plan, on rank zero."""
        if self.folder is not None:
            with explained(self.folder.path):
                write_atomic(self.folder.path / "config.toml", to_toml(self.config))
            show_table("distgan, one GAN per class", self.plan())

    def plan(self) -> list[tuple[str, str]]:
        """Return rows about the run and its classes."""
        images = sum(each.num_samples for each in self.classes)
        kimg = sum(each.total_images for each in self.classes) / 1000
        rows = [
            (f"class {c.name}", f"{c.num_samples:,} images, {c.total_images / 1000:,g} kimg")
            for c in self.classes
        ]
        facts = [
            ("run folder", str(self.run_dir)),
            *([("recipe", self.recipe)] if self.recipe else []),
            ("data", f"{images:,} images, {self.session.reader.files.source}"),
            ("length", f"{kimg:,g} kimg, divided among {len(self.classes)} classes"),
        ]
        return [*facts, *rows]

    def dry_run(self) -> None:
        """Print the plan, and what a dry run of the first class prints."""
        if self.world.is_main:
            show_table("distgan, one GAN per class", self.plan())
        self.trainer(self.classes[0], dry=True).dry_run()

    def images_by_class(self) -> dict[int, int]:
        """Return the images seen by each class in its newest checkpoint.

        Raises UserError if a class was trained with other settings.
        """
        images = {}
        for each in self.classes:
            config = self.config_of(each, self.config)
            found = find_checkpoint(self.dir_of(each), config, self.session.fingerprint)
            images[each.number] = found[1]["images_seen"] if found else 0
        return images

    def train_classes(self, trained: dict[int, int]) -> str:
        """Train unfinished classes and update `trained`; return the last class's outcome."""
        has_ended = self.world.broadcast_from_main(
            lambda: [self.is_finished(self.dir_of(each)) for each in self.classes]
        )
        is_first = True  # only the first start table is shown; the others nearly repeat it
        for each, is_finished in zip(self.classes, has_ended, strict=True):
            if trained[each.number] >= each.total_images and is_finished:
                continue
            images_before = sum(trained.values()) - trained[each.number]
            try:
                trainer = self.class_trainer(each, images_before=images_before)
            except UserError as error:
                if self.folder is not None:
                    reason, images = f"class {each.name}: {error}", sum(trained.values())
                    self.folder.write_status("failed", reason, images_seen=images)
                raise
            trainer.heading = "" if is_first else f"class {each.name}, in {trainer.session.run_dir}"
            is_first = False
            outcome = trainer.run()
            trained[each.number] = trainer.state.images_seen
            del trainer
            gc.collect()  # the networks are in reference cycles, and a GPU may hold only one class
            if outcome != "done":
                return outcome
        return "done"

    def is_finished(self, run_dir: Path) -> bool:
        """Return whether nothing is left to do for a class; a damaged generator is made again."""
        return read_status(run_dir).state in FINISHED_STATES and is_generator(run_dir)

    def class_trainer(self, each: ClassRun, *, images_before: int) -> Trainer:
        """Return the trainer of one class, which passes its status on to the whole run."""

        def open_folder(path: Path) -> RunFolder:
            if self.folder is None:
                return RunFolder(path)
            return ClassFolder(path, whole=self.folder, name=each.name, images_before=images_before)

        return self.trainer(each, open_folder=open_folder)

    def trainer(
        self, each: ClassRun, *, open_folder: OpenFolder = RunFolder, dry: bool = False
    ) -> Trainer:
        """Return the trainer of one class."""
        return Trainer(
            self.config_of(each, self.given),
            name=each.folder,
            run_dir=self.dir_of(each),
            interrupt=self.interrupt,
            command=self.command,
            open_folder=open_folder,
            dry=dry,
        )

    def config_of(self, each: ClassRun, config: Config) -> Config:
        """Return the settings of an ordinary run on one class, from those of the whole run."""
        data = config.data.model_copy(update={"classes": (each.name,)})
        networks = config.networks.model_copy(update={"per_class": False, "only_class": None})
        length = {"kimg": each.total_images / 1000, "epochs": None}
        train = config.train.model_copy(update=length)
        return config.model_copy(update={"data": data, "networks": networks, "train": train})

    def dir_of(self, each: ClassRun) -> Path:
        """Return the run folder of one class."""
        return self.run_dir / "classes" / each.folder

    # ------------------------------------------------------------------------------------ joining

    def join(self, images_seen: int) -> str:
        """Join the trained classes into one generator and evaluate it; return the outcome."""
        logger = RunLogger(
            self.folder,
            name=self.name,
            config=self.config,
            wandb_id=None,
            total_images=images_seen,
            images_per_epoch=self.session.reader.num_samples,
        )
        with recorded_outcome(logger, Heartbeat(self.world), images_seen=lambda: images_seen):
            if self.world.broadcast_from_main(lambda: self.is_joined(images_seen)):
                logger.already_done(images_seen=images_seen)
                return "done"
            outcome, reason = "preempted", self.interruption()
            if reason is None:
                outcome, reason = "done", self.join_classes(logger, images_seen)
            logger.close(outcome, reason, images_seen=images_seen, seconds=self.seconds())
        return outcome

    def is_joined(self, images_seen: int) -> bool:
        """Return whether the mixture of these classes has been written and evaluated."""
        status = read_status(self.run_dir)
        return (status.state, status.images_seen) == ("done", images_seen) and is_generator(
            self.run_dir
        )

    def interruption(self) -> str | None:
        """Return why the classes cannot be joined now: a signal on any rank. Collective."""
        raised = torch.tensor(float(self.interrupt.raised), device=self.session.device)
        if self.world.all_reduce_sum(raised) == 0:
            return None
        name = self.interrupt.signal_name or "a signal"
        return f"interrupted by {name} after training all classes and before joining them"

    def join_classes(self, logger: RunLogger, images_seen: int) -> str:
        """Build, evaluate and save the mixture; return the reason for status.json."""
        session = self.session
        mixture, spec = self.build_mixture()
        sizes = f"{len(spec.classes)} generators into one with latents [{spec.latent_dim}]"
        logger.start(
            [("joined", sizes)],
            provenance=provenance(session.accelerator, self.command, os.environ),
            images_seen=0,  # drops the rows of an earlier attempt
            notes=[],
        )
        if self.folder is not None:
            self.folder.write_status("running", "joining the classes", images_seen=images_seen)
            self.folder.add_metrics(self.total_metrics(images_seen))
        evaluator = build_evaluator(session, self.config)
        check_agreement(session, self.config, evaluator)
        result = evaluator.measure(mixture, spec.latent_dim)
        # It is the only evaluation, so the verdict has no history but that of the classes.
        history = self.world.broadcast_from_main(
            lambda: facts_of_parts([*map(self.dir_of, self.classes)], images_seen=images_seen)
        )
        verdict = assess(
            result,
            self.config.collapse.thresholds,
            is_young=images_seen < history[YOUNG_UNTIL],
            was_improving=history[WAS_IMPROVING],
        )
        recorded = result.only(evaluator.recorded_metrics)
        logger.evaluation(recorded, is_best=True, images_seen=images_seen)
        logger.verdict(verdict, images_seen=images_seen)
        if self.folder is not None:
            self.save_samples(mixture, spec, logger, images_seen)
            facts = {
                "images_seen": images_seen,
                "dataset": session.fingerprint,
                "weights": "moving average",
            }
            with explained(self.folder.path):
                save_generator(mixture, spec, self.folder.path, facts=facts | history)
        return f"one GAN per class, trained to the end; {verdict}"

    def build_mixture(self) -> tuple[Mixture, MixtureSpec]:
        """Return the mixture of the classes' generators, weighted by their numbers of images."""
        parts = self.world.run_on_main(
            lambda: [load_generator(self.dir_of(each)) for each in self.classes]
        )
        part: Any = self.world.broadcast_object(parts[0].spec if parts else None)
        total = sum(each.num_samples for each in self.classes)
        weights = tuple(each.num_samples / total for each in self.classes)
        spec = mixture_spec(part, classes=tuple(c.name for c in self.classes), weights=weights)
        mixture: Any = build_generator(spec).to(self.session.device).eval().requires_grad_(False)
        for own, trained in zip(mixture.parts, parts or (), strict=parts is not None):
            own.load_state_dict(trained.network.state_dict())
        self.world.broadcast_(list(mixture.parts.state_dict().values()))
        return mixture, spec

    def seconds(self) -> float:
        """Return the time of training of all classes."""
        found = [self.dir_of(each) for each in self.classes]
        return sum(training_seconds(read_status(f), read_rows(f / "metrics.jsonl")) for f in found)

    def total_metrics(self, images_seen: int) -> dict[str, Any]:
        """Return the row of metrics.jsonl for all classes together."""
        seconds = self.seconds()
        return {
            "progress/kimg": images_seen / 1000,
            "progress/images": images_seen,
            "progress/epoch": images_seen / self.session.reader.num_samples,
            "time/images_per_sec": images_seen / max(seconds, 1e-9),
            "time/train_sec": seconds,
        }

    def save_samples(
        self, mixture: Mixture, spec: MixtureSpec, logger: RunLogger, images_seen: int
    ) -> None:
        """Save grids of the mixture and of reals, and classes.png with one row per class."""
        assert self.folder is not None, "only rank zero saves samples"
        latents = sample_latents(NUM_SAMPLES, spec, seed=self.config.train.seed)
        latents = latents.to(self.session.device)
        fakes, reals = to_uint8(generate(mixture, latents)), first_reals(self.session.reader)
        logger.samples(fakes, reals, images_seen=images_seen)
        rows = [
            to_uint8(generate(mixture, choose_class(latents[:COLUMNS], spec, name)))
            for name in spec.classes
        ]
        with explained(self.folder.path):
            save_grid(torch.cat(rows), self.folder.samples / "classes.png", columns=COLUMNS)
        say(f"classes.png, from top to bottom: {', '.join(spec.classes)}")
