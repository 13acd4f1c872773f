"""A trained generator as a file: `generator.safetensors` beside `generator.json`; needs torch and safetensors alone."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from distgan.errors import UserError
from distgan.networks.base import GeneratorSpec
from distgan.networks.mixture import build_from, read_spec

EMA_PREFIX = "ema."  # of the averaged generator's tensors in a checkpoint


def save_generator(
    generator: nn.Module, spec: GeneratorSpec, folder: Path, *, facts: dict[str, Any]
) -> None:
    """Write weights and what is needed to build the network again; `facts` are told in the JSON and not needed."""
    tensors = {
        name: tensor.detach().cpu().contiguous() for name, tensor in generator.state_dict().items()
    }
    temporary = folder / ".generator.safetensors.tmp"
    temporary.write_bytes(save(tensors))  # `save_file` would leave it to its owner alone
    temporary.replace(folder / "generator.safetensors")
    text = json.dumps(
        {"format": "distgan-generator/1", "generator": spec.to_dict()} | facts, indent=1
    )
    (folder / "generator.json").write_text(text + "\n")


def load_generator(path: Path) -> tuple[nn.Module, GeneratorSpec]:
    """The averaged generator, in eval mode, of a run folder, a checkpoint folder or a generator file; raises UserError."""
    weights, description, prefix = find_generator(path)
    try:
        spec = read_spec(json.loads(description.read_text())["generator"])
        tensors = load_file(weights)
        generator = build_from(spec).eval().requires_grad_(False)
        generator.load_state_dict(
            {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
        )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"cannot read a generator from {path}: {str(error).splitlines()[0]}"
        ) from None
    return generator, spec


def find_generator(path: Path) -> tuple[Path, Path, str]:
    """(weights file, JSON file, prefix of the tensors' names)."""
    if not path.exists():
        raise UserError(f"no such file or folder: {path}")
    if path.is_file():
        return path, path.with_suffix(".json"), ""
    newest = next(iter(sorted((path / "checkpoints").glob("[0-9]*"), reverse=True)), path)
    is_checkpoint = (newest / "tensors.safetensors").exists()
    if (path / "generator.safetensors").exists() and not (
        is_checkpoint and is_older(path / "generator.json", newest)
    ):
        return path / "generator.safetensors", path / "generator.json", ""
    if is_checkpoint:
        return newest / "tensors.safetensors", newest / "state.json", EMA_PREFIX
    raise UserError(
        f"{path} holds no generator; give a run folder, a checkpoint folder or a generator.safetensors"
    )


def is_older(description: Path, checkpoint: Path) -> bool:
    """Whether a generator was written before a checkpoint, as that of a run which was stopped and has gone on."""
    try:
        return (
            json.loads(description.read_text())["images_seen"] < float(checkpoint.name) * 1000 - 0.5
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def checkpoint_folders(run: Path) -> list[Path]:
    """The checkpoints of a run folder in the order of training; raises UserError where there is none."""
    found = [
        path.parent for path in sorted((run / "checkpoints").glob("[0-9]*/tensors.safetensors"))
    ]
    if not found:
        raise UserError(f"{run} holds no checkpoints; give a run folder, or leave --progress out")
    return found
