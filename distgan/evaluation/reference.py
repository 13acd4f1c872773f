"""The real images of an evaluation: split in two, measured once, and cached.

RealImages -> split_reals -> features on all ranks -> Reference, and the metrics of other reals
against it. Image i belongs to chunk i // CHUNK, and chunk c to rank c % W, so that features do not
depend on the number of ranks W.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple, cast

import torch
from torch import Tensor

from distgan.errors import UserError
from distgan.evaluation import metrics
from distgan.evaluation.by_class import (
    ClassLabels,
    count_labels,
    fewest_images,
    measure_classes,
    numbers_in,
    pack,
    total_values,
)
from distgan.evaluation.extractors import Extractor, detail, thumbnails
from distgan.evaluation.metrics import Reference
from distgan.evaluation.reference_cache import read_cache, write_cache
from distgan.evaluation.sample import DEFAULT_SETTINGS, MetricSettings, Sample
from distgan.runtime.distributed import World
from shards.files import cache_folder

CHUNK = 125  # images per call of the extractor; another number would round differently
CACHE_FORMAT = 6


@dataclass(frozen=True)
class RealImages:
    """The real images of a dataset.

    `images` takes ascending int64 indices [n] and returns uint8 [n, C, H, W]. `class_shares` are
    the true shares of the extractor's classes if they are known, such as those of stacked digits.
    `class_labels` takes indices and returns the label of each among the `class_names` that a
    generator can be asked for; `labels_version` tells different labels of the same images apart.
    """

    images: Callable[[Tensor], Tensor]
    num_images: int
    fingerprint: str
    class_shares: tuple[float, ...] | None = None
    class_names: tuple[str, ...] = ()
    class_labels: Callable[[Tensor], Tensor] | None = None
    labels_version: str = ""

    def labelled(self, indices: Tensor, extractor: Extractor) -> ClassLabels | None:
        """Return the labels of some images, None if a generator cannot be asked for any."""
        if self.class_labels is None:
            return None
        recognised_as = numbers_in(extractor.class_names, self.class_names)
        return ClassLabels(self.class_names, self.class_labels(indices), recognised_as)


@dataclass(frozen=True)
class Protocol:
    """Everything that must be equal for two metrics to be comparable."""

    extractor: str
    extractor_version: str
    resize: str
    image_shape: tuple[int, ...]  # channels, height, width
    dataset: str  # fingerprint
    num_fakes: int
    num_reference: int
    num_control: int  # reals that are compared with other reals
    split: str
    split_seed: int
    settings: MetricSettings
    seed: int | None = None  # of the fakes' latents
    weights: str = ""  # origin of the fakes: "ema", "raw" or "images"

    def line(self) -> str:
        """Return the protocol in one line, for a footnote."""
        origin = [self.weights] if self.weights else []
        origin += [] if self.seed is None else [f"seed {self.seed}"]
        described = f" ({', '.join(origin)})" if origin else ""
        return (
            f"Protocol: {self.num_fakes:,} generated images{described} "
            f"and {self.num_reference:,} real ones of dataset {self.dataset[:12]}, resized "
            f"{self.resize}, in features of {self.extractor} {self.extractor_version}; for the "
            f"values of real images {self.num_control:,} others ({self.split})."
        )


@dataclass(frozen=True)
class PreparedReference:
    """A measured reference, the metrics of other reals against it, and the protocol so far."""

    reference: Reference
    values: dict[str, float]
    protocol: Protocol
    labels: ClassLabels | None = None  # of the reference


class Split(NamedTuple):
    """Ascending indices of reals: the reference, and two sets that are compared with each other."""

    reference: Tensor
    against: Tensor
    control: Tensor
    description: str


def split_reals(
    num_images: int, num_samples: int, num_reference: int | None, *, seed: int
) -> Split:
    """Return a random split of the images.

    By default the reference and the control are disjoint, and have `num_samples` images each but at
    most half of all. A larger `num_reference` may leave too few others: then the reference overlaps
    with both halves of the images, which are compared with each other instead.
    """
    order = torch.randperm(num_images, generator=torch.Generator().manual_seed(seed))
    half = num_images // 2
    count = min(num_samples, half)
    size = count if num_reference is None else min(num_reference, num_images)
    reference, rest = order[:size].sort().values, order[size : size + count].sort().values
    if len(rest) == count:
        return Split(reference, reference, rest, "disjoint")
    first, second = order[:half].sort().values, order[half : 2 * half].sort().values
    return Split(reference, first, second, "two halves of the images")


def extract_sample(
    images: Callable[[int, int], Tensor],
    num: int,
    extractor: Extractor,
    world: World,
    *,
    settings: MetricSettings,
) -> Sample:
    """Return the sample of images 0 to num, on every rank. Collective."""
    num_chunks = -(-num // CHUNK)
    own: dict[int, Tensor] = {}
    widths: tuple[int, int] | None = None
    for chunk in range(world.rank, num_chunks, world.size):
        batch = images(chunk * CHUNK, min((chunk + 1) * CHUNK, num))
        features, logits = extractor(batch)
        small = thumbnails(batch).to(features.device)
        sharpness = detail(batch).to(features.device)[:, None]
        columns = [features, small, sharpness, *([] if logits is None else [logits])]
        own[chunk] = torch.cat(columns, 1)
        widths = small.shape[1], own[chunk].shape[1]
    num_small, num_columns = cast("tuple[int, int]", world.broadcast_object(widths))
    rows = torch.empty(num, num_columns, device=extractor.device)
    for chunk, part in enumerate(rows.split(CHUNK)):
        if chunk in own:
            part.copy_(own[chunk])
        # In a large world most ranks have no chunk, so that a gather would be mostly padding.
        world.broadcast_([part], source=chunk % world.size)
    if rows.device.type == "mps":  # which has no float64
        rows = rows.cpu()
    ends = extractor.dim, extractor.dim + num_small, extractor.dim + num_small + 1
    features, small, sharpness, logits = (part.contiguous() for part in rows.tensor_split(ends, 1))
    return Sample(
        features,
        logits if logits.shape[1] else None,
        num_classes=extractor.num_classes,
        world=world,
        settings=settings,
        thumbnails=Sample(small, None, num_classes=None, world=world, settings=settings),
        detail=sharpness[:, 0],
    )


def check_enough(
    num_images: int, num_samples: int, *, settings: MetricSettings = DEFAULT_SETTINGS
) -> None:
    """Raise UserError if there are too few images or samples for the metrics."""
    fewest, given = fewest_images(settings), min(num_images, num_samples)
    if given < fewest:
        raise UserError(
            f"{given} images are too few to evaluate with; at least {fewest} are needed"
        )


def prepare_reference(
    reals: RealImages,
    extractor: Extractor,
    *,
    world: World,
    num_samples: int = 10_000,
    num_reference: int | None = None,
    split_seed: int = 0,
    settings: MetricSettings = DEFAULT_SETTINGS,
    folder: Path | None = None,
) -> PreparedReference:
    """Measure the reals that fakes will be compared with, or read them from the cache.

    Collective. Without `num_reference` there are `num_samples` fakes and as many reals in the
    reference, but at most half as many as all reals.
    Published FIDs use 50,000 fakes and the whole training set: num_samples=50_000,
    num_reference=50_000. `folder` is the cache, by default in the user's cache folder. Raises
    UserError if there are too few images.
    """
    num_drawn = min(num_samples, num_reference or num_samples)
    check_enough(reals.num_images, num_drawn, settings=settings)
    split = split_reals(reals.num_images, num_samples, num_reference, seed=split_seed)
    protocol = Protocol(
        extractor=extractor.name,
        extractor_version=extractor.version,
        resize=extractor.resize,
        image_shape=tuple(reals.images(split.reference[:1]).shape[1:]),
        dataset=reals.fingerprint,
        num_fakes=len(split.control) if num_reference is None else num_samples,
        num_reference=len(split.reference),
        num_control=len(split.control),
        split=split.description,
        split_seed=split_seed,
        settings=settings,
    )
    path = cache_file(folder or cache_folder() / "references", protocol, reals)
    device = torch.device("cpu") if extractor.device.type == "mps" else extractor.device
    labels = reals.labelled(split.reference, extractor)
    cached = read_cache(path, device, world)
    if cached is not None:
        return PreparedReference(*cached, protocol, labels)
    reference, values = measure_reals(reals, split, protocol, extractor, world)
    if world.is_main:
        write_cache(path, reference, values)
    return PreparedReference(reference, values, protocol, labels)


def measure_reals(
    reals: RealImages,
    split: Split,
    protocol: Protocol,
    extractor: Extractor,
    world: World,
) -> tuple[Reference, dict[str, float]]:
    """Return the measured reference, and the metrics of other reals against it. Collective."""

    def sample(indices: Tensor) -> Sample:
        return extract_sample(
            lambda start, stop: reals.images(indices[start:stop]),
            len(indices),
            extractor,
            world,
            settings=protocol.settings,
        )

    known = None
    if reals.class_shares is not None and len(reals.class_shares) == extractor.num_classes:
        known = torch.tensor(reals.class_shares, dtype=torch.float64)
    control = sample(split.control)
    measured = Reference.measure(sample(split.against), control, known_shares=known)
    values = metrics.compute(control, measured, published=extractor.published)
    own, against = (reals.labelled(each, extractor) for each in (split.control, split.against))
    if own is not None and against is not None and world.is_main:
        by_class = measure_classes(control, measured, own, against.labels)
        counts = count_labels(own.labels, len(own.names))
        values |= total_values(by_class, counts) | pack(by_class)
    if split.reference is not split.against:
        # The reference contains the control, which would count as copies. The half that does not
        # contain it tells how close a copy is.
        whole = Reference.measure(sample(split.reference), control, known_shares=known)
        measured = with_copy_thresholds(whole, measured)
    # Decisions of a run depend on these values, so every rank takes those of rank zero.
    return measured, world.broadcast_object(values)


def with_copy_thresholds(reference: Reference, other: Reference) -> Reference:
    """Return a reference with the copy thresholds of another."""
    small, other_small = reference.thumbnails, other.thumbnails
    if small is not None and other_small is not None:
        small = replace(small, copy_threshold=other_small.copy_threshold)
    return replace(reference, copy_threshold=other.copy_threshold, thumbnails=small)


def cache_file(folder: Path, protocol: Protocol, reals: RealImages) -> Path:
    """Return the file of a measured reference; its name is a hash of all that determines it."""
    parts = [CACHE_FORMAT, CHUNK, asdict(protocol), reals.class_shares]
    if reals.class_names:
        parts += [reals.class_names, reals.labels_version]
    key = json.dumps(parts, sort_keys=True)
    return folder / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.safetensors"
