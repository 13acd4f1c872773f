"""The metrics of an evaluation, computed from the features of generated and real images."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from distgan.config.metrics import PUBLISHED_NAMES
from distgan.evaluation import distances, modes, neighbours
from distgan.evaluation.distances import Moments
from distgan.runtime.distributed import World


@dataclass(frozen=True)
class MetricSettings:
    """What the numbers depend on beside the images."""

    k_precision: int = 3  # neighbours for precision and recall
    k_coverage: int = 5  # neighbours for density, coverage and copies
    near_quantile: float = 0.01  # share of reals that count as duplicates and copies by definition
    confidence: float = 0.7  # posterior from which the classifier counts as sure
    missing_below: float = 0.1  # a class with less than this part of the reals' share is missing
    kernel_subsets: int = 50
    kernel_subset_size: int = 1000


DEFAULT_SETTINGS = MetricSettings()


class Sample:
    """Features [n, d] and, with a classifier, logits [n, C] of one set of images; what follows from them on demand."""

    def __init__(
        self,
        features: Tensor,
        logits: Tensor | None,
        *,
        num_classes: int | None,
        world: World,
        settings: MetricSettings,
    ) -> None:
        self.features, self.logits, self.num_classes = features, logits, num_classes
        self.world, self.settings = world, settings

    def __len__(self) -> int:
        return len(self.features)

    @cached_property
    def moments(self) -> Moments:
        """Mean and covariance."""
        return distances.moments(self.features, self.world)

    @cached_property
    def neighbours(self) -> Tensor:
        """Squared distances [n, k_coverage] to the nearest others."""
        k = max(self.settings.k_precision, self.settings.k_coverage)
        return neighbours.neighbour_distances(self.features, k, self.world)

    def radii(self, k: int) -> Tensor:
        """Squared distances [n] to the k-th nearest other."""
        return self.neighbours[:, k - 1]

    @cached_property
    def class_counts(self) -> Tensor:
        """Predicted classes, counted [C]."""
        assert self.logits is not None and self.num_classes is not None
        return modes.class_histogram(self.logits.argmax(1).cpu(), self.num_classes)

    @cached_property
    def class_shares(self) -> Tensor:
        """Shares [C] of the classes among the images that the classifier is sure of."""
        assert self.logits is not None
        return modes.confident_shares(self.logits, confidence=self.settings.confidence)


@dataclass(frozen=True)
class Reference:
    """The real images that samples are compared with: all that is measured of them once."""

    features: Tensor  # [m, d]
    neighbours: Tensor  # [m, k_coverage], squared distances to the nearest other reals
    moments: Moments
    sqrt: Tensor  # [d, d], square root of the covariance
    duplicate_threshold: (
        float  # squared distance below which a sample's nearest other makes it a duplicate
    )
    copy_threshold: float  # closeness to a real below which a sample is its copy
    class_shares: Tensor | None  # [C], among the reals that the classifier is sure of
    label_shares: (
        Tensor | None
    )  # [C], as the classifier names all of the reals, or as they are known
    shares_are_exact: bool  # whether label_shares are known

    def __len__(self) -> int:
        return len(self.features)

    def radii(self, k: int) -> Tensor:
        """Squared distances [m] to the k-th nearest other real."""
        return self.neighbours[:, k - 1]

    @classmethod
    def measure(
        cls, reals: Sample, others: Sample, *, known_shares: Tensor | None = None
    ) -> "Reference":
        """Measure `reals`; `others` are further reals, of which `near_quantile` shall count as copies."""
        settings = reals.settings
        closeness = neighbours.closeness_to_reals(
            others.features, reals.features, reals.radii(settings.k_coverage), reals.world
        )
        sure = counted = None
        if reals.num_classes is not None:
            sure, counted = reals.class_shares, reals.class_counts.double() / len(reals)
        return cls(
            reals.features,
            reals.neighbours,
            reals.moments,
            distances.matrix_sqrt(reals.moments.covariance),
            duplicate_threshold=float(reals.radii(1).quantile(settings.near_quantile)),
            copy_threshold=float(closeness.quantile(settings.near_quantile)),
            class_shares=sure,
            label_shares=counted if known_shares is None else known_shares,
            shares_are_exact=known_shares is not None,
        )


def frechet_values(fakes: Sample, reals: Reference) -> dict[str, float]:
    """quality/frechet."""
    return {
        "quality/frechet": distances.frechet_distance(
            fakes.moments, reals.moments, reals_sqrt=reals.sqrt
        )
    }


def kernel_values(fakes: Sample, reals: Reference) -> dict[str, float]:
    """quality/kernel and its error bar."""
    mean, spread = distances.kernel_distance(
        fakes.features,
        reals.features,
        fakes.world,
        num_subsets=fakes.settings.kernel_subsets,
        subset_size=fakes.settings.kernel_subset_size,
    )
    return {"quality/kernel": mean, "quality/kernel_spread": spread}


def fidelity_values(fakes: Sample, reals: Reference) -> dict[str, float]:
    """quality/precision, recall, density, coverage."""
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
    """diversity/spread and diversity/vendi, the latter around the reals' mean so that a common offset hides nothing."""
    ratio = fakes.moments.covariance.trace() / reals.moments.covariance.trace()
    centred = fakes.features - reals.moments.mean.to(fakes.features.dtype)
    return {
        "diversity/spread": float(ratio.sqrt()),
        "diversity/vendi": distances.vendi_score(centred, fakes.world),
    }


