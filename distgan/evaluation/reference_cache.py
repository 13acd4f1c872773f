"""The cache of measured references: one safetensors file each, read by rank zero for all ranks."""

import json
import logging
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from distgan.evaluation.distances import Moments
from distgan.evaluation.metrics import Reference
from distgan.runtime.distributed import World
from shards.files import write_atomic

THUMBNAILS = "thumbnails."  # prefix of names
Tensors = dict[str, Tensor]
Scalars = dict[str, Any]


def write_cache(path: Path, reference: Reference, values: dict[str, float]) -> None:
    """Write a measured reference; a failure is a warning, because it can be measured again."""
    tensors, scalars = flatten(reference)
    on_host = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    header = {"reference": json.dumps(scalars | {"values": values})}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, save(on_host, header), shared=True)
    except OSError as error:
        logging.getLogger(__name__).warning("features of real images are not cached: %s", error)


def read_cache(
    path: Path, device: torch.device, world: World
) -> tuple[Reference, dict[str, float]] | None:
    """Return what `write_cache` wrote, or None if it is missing or damaged. Collective."""
    tensors, scalars = load(path) if world.is_main and path.exists() else ({}, None)
    shapes = {name: (tuple(t.shape), t.dtype) for name, t in tensors.items()}
    scalars, shapes = world.broadcast_object((scalars, shapes))
    if scalars is None:
        return None
    placed = {
        name: tensors[name].to(device)
        if world.is_main
        else torch.empty(shape, dtype=dtype, device=device)
        for name, (shape, dtype) in shapes.items()
    }
    world.broadcast_(list(placed.values()))
    return unflatten(placed, scalars), scalars["values"]


def load(path: Path) -> tuple[Tensors, Scalars | None]:
    """Return the contents of a file; nothing, and a warning, if it is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            scalars = json.loads(file.metadata()["reference"])
            return {name: file.get_tensor(name) for name in sorted(file.keys())}, scalars
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        logging.getLogger(__name__).warning(
            "cached features %s cannot be read and are measured again: %s", path, error
        )
        return {}, None


def flatten(reference: Reference, prefix: str = "") -> tuple[Tensors, Scalars]:
    """Return the tensors and the scalars of a reference by name."""
    tensors = {
        "features": reference.features,
        "neighbours": reference.neighbours,
        "mean": reference.moments.mean,
        "covariance": reference.moments.covariance,
        "sqrt": reference.sqrt,
        "class_shares": reference.class_shares,
        "label_shares": reference.label_shares,
        "kinds": reference.kinds,
        "kind_shares": reference.kind_shares,
    }
    scalars = {
        "duplicate_threshold": reference.duplicate_threshold,
        "copy_threshold": reference.copy_threshold,
        "shares_are_exact": reference.shares_are_exact,
        "detail": reference.detail,
    }
    own = {prefix + name: tensor for name, tensor in tensors.items() if tensor is not None}
    named = {prefix + name: value for name, value in scalars.items()}
    if reference.thumbnails is None:
        return own, named
    small_tensors, small_scalars = flatten(reference.thumbnails, THUMBNAILS)
    return own | small_tensors, named | small_scalars


def unflatten(tensors: Tensors, scalars: Scalars, prefix: str = "") -> Reference:
    """Return the reference that `flatten` took apart."""
    own = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
    shares = {
        name: own[name].cpu() if name in own else None
        for name in ("class_shares", "label_shares", "kind_shares")
    }
    has_thumbnails = not prefix and f"{THUMBNAILS}features" in tensors
    return Reference(
        features=own["features"],
        neighbours=own["neighbours"],
        moments=Moments(own["mean"], own["covariance"]),
        sqrt=own["sqrt"],
        duplicate_threshold=scalars[f"{prefix}duplicate_threshold"],
        copy_threshold=scalars[f"{prefix}copy_threshold"],
        shares_are_exact=scalars[f"{prefix}shares_are_exact"],
        class_shares=shares["class_shares"],
        label_shares=shares["label_shares"],
        kinds=own.get("kinds"),
        kind_shares=shares["kind_shares"],
        thumbnails=unflatten(tensors, scalars, THUMBNAILS) if has_thumbnails else None,
        detail=scalars[f"{prefix}detail"],
    )
