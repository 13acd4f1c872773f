"""The reals' side of an evaluation: split, measured once, and cached by content.

RealImages -> split_reals -> features on all ranks -> Reference, and what real images score against it
image i belongs to chunk i // CHUNK, chunk c to rank c % W: features do not depend on the number of ranks
"""

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from distgan.errors import UserError
from distgan.evaluation import metrics
from distgan.evaluation.distances import Moments
from distgan.evaluation.extractors import FeatureExtractor
from distgan.evaluation.metrics import DEFAULT_SETTINGS, MetricSettings, Reference, Sample
from distgan.runtime.distributed import World
from shards.files import cache_folder, write_atomic

CHUNK = 250  # images that pass through the extractor together; part of the protocol, for batches round differently
CACHE_FORMAT = 1


@dataclass(frozen=True)
class RealImages:
    """A dataset as evaluation sees it; `images` takes ascending int64 indices [n] and gives uint8 [n, C, H, W]."""

    images: Callable[[Tensor], Tensor]
    num_images: int
    fingerprint: str
    # Where the classes' true shares are known in the extractor's own classes, as the uniform ones of stacked digits.
    class_shares: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Protocol:
    """What must be equal for two numbers to be compared."""

    extractor: str
    extractor_version: str
    resize: str
    image_shape: tuple[int, ...]  # channels, height, width
    dataset: str  # fingerprint
    num_fakes: int
    num_reference: int
    num_control: int  # reals on the other side of the real-against-real values
    split: str
    split_seed: int
    settings: MetricSettings
    seed: int | None = None  # of the fakes' latents
    weights: str = ""  # "ema", "raw", or what else the fakes come from

    def line(self) -> str:
        """The protocol in one line, to stand under a table."""
        origin = f", {self.weights}" if self.weights else ""
        seed = "" if self.seed is None else f", seed {self.seed}"
        return (
            f"{self.num_fakes} fakes{origin}{seed} against {self.num_reference} reals of {self.dataset[:12]}; "
            f"{self.extractor} {self.extractor_version}, resized {self.resize}; reals against reals: {self.num_control}, {self.split}"
        )


@dataclass(frozen=True)
class PreparedReference:
    """A measured reference, the values that real images get against it, and the protocol so far."""

    reference: Reference
    values: dict[str, float]
    protocol: Protocol


def split_reals(
    num_images: int, num_samples: int, num_reference: int | None, *, seed: int
) -> tuple[Tensor, Tensor, Tensor, str]:
    """Indices of the reference; of both sides of the real-against-real values; and the split in words.

    By default as many references as samples and as many other reals, disjoint, each at most half of the images.
    A larger `num_reference` that leaves too few others has both halves of the images compared instead.
    """
    order = torch.randperm(num_images, generator=torch.Generator().manual_seed(seed))
    half = num_images // 2
    count = min(num_samples, half)
    size = count if num_reference is None else min(num_reference, num_images)
    reference, rest = order[:size].sort().values, order[size : size + count].sort().values
    if len(rest) == count:
        return reference, reference, rest, "disjoint"
    return (
        reference,
        order[:half].sort().values,
        order[half : 2 * half].sort().values,
        "two halves of the images",
    )