def duplicate_values(fakes: Sample, reals: Reference) -> dict[str, float]:
    """diversity/duplicates: the birthday test of Arora & Zhang 2017 (arXiv 1706.08224), a threshold for the human."""
    return {
        "diversity/duplicates": neighbours.share_below(fakes.radii(1), reals.duplicate_threshold)
    }


def copy_values(fakes: Sample, reals: Reference) -> dict[str, float]:
    """diversity/copies."""
    radii = reals.radii(fakes.settings.k_coverage)
    closeness = neighbours.closeness_to_reals(fakes.features, reals.features, radii, fakes.world)
    return {"diversity/copies": neighbours.share_below(closeness, reals.copy_threshold)}


def class_values(fakes: Sample, reals: Reference) -> dict[str, float]:
    """diversity/modes, effective_classes, missing_classes, reverse_kl and its floor."""
    if reals.class_shares is None or reals.label_shares is None:
        return {}
    counts, shares = fakes.class_counts, fakes.class_shares
    sets = (len(fakes),) if reals.shares_are_exact else (len(fakes), len(reals))
    return {
        "diversity/modes": modes.modes_captured(counts),
        "diversity/effective_classes": modes.effective_classes(shares),
        "diversity/missing_classes": len(
            modes.missing_classes(shares, reals.class_shares, below=fakes.settings.missing_below)
        ),
        "diversity/reverse_kl": modes.reverse_kl(counts, reals.label_shares),
        "diversity/reverse_kl_floor": modes.reverse_kl_floor(len(counts), *sets),
    }


Compute = Callable[[Sample, Reference], dict[str, float]]

GROUPS: dict[tuple[str, ...], Compute] = {
    ("quality/frechet",): frechet_values,
    ("quality/kernel", "quality/kernel_spread"): kernel_values,
    ("quality/precision", "quality/recall", "quality/density", "quality/coverage"): fidelity_values,
    ("diversity/spread", "diversity/vendi"): spread_values,
    ("diversity/duplicates",): duplicate_values,
    ("diversity/copies",): copy_values,
    (
        "diversity/modes",
        "diversity/effective_classes",
        "diversity/missing_classes",
        "diversity/reverse_kl",
        "diversity/reverse_kl_floor",
    ): class_values,
}


def compute(
    fakes: Sample,
    reals: Reference,
    *,
    wanted: Collection[str] | None = None,
    published: bool = False,
) -> dict[str, float]:
    """All metrics that the features allow, or the `wanted` ones; `published` features give them their published names."""
    values: dict[str, float] = {}
    for names, group in GROUPS.items():
        asked = (
            names
            if wanted is None
            else [n for n in names if n in wanted or PUBLISHED_NAMES.get(n) in wanted]
        )
        if asked:
            found = group(fakes, reals)
            values |= {name: found[name] for name in asked if name in found}
    if published:
        values = {PUBLISHED_NAMES.get(name, name): value for name, value in values.items()}
        if fakes.logits is not None and (wanted is None or "quality/inception_score" in wanted):
            values["quality/inception_score"] = distances.inception_score(fakes.logits)
    return values
