"""Checkpoint folders: written completely or not at all, verified before use, free of pickle.

checkpoints/<kimg>/  tensors.safetensors  state.json  manifest.json (sizes and sha256 of both)
"""

import json
import shutil
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from distgan.errors import UserError
from distgan.networks.generator_file import CHECKPOINT_NAME as NAME
from distgan.text import first_line
from shards.files import sha256_of_file, sync_path

FORMAT = "distgan-checkpoint/1"
FILES = ("tensors.safetensors", "state.json")  # those listed in the manifest
OLD_HEAD, HEAD = "discriminator.judge.", "discriminator.head."
Tensors = dict[str, Tensor]


class CheckpointError(UserError):
    """A checkpoint that is damaged or does not belong to this run."""


def checkpoint_name(images_seen: int) -> str:
    """Return the folder name: kimg with leading zeros, so that names sort as numbers."""
    return f"{images_seen / 1000:012.3f}"


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder, oldest first; ignore all other names."""
    found = folder.iterdir() if folder.is_dir() else []
    return sorted(path for path in found if NAME.fullmatch(path.name) and path.is_dir())


def save(folder: Path, *, images_seen: int, tensors: Tensors, state: dict[str, Any]) -> Path:
    """Write a checkpoint and return its path; raises OSError.

    The folder gets its name only after all its files are on the disk.
    """
    target = folder / checkpoint_name(images_seen)
    temporary = unfinished_path(target)
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        write_files(temporary, images_seen=images_seen, tensors=tensors, state=state)
        if target.exists():  # a damaged checkpoint of the same name
            shutil.rmtree(target)
        temporary.rename(target)
        sync_path(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise error if isinstance(error, OSError) else OSError(str(error)) from None
    return target


def write_files(folder: Path, *, images_seen: int, tensors: Tensors, state: dict[str, Any]) -> None:
    """Write the three files of a checkpoint and flush them to the disk."""
    on_host = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(on_host, folder / "tensors.safetensors")
    contents = {"format": FORMAT, "images_seen": images_seen} | state
    (folder / "state.json").write_text(json.dumps(contents, indent=1))
    manifest = {"format": FORMAT, "files": {name: describe(folder / name) for name in FILES}}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1))
    for path in folder.iterdir():
        sync_path(path)
    sync_path(folder)


def describe(path: Path) -> dict[str, Any]:
    """Return the size and sha256 of a file."""
    return {"num_bytes": path.stat().st_size, "sha256": sha256_of_file(path)}


def load(path: Path) -> tuple[Tensors, dict[str, Any]]:
    """Return (tensors, contents of state.json).

    Raises CheckpointError if the checkpoint is damaged, and UserError if it cannot be read now.
    """
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        for name in FILES:
            if describe(path / name) != manifest["files"][name]:
                raise damaged(path, f"{name} has changed since it was written")
        contents = json.loads((path / "state.json").read_text())
        if not isinstance(contents, dict):
            raise damaged(path, "state.json holds no object")
        return load_file(path / "tensors.safetensors"), contents
    except FileNotFoundError as error:
        raise damaged(path, f"{Path(error.filename or path).name} is missing") from None
    except OSError as error:
        raise UserError(
            f"cannot read the checkpoint {path}: {error.strerror}; try again when it can be read"
        ) from None
    except CheckpointError:
        raise
    except (ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
        raise damaged(path, str(error)) from None
    except RuntimeError as error:  # of safetensors, if the operating system refuses the file
        raise UserError(
            f"cannot read the checkpoint {path}: {first_line(error)}; try again when it can be read"
        ) from None


def with_current_names(tensors: Tensors) -> Tensors:
    """Return the tensors of a checkpoint, perhaps of an older version, by the names used now."""
    return {name.replace(OLD_HEAD, HEAD, 1): tensor for name, tensor in tensors.items()}


def damaged(path: Path, why: str) -> CheckpointError:
    """Return the error for a damaged checkpoint."""
    return CheckpointError(f"the checkpoint {path} is damaged ({why}); remove the folder")


def load_latest(folder: Path, warn: Callable[[str], None]) -> tuple[Tensors, dict[str, Any]] | None:
    """Load the newest intact checkpoint, or return None if there are no checkpoints.

    Calls `warn` for each damaged checkpoint that it skips; raises CheckpointError if all are.
    """
    paths = list_checkpoints(folder)
    for path in reversed(paths):
        try:
            return load(path)
        except CheckpointError as error:
            warn(str(error))
    if paths:
        raise CheckpointError(
            f"all {len(paths)} checkpoints in {folder} are damaged; "
            "remove the folder to start again"
        )
    return None


def prune(folder: Path, *, newest: str, keep: int, wanted: Collection[str] = ()) -> None:
    """Remove all checkpoints but the `keep` last ones up to `newest` and those named in `wanted`.

    Checkpoints after `newest` are removed too: they are damaged, so the run resumed from an earlier
    one. Temporary folders left by a killed process are also removed.
    """
    paths = list_checkpoints(folder)
    kept = {path.name for path in [path for path in paths if path.name <= newest][-keep:]}
    kept |= set(wanted)
    removed = [path for path in paths if path.name not in kept]
    for path in removed:
        with suppress(OSError):  # renamed first, so that a kill leaves no half of it behind
            path.rename(unfinished_path(path))
    remove_unfinished(folder)
    if removed:
        with suppress(OSError):  # until then a power cut may bring them back, in part
            sync_path(folder)


def unfinished_path(path: Path) -> Path:
    """Return the name of a checkpoint that is being written or removed."""
    return path.with_name(f".{path.name}.tmp")


def remove_unfinished(folder: Path) -> None:
    """Remove what a killed process was writing or removing, and nothing else."""
    for path in folder.glob(".*.tmp"):
        if NAME.fullmatch(path.name[1:-4]):
            shutil.rmtree(path, ignore_errors=True)


# ------------------------------------------------------------------------------ optimizer states


def pack_optimizer(prefix: str, optimizer: torch.optim.Optimizer) -> tuple[Tensors, dict[str, Any]]:
    """Return an optimizer's state as tensors with names `prefix.index.field`, and plain values."""
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
    """Restore what `pack_optimizer` returned. Raises ValueError if only a part of it is there.

    Frozen parameters never get a gradient, so an optimizer may keep nothing for them. Each moment
    gets the memory layout of its parameter. A fused optimizer walks both in memory order and would
    pair a channels-last weight with the wrong elements of a contiguous moment.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for index, values in packed["plain"].items():
        state[int(index)] = dict(values)
    for name, tensor in tensors.items():
        if not name.startswith(prefix + "."):
            continue
        index, _, field = name.removeprefix(prefix + ".").partition(".")
        parameter = parameters[int(index)]
        if tensor.shape == parameter.shape:
            tensor = torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor)
        state.setdefault(int(index), {})[field] = tensor
    fields = [state.get(index, {}).keys() for index, p in enumerate(parameters) if p.requires_grad]
    if any(each != fields[0] for each in fields):
        raise ValueError(f"tensors of {prefix} are missing")
    optimizer.load_state_dict({"state": state, "param_groups": packed["param_groups"]})