def extract_all(
    images: Callable[[int, int], Tensor], num: int, extractor: FeatureExtractor, world: World
) -> tuple[Tensor, Tensor | None]:
    """Features [num, d] and logits [num, C] or None of images 0 to num, in order, on every rank."""
    num_chunks = -(-num // CHUNK)
    chunks_per_rank = -(-num_chunks // world.size)
    parts = []
    for turn in range(chunks_per_rank):
        # Ranks with nothing left repeat the last chunk, so that all gather equal shapes; repetitions fall off the end.
        start = min(turn * world.size + world.rank, num_chunks - 1) * CHUNK
        features, logits = extractor(images(start, min(start + CHUNK, num)))
        both = features if logits is None else torch.cat([features, logits], 1)
        parts.append(torch.nn.functional.pad(both, (0, 0, 0, CHUNK - len(both))))
    own = torch.stack(parts)  # [chunks per rank, CHUNK, d + C]
    gathered = world.all_gather(own).view(world.size, chunks_per_rank, CHUNK, -1)
    rows = gathered.transpose(0, 1).flatten(0, 2)[:num]
    if rows.device.type == "mps":  # which has no float64
        rows = rows.cpu()
    features, logits = rows[:, : extractor.dim], rows[:, extractor.dim :]
    return features.contiguous(), logits if logits.shape[1] else None


def check_enough(
    num_images: int, num_samples: int, *, settings: MetricSettings = DEFAULT_SETTINGS
) -> None:
    """Raise UserError for a dataset too small to be split, or too few samples."""
    fewest, given = (
        2 * (max(settings.k_precision, settings.k_coverage) + 1),
        min(num_images, num_samples),
    )
    if given < fewest:
        raise UserError(
            f"{given} images are too few to evaluate with; at least {fewest} are needed"
        )


def prepare_reference(
    reals: RealImages,
    extractor: FeatureExtractor,
    *,
    world: World,
    num_samples: int = 10_000,
    num_reference: int | None = None,
    split_seed: int = 0,
    settings: MetricSettings = DEFAULT_SETTINGS,
    folder: Path | None = None,
) -> PreparedReference:
    """Measure the reals that fakes will be compared with, or read it from the cache; every rank calls it.

    `num_samples` fakes will be drawn; without `num_reference`, no more than half the reals. Published FIDs compare
    50,000 samples with the whole training set: num_samples=50_000, num_reference=50_000. `folder` is where the cache
    lies, by default in the user's cache folder. Raises UserError for a dataset too small to be split.
    """
    check_enough(
        reals.num_images,
        num_samples if num_reference is None else reals.num_images,
        settings=settings,
    )
    reference, against, control, split = split_reals(
        reals.num_images, num_samples, num_reference, seed=split_seed
    )
    protocol = Protocol(
        extractor=extractor.name,
        extractor_version=extractor.version,
        resize=extractor.resize,
        image_shape=tuple(reals.images(reference[:1]).shape[1:]),
        dataset=reals.fingerprint,
        num_fakes=len(control) if num_reference is None else num_samples,
        num_reference=len(reference),
        num_control=len(control),
        split=split,
        split_seed=split_seed,
        settings=settings,
    )
    key = json.dumps([CACHE_FORMAT, CHUNK, asdict(protocol), reals.class_shares], sort_keys=True)
    path = (
        folder or cache_folder() / "references"
    ) / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.safetensors"
    cached = read_cache(path, protocol, extractor, world)
    if cached is not None:
        return cached

    def sample(indices: Tensor) -> Sample:
        features, logits = extract_all(
            lambda a, b: reals.images(indices[a:b]), len(indices), extractor, world
        )
        return Sample(
            features, logits, num_classes=extractor.num_classes, world=world, settings=settings
        )

    others = sample(control)
    known = (
        None
        if reals.class_shares is None
        else torch.tensor(reals.class_shares, dtype=torch.float64)
    )
    measured = Reference.measure(sample(against), others, known_shares=known)
    values = metrics.compute(others, measured, published=extractor.published)
    if split != "disjoint":
        # The others lie in this reference, so that only the half they were kept from can say what a copy is.
        whole = Reference.measure(sample(reference), others, known_shares=known)
        measured = replace(whole, copy_threshold=measured.copy_threshold)
    # Rank zero's numbers everywhere: the ranks must agree to the last bit on what follows from them.
    prepared = PreparedReference(measured, world.broadcast_object(values), protocol)
    if world.is_main:
        write_cache(path, prepared)
    return prepared


def write_cache(path: Path, prepared: PreparedReference) -> None:
    """One safetensors file; a folder that cannot be written to costs the next run the measuring, and is said."""
    reference = prepared.reference
    tensors = {
        "features": reference.features,
        "neighbours": reference.neighbours,
        "mean": reference.moments.mean,
        "covariance": reference.moments.covariance,
        "sqrt": reference.sqrt,
        "class_shares": reference.class_shares,
        "label_shares": reference.label_shares,
    }
    scalars = {
        "values": prepared.values,
        "duplicate_threshold": reference.duplicate_threshold,
        "copy_threshold": reference.copy_threshold,
        "shares_are_exact": reference.shares_are_exact,
    }
    present = {
        name: tensor.cpu().contiguous() for name, tensor in tensors.items() if tensor is not None
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, save(present, {"reference": json.dumps(scalars)}), shared=True)
    except OSError as error:
        logging.getLogger(__name__).warning("real images' features are not cached: %s", error)


def read_cache(
    path: Path, protocol: Protocol, extractor: FeatureExtractor, world: World
) -> PreparedReference | None:
    """What `write_cache` wrote, read by rank zero and sent to all; None where there is none."""
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, Any] | None = None
    if world.is_main and path.exists():
        try:
            with safe_open(path, framework="pt") as file:
                scalars = json.loads(file.metadata()["reference"])
                tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            logging.getLogger(__name__).warning(
                "cached features %s cannot be read and are made anew: %s", path, error
            )
    shapes = {name: (tuple(t.shape), t.dtype) for name, t in tensors.items()}
    scalars, shapes = world.broadcast_object((scalars, shapes))
    if scalars is None:
        return None
    device = torch.device("cpu") if extractor.device.type == "mps" else extractor.device
    placed = {
        name: tensors[name].to(device)
        if world.is_main
        else torch.empty(shape, dtype=dtype, device=device)
        for name, (shape, dtype) in shapes.items()
    }
    world.broadcast_(list(placed.values()))
    on_host = {
        name: placed[name].cpu() if name in placed else None
        for name in ("class_shares", "label_shares")
    }
    reference = Reference(
        features=placed["features"],
        neighbours=placed["neighbours"],
        moments=Moments(placed["mean"], placed["covariance"]),
        sqrt=placed["sqrt"],
        duplicate_threshold=scalars["duplicate_threshold"],
        copy_threshold=scalars["copy_threshold"],
        shares_are_exact=scalars["shares_are_exact"],
        **on_host,
    )
    return PreparedReference(reference, scalars["values"], protocol)
