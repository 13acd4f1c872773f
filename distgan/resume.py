"""Going on where a run stopped: find its newest whole checkpoint, make sure it is this run's, give it to all ranks."""

from pathlib import Path
from typing import Any

import torch

from distgan import checkpoint
from distgan.config import Config, flat_values, identity_values
from distgan.distributed import World
from distgan.errors import UserError


def find_checkpoint(
    run_dir: Path, config: Config, fingerprint: str
) -> tuple[checkpoint.Tensors, dict[str, Any], list[str]] | None:
    """(tensors, state, notes for the user) of the newest whole checkpoint; raises UserError where it is another run's."""
    notes: list[str] = []
    found = checkpoint.load_latest(run_dir / "checkpoints", notes.append)
    if found is None:
        return None
    tensors, state = found
    now, identity = flat_values(config), identity_values(config)
    then = flat_values(Config()) | state["config"]
    changed = [f"{name} was {then[name]}, now {now[name]}" for name in identity if then[name] != now[name]]
    if state["fingerprint"] != fingerprint:
        changed.append(f"the dataset's fingerprint was {state['fingerprint'][:12]}, now {fingerprint[:12]}")
    if changed:
        raise UserError(
            f"{run_dir} holds a run with other settings: {'; '.join(changed)}. "
            "Set them back, or choose another folder with --run-dir"
        )
    notes += [f"{name} was {then[name]}, now {now[name]}" for name in now if then[name] != now[name]]
    return tensors, state, notes


def spread_tensors(tensors: checkpoint.Tensors, world: World, device: torch.device) -> checkpoint.Tensors:
    """Rank zero's tensors on every rank: others may see an older state of a shared file system, or no file at all."""
    shapes = world.broadcast_object([(name, tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()])
    spread = {}
    for name, shape, dtype in shapes:
        own = tensors.get(name)
        spread[name] = torch.empty(shape, dtype=dtype, device=device) if own is None else own.to(device)
        world.broadcast_([spread[name]])
    return spread
