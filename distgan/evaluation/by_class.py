"""The metrics of each class by itself, for generators that are asked for a class.

Fakes of a class, as they were asked for, are compared with the reals that have its label. The
numbers are computed on rank zero, from features that all ranks have.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from distgan.config.monitoring import Thresholds
from distgan.evaluation import distances, metrics
from distgan.evaluation.metrics import Reference
from distgan.evaluation.sample import MetricSettings, Sample
from distgan.runtime.distributed import World

ALONE = World(0, 1)
FRECHET = "quality/frechet"
COMPARED = (
    "quality/precision",
    "quality/recall",
    "quality/coverage",
    "diversity/spread",
    "diversity/pixel_spread",
    "diversity/pixel_duplicates",
)
ACCURACY = "quality/class_accuracy"
CLASSWISE_METRICS = ("quality/class_frechet", "quality/worst_class_coverage")
MOST_LOGGED = 50  # classes whose metrics become curves
PREFIX = "by_class/"


class ClassLabels(NamedTuple):
    """The classes that a generator can be asked for, and the label of each image of a set.

    `recognised_as` are the numbers that the classes have in an extractor's logits, None if it does
    not know them.
    """

    names: tuple[str, ...]
    labels: Tensor  # int64 [n]; those outside 0 .. K - 1 belong to no class
    recognised_as: tuple[int, ...] | None = None


@dataclass(frozen=True)
class ClassScore:
    """The metrics of a class's fakes, and those of other real images of the class."""

    name: str
    values: dict[str, float]
    reals: dict[str, float]


def numbers_in(extractor_names: Sequence[str], names: Sequence[str]) -> tuple[int, ...] | None:
    """Return the numbers of classes in an extractor's logits; None if it lacks one of them."""
    if not set(names) <= set(extractor_names):
        return None
    return tuple(list(extractor_names).index(name) for name in names)


def fewest_images(settings: MetricSettings) -> int:
    """Return the number of images that nearest neighbours need at least, in either set."""
    return 2 * (max(settings.k_precision, settings.k_coverage) + 1)


def measure_classes(
    sample: Sample, reference: Reference, of_sample: ClassLabels, real_labels: Tensor
) -> dict[int, dict[str, float]]:
    """Return the metrics of each class by its number.

    A class with too few images for nearest neighbours, in either set, is left out.
    """
    fewest, found = fewest_images(sample.settings), {}
    for number in range(len(of_sample.names)):
        fakes = (of_sample.labels == number).nonzero()[:, 0].to(sample.features.device)
        reals = (real_labels == number).nonzero()[:, 0].to(sample.features.device)
        if min(len(fakes), len(reals)) < fewest:
            continue
        own = part_of(sample, fakes)
        values = {FRECHET: distances.frechet_of_sets(own.features, reference.features[reals])}
        values |= metrics.compute(own, reference_of(reference, reals, sample), wanted=COMPARED)
        if of_sample.recognised_as is not None and own.logits is not None:
            expected = of_sample.recognised_as[number]
            values[ACCURACY] = float((own.logits.argmax(1) == expected).double().mean())
        found[number] = values
    return found


def part_of(sample: Sample, rows: Tensor) -> Sample:
    """Return some images of a sample; their metrics are computed without other ranks."""
    return Sample(
        sample.features[rows],
        None if sample.logits is None else sample.logits[rows],
        num_classes=None,
        world=ALONE,
        settings=sample.settings,
        thumbnails=None if sample.thumbnails is None else part_of(sample.thumbnails, rows),
        detail=None if sample.detail is None else sample.detail[rows],
    )


def reference_of(reference: Reference, rows: Tensor, like: Sample) -> Reference:
    """Return a reference of some of its images, with all that `COMPARED` needs."""
    reals = Sample(
        reference.features[rows], None, num_classes=None, world=ALONE, settings=like.settings
    )
    small = reference.thumbnails
    return Reference(
        reals.features,
        reals.neighbours,
        reals.moments,
        sqrt=None,
        duplicate_threshold=float(reals.radii(1).quantile(like.settings.near_quantile)),
        copy_threshold=0.0,
        class_shares=None,
        label_shares=None,
        shares_are_exact=False,
        thumbnails=None if small is None else reference_of(small, rows, like),
        detail=reference.detail,
    )


# ------------------------------------------------------------------------------------ all classes


def total_values(by_class: dict[int, dict[str, float]], counts: Tensor) -> dict[str, float]:
    """Return metrics of all classes together, for fakes or reals with these counts [K]."""
    if not by_class:
        return {}
    coverage = [values["quality/coverage"] for values in by_class.values()]
    frechet = [values[FRECHET] for values in by_class.values()]
    totals = {
        "quality/class_frechet": sum(frechet) / len(frechet),
        "quality/worst_class_coverage": min(coverage),
    }
    measured = {number: values for number, values in by_class.items() if ACCURACY in values}
    if measured:
        weights = {number: float(counts[number]) for number in measured}
        right = sum(values[ACCURACY] * weights[number] for number, values in measured.items())
        totals[ACCURACY] = right / sum(weights.values())
    return totals


def scores(
    names: Sequence[str],
    fakes: dict[int, dict[str, float]],
    reals: dict[int, dict[str, float]],
) -> tuple[ClassScore, ...]:
    """Return the classes that were measured in both sets, in their order."""
    return tuple(
        ClassScore(names[number], values, reals[number])
        for number, values in sorted(fakes.items())
        if number in reals
    )


def worst_classes(found: Sequence[ClassScore], *, most: int = 3) -> list[ClassScore]:
    """Return the classes that are covered least, beside their reals, the worst first."""
    return sorted(found, key=lambda score: relative(score, "quality/coverage"))[:most]


def collapsed_classes(found: Sequence[ClassScore], thresholds: Thresholds) -> list[str]:
    """Return the names of the classes whose fakes hardly differ, in features and in pixels."""
    return [
        score.name
        for score in found
        if relative(score, "diversity/spread") < thresholds.one_image_spread
        and relative(score, "diversity/pixel_spread") < thresholds.one_image_pixel_spread
        and score.values["diversity/pixel_duplicates"]
        > max(thresholds.duplicates, score.reals["diversity/pixel_duplicates"])
    ]


def relative(score: ClassScore, name: str) -> float:
    """Return a value of a class over that of its reals."""
    return score.values[name] / max(score.reals[name], 1e-12)


def flat_values(found: Sequence[ClassScore]) -> dict[str, float]:
    """Return `by_class/<class>/<metric>` for curves; nothing if there are very many classes."""
    if len(found) > MOST_LOGGED:
        return {}
    return {
        f"{PREFIX}{score.name}/{name.partition('/')[2]}": value
        for score in found
        for name, value in score.values.items()
    }


def pack(by_class: dict[int, dict[str, float]]) -> dict[str, float]:
    """Return the metrics of classes under one name each, as caches of numbers hold them."""
    return {
        f"{PREFIX}{number}/{name}": value
        for number, values in by_class.items()
        for name, value in values.items()
    }


def unpack(values: dict[str, float]) -> dict[int, dict[str, float]]:
    """Undo `pack`; other values are left out."""
    found: dict[int, dict[str, float]] = {}
    for name, value in values.items():
        if name.startswith(PREFIX):
            number, _, metric = name.removeprefix(PREFIX).partition("/")
            found.setdefault(int(number), {})[metric] = value
    return found


def count_labels(labels: Tensor, num_classes: int) -> Tensor:
    """Return the number of images of each class, [K]; images of no class do not count."""
    return torch.bincount(labels[(labels >= 0) & (labels < num_classes)], minlength=num_classes)
