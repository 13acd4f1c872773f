"""Going on where a run stopped: what a checkpoint holds, whether it is this run's, and how all ranks get it."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from distgan.config.flat import flat_values, identity_values
from distgan.config.schema import Config
from distgan.errors import UserError
from distgan.evaluation.evaluator import Evaluator
from distgan.gan import GAN
from distgan.run import checkpoints as checkpoint
from distgan.runtime.distributed import World


@dataclass
class RunState:
    """The plain numbers of a run; with networks and optimizers they are all of it."""

    images_seen: int = 0  # real images consumed over all ranks: the one measure of time
    train_seconds: float = 0.0
    wandb_id: str | None = None
    rollbacks: int = 0
    healthy_images: int = (
        0  # images seen at the newest checkpoint with a healthy verdict; else at the first
    )


def write_checkpoint(
    folder: Path,
    state: RunState,
    *,
    gan: GAN,
    quality: Evaluator,
    config: Config,
    fingerprint: str,
    world_size: int,
) -> None:
    """Save a run, then remove older checkpoints but the newest, the best and the last healthy one; raises OSError."""
    tensors, plain = gan.pack()
    contents = asdict(state) | {
        "players": plain,
        "quality": quality.state_dict(),
        "config": flat_values(config),
        "fingerprint": fingerprint,
        "world_size": world_size,
        "generator": gan.spec.to_dict(),
    }
    checkpoint.save(folder, images_seen=state.images_seen, tensors=tensors, state=contents)
    wanted = {checkpoint.checkpoint_name(state.healthy_images)}
    if quality.best_images is not None:
        wanted.add(checkpoint.checkpoint_name(quality.best_images))
    checkpoint.prune(
        folder,
        newest=checkpoint.checkpoint_name(state.images_seen),
        keep=config.checkpoint.keep,
        wanted=wanted,
    )


def find_checkpoint(
    run_dir: Path, config: Config, fingerprint: str
) -> tuple[checkpoint.Tensors, dict[str, Any], list[str]] | None:
    """(tensors, contents, notes for the user) of the newest whole checkpoint; UserError where it is another run's."""
    notes: list[str] = []
    found = checkpoint.load_latest(run_dir / "checkpoints", notes.append)
    if found is None:
        return None
    tensors, contents = found
    now, identity = flat_values(config), identity_values(config)
    then = flat_values(Config()) | contents["config"]
    changed = [
        f"{name} was {then[name]}, now {now[name]}" for name in identity if then[name] != now[name]
    ]
    if contents["fingerprint"] != fingerprint:
        changed.append(
            f"the dataset's fingerprint was {contents['fingerprint'][:12]}, now {fingerprint[:12]}"
        )
    if changed:
        raise UserError(
            f"{run_dir} holds a run with other settings: {'; '.join(changed)}. "
            "Set them back, or choose another folder with --run-dir"
        )
    notes += [
        f"{name} was {then[name]}, now {now[name]}" for name in now if then[name] != now[name]
    ]
    return tensors, contents, notes


def restore(
    found: tuple[checkpoint.Tensors, dict[str, Any]] | None,
    *,
    gan: GAN,
    quality: Evaluator,
    world: World,
    device: torch.device,
) -> dict[str, Any] | None:
    """Put rank zero's checkpoint into every rank's networks, optimizers and monitor; its contents, or None for none.

    Other ranks may see an older state of a shared file system, or no file at all, so they read none.
    """
    contents = world.broadcast_object(found[1] if found else None)
    if contents is None:
        return None
    gan.unpack(spread_tensors(found[0] if found else {}, world, device), contents["players"])
    quality.load_state_dict(contents["quality"])
    return contents


def spread_tensors(
    tensors: checkpoint.Tensors, world: World, device: torch.device
) -> checkpoint.Tensors:
    """Rank zero's tensors on every rank."""
    shapes = world.broadcast_object(
        [(name, tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()]
    )
    spread = {}
    for name, shape, dtype in shapes:
        own = tensors.get(name)
        spread[name] = (
            torch.empty(shape, dtype=dtype, device=device) if own is None else own.to(device)
        )
        world.broadcast_([spread[name]])
    return spread
