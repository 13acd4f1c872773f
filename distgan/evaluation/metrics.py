"""The metrics of an evaluation, computed from the features of generated and real images."""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from distgan.config.metrics import PUBLISHED_NAMES
from distgan.evaluation import distances, kinds, modes, neighbours
from distgan.evaluation.distances import Moments
from distgan.evaluation.extractors import mirrored
from distgan.evaluation.sample import Sample
from distgan.runtime.distributed import World


@dataclass(frozen=True)
class Reference:
    """The real images that samples are compared with, and everything measured of them."""

    features: Tensor  # [m, d]
    neighbours: Tensor  # [m, k_coverage], squared distances to the nearest other reals
    moments: Moments
    sqrt: Tensor | None  # [d, d], square root of the covariance; None for the reals of a class
    duplicate_threshold: float  # squared distance from which on a nearest other is a duplicate
    copy_threshold: float  # relative distance from which on a sample is a copy of a real
    class_shares: Tensor | None  # [C], among the reals that are classified with confidence
    label_shares: Tensor | None  # [C], known, or as predicted for all reals
    shares_are_exact: bool  # whether label_shares are known
    kinds: Tensor | None = None  # [k, d], centres of clusters
    kind_shares: Tensor | None = None  # [k], of the reals
    thumbnails: "Reference | None" = None
    detail: float | None = None  # mean over the reals

    def __len__(self) -> int:
        return len(self.features)

    def radii(self, k: int) -> Tensor:
        """Return squared distances [m] to the k-th nearest other real."""
        return self.neighbours[:, k - 1]

    @classmethod
    def measure(
        cls, reals: Sample, others: Sample, *, known_shares: Tensor | None = None
    ) -> "Reference":
        """Measure `reals`; the copy threshold is a quantile of their distances to other reals."""
        settings = reals.settings
        thumbnails = None
        if reals.thumbnails is not None and others.thumbnails is not None:
            thumbnails = cls.measure(reals.thumbnails, others.thumbnails)
        closeness, _ = neighbours.relative_distances(
            others.features, reals.features, reals.radii(settings.k_coverage), reals.world
        )
        centres = kinds.find_kinds(reals.features, reals.world)
        confident = predicted = None
        if reals.num_classes is not None:
            confident = modes.shares_of(reals.confident_counts)
            predicted = reals.class_counts.double() / len(reals)
        return cls(
            reals.features,
            reals.neighbours,
            reals.moments,
            distances.matrix_sqrt(reals.moments.covariance),
            duplicate_threshold=float(reals.radii(1).quantile(settings.near_quantile)),
            copy_threshold=float(closeness.quantile(settings.near_quantile)),
            class_shares=confident,
            label_shares=predicted if known_shares is None else known_shares,
            shares_are_exact=known_shares is not None,
            kinds=centres,
            kind_shares=kinds.kind_shares(reals.features, centres, reals.world),
            thumbnails=thumbnails,
            detail=None if reals.detail is None else float(reals.detail.double().mean()),
        )


def frechet_values(fakes: Sample, reals: Reference) -> dict[str, float]:
    distance = distances.frechet_distance(fakes.moments, reals.moments, reals_sqrt=reals.sqrt)
    return {"quality/frechet": distance}


def kernel_values(fakes: Sample, reals: Reference) -> dict[str, float]:
    mean, spread = distances.kernel_distance(
        fakes.features,
        reals.features,
        fakes.world,
        num_subsets=fakes.settings.kernel_subsets,
        subset_size=fakes.settings.kernel_subset_size,
    )
    return {"quality/kernel": mean, "quality/kernel_spread": spread}


def fidelity_values(fakes: Sample, reals: Reference) -> dict[str, float]:
    narrow, wide = fakes.settings.k_precision, fakes.settings.k_coverage
    found = neighbours.fidelity(
        fakes.features,
        reals.features,
        fakes.world,
        fake_radii=fakes.radii(narrow),
        real_radii=reals.radii(narrow),
        real_radii_wide=reals.radii(wide),
        k_wide=wide,
    )
    return {f"quality/{name}": value for name, value in vars(found).items()}


