"""A set of images as the metrics see it, and the constants of the metrics."""

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from distgan.evaluation import distances, modes, neighbours
from distgan.evaluation.distances import Moments
from distgan.runtime.distributed import World


@dataclass(frozen=True)
class MetricSettings:
    """Constants of the metrics."""

    k_precision: int = 3  # neighbours for precision and recall
    k_coverage: int = 5  # neighbours for density, coverage and copies
    near_quantile: float = 0.01  # fraction of reals that count as duplicates and as copies
    confidence: float = 0.7  # posterior from which a class counts as certain
    missing_below: float = 0.1  # a class is missing below this fraction of the reals' share
    missing_pixels_below: float = 0.2  # likewise a kind of thumbnails, which poor fakes blur
    kernel_subsets: int = 10
    kernel_subset_size: int = 1000


DEFAULT_SETTINGS = MetricSettings()


class Sample:
    """A set of images: features [n, d], logits [n, C] or None, and what follows from them.

    `thumbnails` is the same set of images with their averaged pixels as features, and `detail` [n]
    says how sharp each image is. Signs of trouble in the features are confirmed by them; both are
    None for thumbnails themselves.
    """

    def __init__(
        self,
        features: Tensor,
        logits: Tensor | None,
        *,
        num_classes: int | None,
        world: World,
        settings: MetricSettings,
        thumbnails: "Sample | None" = None,
        detail: Tensor | None = None,
    ) -> None:
        self.features, self.logits, self.num_classes = features, logits, num_classes
        self.thumbnails, self.detail = thumbnails, detail
        self.world, self.settings = world, settings

    def __len__(self) -> int:
        return len(self.features)

    @cached_property
    def moments(self) -> Moments:
        return distances.moments(self.features, self.world)

    @cached_property
    def neighbours(self) -> Tensor:
        """Squared distances [n, k_coverage] to the nearest others."""
        k = max(self.settings.k_precision, self.settings.k_coverage)
        return neighbours.neighbour_distances(self.features, k, self.world)

    def radii(self, k: int) -> Tensor:
        """Return squared distances [n] to the k-th nearest other."""
        return self.neighbours[:, k - 1]

    @cached_property
    def class_counts(self) -> Tensor:
        """Numbers of images [C] by predicted class."""
        assert self.logits is not None and self.num_classes is not None
        return modes.class_histogram(self.logits.argmax(1).cpu(), self.num_classes)

    @cached_property
    def confident_counts(self) -> Tensor:
        """Numbers of images [C] by predicted class, of those classified with confidence."""
        assert self.logits is not None
        return modes.confident_counts(self.logits, confidence=self.settings.confidence)
