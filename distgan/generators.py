"""A trained generator as a file: `generator.safetensors` beside `generator.json`; needs torch and safetensors alone."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from distgan.errors import UserError
from distgan.mixture import build_from, read_spec
from distgan.networks import GeneratorSpec
from distgan.randomness import normal

EMA_PREFIX = "ema."  # of the averaged generator's tensors in a checkpoint


def save_generator(generator: nn.Module, spec: GeneratorSpec, folder: Path, *, facts: dict[str, Any]) -> None:
    """Write weights and what is needed to build the network again; `facts` are told in the JSON and not needed."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in generator.state_dict().items()}
    temporary = folder / ".generator.safetensors.tmp"
    save_file(tensors, temporary)
    temporary.replace(folder / "generator.safetensors")
    text = json.dumps({"format": "distgan-generator/1", "generator": spec.to_dict()} | facts, indent=1)
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
        raise UserError(f"cannot read a generator from {path}: {str(error).splitlines()[0]}") from None
    return generator, spec


def find_generator(path: Path) -> tuple[Path, Path, str]:
    """(weights file, JSON file, prefix of the tensors' names)."""
    if not path.exists():
        raise UserError(f"no such file or folder: {path}")
    if path.is_file():
        return path, path.with_suffix(".json"), ""
    if (path / "generator.safetensors").exists():
        return path / "generator.safetensors", path / "generator.json", ""
    checkpoints = sorted((path / "checkpoints").glob("[0-9]*")) or [path]
    if (checkpoints[-1] / "tensors.safetensors").exists():
        return checkpoints[-1] / "tensors.safetensors", checkpoints[-1] / "state.json", EMA_PREFIX
    raise UserError(f"{path} holds no generator; give a run folder, a checkpoint folder or a generator.safetensors")


def sample_latents(num: int, spec: GeneratorSpec, *, seed: int, first: int = 0) -> Tensor:
    """Latents [num, Z] number `first` and on of a seed; sample i is the same however many are drawn."""
    return normal((spec.latent_dim,), torch.arange(first, first + num), seed=seed, purpose="samples")


@torch.no_grad()
def generate(generator: nn.Module, latents: Tensor, *, batch_size: int = 256) -> Tensor:
    """Images [N, C, H, W] in [-1, 1] for latents [N, Z], in batches."""
    return torch.cat([generator(batch).float() for batch in latents.split(batch_size)])
