"""Trained generators on disk: `generator.safetensors`, described by `generator.json`.

A run folder holds both files once its run has ended. A checkpoint holds the averaged generator
among its other tensors. This module is the one place that knows where to look.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import nn

from distgan.errors import UserError
from distgan.networks.base import GeneratorSpec
from distgan.networks.build import build_generator
from distgan.networks.generator import Generator
from distgan.networks.mixture import MixtureSpec, spec_from_dict
from distgan.runtime import hub
from distgan.text import first_line
from shards.files import read_regular, write_atomic

FORMAT = "distgan-generator/1"
GENERATOR_FILES = ["generator.safetensors", "generator.json"]
CHECKPOINT_NAME = re.compile(r"\d{8,}\.\d{3}")  # thousands of images
EMA_PREFIX = "ema."  # of the averaged generator's tensors in a checkpoint
YOUNG_UNTIL = "young_until_images"  # key: images seen from which on a verdict can be relied on
WAS_IMPROVING = "was_improving"  # key: whether the run was still getting better


@dataclass(frozen=True)
class GeneratorFiles:
    """The files of a stored generator and the prefix of its tensors."""

    weights: Path
    description: Path
    prefix: str = ""


def save_generator(
    generator: nn.Module, spec: GeneratorSpec, folder: Path, *, facts: dict[str, Any]
) -> None:
    """Write generator.safetensors and generator.json to a folder; raises OSError.

    `facts` are added to the JSON for readers; loading does not need them.
    """
    write_atomic(folder / "generator.safetensors", weights_of(generator))
    description = {"format": FORMAT, "generator": spec.to_dict()} | facts
    text = json.dumps(description, indent=1) + "\n"
    write_atomic(folder / "generator.json", text)


def weights_of(generator: nn.Module) -> bytes:
    """Return the content of a generator.safetensors."""
    tensors = {
        name: tensor.detach().cpu().contiguous() for name, tensor in generator.state_dict().items()
    }
    return save(tensors)


def load_generator(path: str | Path) -> Generator:
    """Return the trained generator of a run folder, a checkpoint folder or a generator.safetensors.

    Its weights are the moving average over training. Of an unfinished run the newest checkpoint is
    read. `USER/NAME` is a model on the Hugging Face Hub if there is no such path. Raises UserError
    if there is no generator or it cannot be read.
    """
    files = find_generator(Path(path))
    try:
        spec = spec_from_dict(read_description(files)["generator"])
        check_sizes(spec, stored_shapes(files))
        network = build_generator(spec)
        network.load_state_dict(
            {
                name.removeprefix(files.prefix): tensor
                for name, tensor in load_file(files.weights).items()
                if name.startswith(files.prefix)
            }
        )
    except (
        OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, ArithmeticError,
        SafetensorError,
    ) as error:  # fmt: skip
        raise UserError(f"cannot read a generator from {path}: {first_line(error)}") from None
    return Generator(network, spec)


def is_generator(folder: Path) -> bool:
    """Return whether a folder holds a generator.safetensors that can be loaded."""
    try:
        load_generator(folder / "generator.safetensors")
    except UserError:
        return False
    return True


def stored_shapes(files: GeneratorFiles) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a generator's tensors by name, from the header of its file."""
    if not files.weights.is_file():  # a pipe would be waited for
        raise OSError(f"{files.weights.name} is not a regular file")
    with safe_open(files.weights, framework="pt") as file:
        return {
            name.removeprefix(files.prefix): tuple(file.get_slice(name).get_shape())
            for name in sorted(file.keys())
            if name.startswith(files.prefix)
        }


