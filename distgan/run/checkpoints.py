"""Checkpoints: written whole or not at all, checked before they are believed, loaded as data (no pickle).

checkpoints/<kimg>/  tensors.safetensors  state.json  manifest.json (size and sha256 of the other two)
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from distgan.errors import UserError

FORMAT = "distgan-checkpoint/1"
Tensors = dict[str, Tensor]


class CheckpointError(UserError):
    """A checkpoint that is damaged or does not belong to this run."""


def checkpoint_name(images_seen: int) -> str:
    """Folder name in kimg; names sort as their numbers do."""
    return f"{images_seen / 1000:012.3f}"


def save(folder: Path, *, images_seen: int, tensors: Tensors, state: dict[str, Any]) -> Path:
    """Write a checkpoint beside the others and move it into place once it is whole and on the disk; raises OSError."""
    target = folder / checkpoint_name(images_seen)
    temporary = folder / f".{target.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
            temporary / "tensors.safetensors",
        )
        (temporary / "state.json").write_text(
            json.dumps({"format": FORMAT, "images_seen": images_seen} | state, indent=1)
        )
        files = {name: describe(temporary / name) for name in ("tensors.safetensors", "state.json")}
        (temporary / "manifest.json").write_text(
            json.dumps({"format": FORMAT, "files": files}, indent=1)
        )
        for path in [*temporary.iterdir(), temporary]:
            sync(path)
        if target.exists():  # a damaged one of the same place
            shutil.rmtree(target)
        temporary.rename(target)
        sync(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise error if isinstance(error, OSError) else OSError(str(error)) from None
    return target


def describe(path: Path) -> dict[str, Any]:
    """Size and sha256 of a file."""
    with path.open("rb") as file:
        return {
            "num_bytes": path.stat().st_size,
            "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
        }


def sync(path: Path) -> None:
    """Make a file or a folder's entries survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def load(path: Path) -> tuple[Tensors, dict[str, Any]]:
    """(tensors, state) of one checkpoint; raises CheckpointError unless every byte is as it was written."""
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        for name in ("tensors.safetensors", "state.json"):
            if describe(path / name) != manifest["files"][name]:
                raise CheckpointError(
                    f"the checkpoint {path} is damaged: {name} is not as it was written; remove the folder"
                )
        return load_file(path / "tensors.safetensors"), json.loads(
            (path / "state.json").read_text()
        )
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        if isinstance(error, CheckpointError):
            raise
        if isinstance(error, OSError) and not isinstance(
            error, FileNotFoundError
        ):  # a file system's bad moment
            raise UserError(
                f"cannot read the checkpoint {path}: {error.strerror}; try again when it can be read"
            ) from None
        raise CheckpointError(
            f"the checkpoint {path} is damaged ({error}); remove the folder"
        ) from None


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints oldest first; unfinished ones have other names."""
    return (
        sorted(path for path in folder.glob("[0-9]*") if path.is_dir()) if folder.exists() else []
    )


def load_latest(
    folder: Path, complain: Callable[[str], None]
) -> tuple[Tensors, dict[str, Any]] | None:
    """The newest checkpoint that is whole, or None where there is none; tells of damaged ones that it passes over."""
    paths = list_checkpoints(folder)
    for path in reversed(paths):
        try:
            return load(path)
        except CheckpointError as error:
            complain(str(error))
    if paths:
        raise CheckpointError(
            f"all {len(paths)} checkpoints in {folder} are damaged; remove the folder to start anew"
        )
    return None


def prune(folder: Path, *, newest: str, keep: int, wanted: Collection[str] = ()) -> None:
    """Remove all but the last `keep` up to the `newest` name, the wanted names, and what killed processes left unfinished.

    Later ones go too: they are the damaged ones that the run has passed over to go on from an earlier one.
    """
    paths = list_checkpoints(folder)
    kept = {path.name for path in [path for path in paths if path.name <= newest][-keep:]} | set(
        wanted
    )
    for path in [*(path for path in paths if path.name not in kept), *folder.glob(".*.tmp")]:
        shutil.rmtree(path, ignore_errors=True)


def pack_optimizer(prefix: str, optimizer: torch.optim.Optimizer) -> tuple[Tensors, dict[str, Any]]:
    """An optimizer's state as named tensors and plain values."""
    state = optimizer.state_dict()
    tensors: Tensors = {}
    plain: dict[str, dict[str, Any]] = {}
    for index, values in state["state"].items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"{prefix}.{index}.{name}"] = value
            else:
                plain.setdefault(str(index), {})[name] = value
    return tensors, {"plain": plain, "param_groups": state["param_groups"]}


def unpack_optimizer(
    prefix: str, optimizer: torch.optim.Optimizer, tensors: Tensors, packed: dict[str, Any]
) -> None:
    """Undo `pack_optimizer`.

    A moment takes the memory layout of its parameter: fused optimizers walk both in memory order, and would pair a
    channels-last weight with the wrong numbers of a contiguous moment.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Any]] = {
        int(index): dict(values) for index, values in packed["plain"].items()
    }
    for name, tensor in tensors.items():
        if name.startswith(prefix + "."):
            index, _, field = name.removeprefix(prefix + ".").partition(".")
            parameter = parameters[int(index)]
            alike = (
                torch.empty_like(parameter, dtype=tensor.dtype)
                if tensor.shape == parameter.shape
                else None
            )
            state.setdefault(int(index), {})[field] = (
                tensor if alike is None else alike.copy_(tensor)
            )
    optimizer.load_state_dict({"state": state, "param_groups": packed["param_groups"]})