def spread_values(fakes: Sample, reals: Reference) -> dict[str, float]:
    """Return the spread and the Vendi score.

    The score is that of the differences from the reals' mean. Otherwise a large common offset of
    all features would hide how they differ.
    """
    centred = fakes.features - reals.moments.mean.to(fakes.features.dtype)
    return {
        "diversity/spread": relative_spread(fakes, reals),
        "diversity/vendi": distances.vendi_score(centred, fakes.world),
    }


def relative_spread(fakes: Sample, reals: Reference) -> float:
    """Return the standard deviation of the features of fakes over that of reals.

    It is finite even if all reals are the same image.
    """
    least = 1e-30  # far below the precision of any other value
    of_fakes, of_reals = (float(each.moments.covariance.trace()) for each in (fakes, reals))
    return math.sqrt((of_fakes + least) / (of_reals + least))


def duplicate_values(fakes: Sample, reals: Reference) -> dict[str, float]:
    """Return the near-duplicates, in the manner of Arora & Zhang 2017 (arXiv 1706.08224).

    Their birthday test shows the closest pairs to a person; here a threshold decides.
    """
    nearest = fakes.radii(1)
    return {"diversity/duplicates": neighbours.fraction_below(nearest, reals.duplicate_threshold)}


def copy_values(fakes: Sample, reals: Reference) -> dict[str, float]:
    """Return the copies, and those of which the thumbnail is a copy of the same real.

    The thumbnail may be mirrored, as some training images and many features are.
    """
    world, radii = fakes.world, reals.radii(fakes.settings.k_coverage)
    are_copies, originals = find_copies(fakes.features, reals, radii, world)
    values = {"diversity/copies": float(are_copies.double().mean())}
    small, small_reals = fakes.thumbnails, reals.thumbnails
    if small is not None and small_reals is not None:
        radii = small_reals.radii(fakes.settings.k_coverage)
        confirmed = torch.zeros_like(are_copies)
        for pixels in (small.features, mirrored(small.features)):
            alike, same_originals = find_copies(pixels, small_reals, radii, world)
            confirmed |= are_copies & alike & (originals == same_originals)
        values["diversity/confirmed_copies"] = float(confirmed.double().mean())
    return values


def find_copies(
    features: Tensor, reals: Reference, radii: Tensor, world: World
) -> tuple[Tensor, Tensor]:
    """Return which images are copies of their nearest reals [n], and the indices of these [n]."""
    closeness, nearest = neighbours.relative_distances(features, reals.features, radii, world)
    return closeness <= reals.copy_threshold, nearest


def pixel_values(fakes: Sample, reals: Reference) -> dict[str, float]:
    """Return how sharp images are, and the diversity of thumbnails; nothing if there are none."""
    small, small_reals = fakes.thumbnails, reals.thumbnails
    if small is None or small_reals is None or fakes.detail is None or reals.detail is None:
        return {}
    nearest, threshold = small.radii(1), small_reals.duplicate_threshold
    return {
        "quality/detail": float(fakes.detail.double().mean()) / max(reals.detail, 1e-12),
        "diversity/pixel_spread": relative_spread(small, small_reals),
        "diversity/pixel_duplicates": neighbours.fraction_below(nearest, threshold),
    }


def kind_values(fakes: Sample, reals: Reference) -> dict[str, float]:
    """Return the numbers of kinds of real images that the fakes lack, in features and in pixels."""
    settings, small, small_reals = fakes.settings, fakes.thumbnails, reals.thumbnails
    values = {"diversity/missing_kinds": count_missing(fakes, reals, settings.missing_below)}
    if small is not None and small_reals is not None:
        missing = count_missing(small, small_reals, settings.missing_pixels_below)
        values["diversity/missing_pixel_kinds"] = missing
    return values