def check_sizes(spec: GeneratorSpec, shapes: dict[str, tuple[int, ...]]) -> None:
    """Raise ValueError if a spec does not fit the stored tensors; allocates nothing.

    A wrong spec might otherwise ask for any amount of memory.
    """
    part = spec
    if isinstance(spec, MixtureSpec):
        part, prefixes = spec.part, {f"parts.{number}." for number in range(len(spec.classes))}
        if prefixes != {name[: name.find(".", len("parts.")) + 1] for name in shapes}:
            raise ValueError(f"generators of {len(spec.classes)} classes are described")
        shapes = {n.removeprefix("parts.0."): s for n, s in shapes.items() if "parts.0." in n}
    with torch.device("meta"):
        expected = build_generator(part).state_dict()
    for name, tensor in expected.items():
        if shapes.get(name) != tuple(tensor.shape):
            found = "is missing" if name not in shapes else f"has shape {list(shapes[name])}"
            raise ValueError(f"{name} {found}, and {list(tensor.shape)} is described")


def find_generator(path: Path) -> GeneratorFiles:
    """Return the files of the newest generator at a path, as for `load_generator`."""
    if not path.exists():
        if not hub.can_be_on_hub(path):
            raise UserError(f"no such file or folder: {path}")
        path = hub.download(str(path), GENERATOR_FILES)
    if path.is_file():
        return GeneratorFiles(path, path.with_suffix(".json"))
    final = GeneratorFiles(path / "generator.safetensors", path / "generator.json")
    newest = next(iter(reversed(checkpoint_folders(path))), path)
    in_checkpoint = GeneratorFiles(
        newest / "tensors.safetensors", newest / "state.json", EMA_PREFIX
    )
    has_checkpoint = in_checkpoint.weights.exists()
    if final.weights.exists() and not (has_checkpoint and is_older(final, newest)):
        return final
    if has_checkpoint:
        return in_checkpoint
    raise UserError(
        f"{path} holds no generator; "
        "give a run folder, a checkpoint folder or a generator.safetensors"
    )


def is_young(path: Path) -> bool:
    """Return whether the run of a stored generator had not trained long enough for a verdict.

    Files of older versions and generators from elsewhere do not say, and count as trained.
    """
    description = description_or_nothing(path)
    try:
        return bool(description["images_seen"] < description[YOUNG_UNTIL])
    except (KeyError, TypeError):
        return False


def was_improving(path: Path) -> bool:
    """Return whether the run of a stored generator was still improving, if the files say so."""
    return description_or_nothing(path).get(WAS_IMPROVING) is True


def dataset_of(path: Path) -> str | None:
    """Return the fingerprint of the images that a stored generator was trained on, if known."""
    description = description_or_nothing(path)
    return description.get("dataset") or description.get("fingerprint")


def facts_of_parts(paths: Sequence[Path], *, images_seen: int) -> dict[str, Any]:
    """Return what the JSON of a mixture says about the runs of its parts.

    It is too young for a verdict if any of them was, and was improving if any was.
    """
    young_until = images_seen + 1 if any(map(is_young, paths)) else 0
    return {YOUNG_UNTIL: young_until, WAS_IMPROVING: any(map(was_improving, paths))}


def description_or_nothing(path: Path) -> dict[str, Any]:
    """Return the description of a stored generator; empty if it cannot be read."""
    try:
        return read_description(find_generator(path))
    except (OSError, ValueError):
        return {}


def checkpoint_folders(run: Path) -> list[Path]:
    """Return the checkpoints of a run folder, oldest first; ignore all other names."""
    found = (path.parent for path in run.glob("checkpoints/[0-9]*/tensors.safetensors"))
    return sorted(path for path in found if CHECKPOINT_NAME.fullmatch(path.name))


def is_older(final: GeneratorFiles, checkpoint: Path) -> bool:
    """Return whether a generator file is older than a checkpoint, as in a resumed run."""
    try:
        return read_description(final)["images_seen"] < float(checkpoint.name) * 1000 - 0.5
    except (OSError, ValueError, KeyError, TypeError):
        return False


def read_description(files: GeneratorFiles) -> dict[str, Any]:
    """Return the contents of a generator's JSON file; raises OSError or ValueError."""
    try:
        found = json.loads(read_regular(files.description))
    except RecursionError:
        raise ValueError(f"{files.description.name} is nested too deeply") from None
    if not isinstance(found, dict):
        raise ValueError(f"{files.description.name} holds no object")
    return found