def count_missing(fakes: Sample, reals: Reference, below: float) -> float:
    """Return how many kinds of `reals` have less than `below` times their share among `fakes`."""
    assert reals.kinds is not None and reals.kind_shares is not None
    shares = kinds.kind_shares(fakes.features, reals.kinds, fakes.world)
    return float(kinds.missing_kinds(shares, reals.kind_shares * len(reals), below=below))


def class_values(fakes: Sample, reals: Reference) -> dict[str, float]:
    """Return the metrics of classes; none if there are no classes."""
    if reals.class_shares is None or reals.label_shares is None:
        return {}
    counts, confident = fakes.class_counts, fakes.confident_counts
    below = fakes.settings.missing_below
    missing = modes.missing_classes(confident, reals.class_shares, below=below)
    set_sizes = (len(fakes),) if reals.shares_are_exact else (len(fakes), len(reals))
    return {
        "diversity/modes": modes.modes_captured(counts),
        "diversity/effective_classes": modes.effective_classes(modes.shares_of(confident)),
        "diversity/missing_classes": len(missing),
        "diversity/reverse_kl": modes.reverse_kl(counts, reals.label_shares),
        "diversity/reverse_kl_floor": modes.reverse_kl_floor(len(counts), *set_sizes),
    }


Compute = Callable[[Sample, Reference], dict[str, float]]

CLASS_METRICS = (
    "diversity/modes",
    "diversity/effective_classes",
    "diversity/missing_classes",
    "diversity/reverse_kl",
    "diversity/reverse_kl_floor",
)
GROUPS: dict[tuple[str, ...], Compute] = {
    ("quality/frechet",): frechet_values,
    ("quality/kernel", "quality/kernel_spread"): kernel_values,
    ("quality/precision", "quality/recall", "quality/density", "quality/coverage"): fidelity_values,
    ("diversity/spread", "diversity/vendi"): spread_values,
    ("diversity/duplicates",): duplicate_values,
    ("diversity/copies", "diversity/confirmed_copies"): copy_values,
    ("quality/detail", "diversity/pixel_spread", "diversity/pixel_duplicates"): pixel_values,
    ("diversity/missing_kinds", "diversity/missing_pixel_kinds"): kind_values,
    CLASS_METRICS: class_values,
}
VERDICT_METRICS = (
    "quality/frechet",
    "quality/precision",
    "quality/recall",
    "quality/coverage",
    "quality/detail",
    "diversity/spread",
    "diversity/duplicates",
    "diversity/confirmed_copies",
    "diversity/pixel_spread",
    "diversity/pixel_duplicates",
    "diversity/missing_kinds",
    "diversity/missing_pixel_kinds",
    "diversity/effective_classes",
    "diversity/missing_classes",
)
"""The metrics that a verdict needs; the last two only if there are classes."""


def compute(
    fakes: Sample,
    reals: Reference,
    *,
    wanted: Collection[str] | None = None,
    published: bool = False,
) -> dict[str, float]:
    """Return the wanted metrics, or all that the features allow.

    With `published` features some have the names of published tables, and are wanted by either.
    """
    values: dict[str, float] = {}
    for names, group in GROUPS.items():
        asked = [name for name in names if is_wanted(name, wanted)]
        found = group(fakes, reals) if asked else {}
        values |= {name: found[name] for name in asked if name in found}
    if published:
        values = {PUBLISHED_NAMES.get(name, name): value for name, value in values.items()}
        if fakes.logits is not None and is_wanted("quality/inception_score", wanted):
            values["quality/inception_score"] = distances.inception_score(fakes.logits)
    return values


def is_wanted(name: str, wanted: Collection[str] | None) -> bool:
    """Return whether a metric is wanted, by its own name or by its published one."""
    return wanted is None or name in wanted or PUBLISHED_NAMES.get(name) in wanted


def measurable(*, has_classes: bool, published: bool) -> list[str]:
    """Return the names of all metrics that features allow."""
    names = [name for group in GROUPS for name in group if has_classes or group != CLASS_METRICS]
    if not published:
        return names
    return [*(PUBLISHED_NAMES.get(name, name) for name in names), "quality/inception_score"]
