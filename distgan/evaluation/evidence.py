"""What one evaluation shows, beside real images and beside the run's earlier evaluations."""

import math
from dataclasses import dataclass

from distgan.config.monitoring import Thresholds
from distgan.evaluation.by_class import collapsed_classes
from distgan.evaluation.evaluate import Result
from distgan.evaluation.modes import FEWEST_EXPECTED

BETTER = 0.98  # a distance counts as better than the best from this fraction of it on
FULL_VARIETY = 0.9  # from these fractions of the reals' coverage and recall on no kind is missing
RECALL_FALL = 0.8  # a fall of coverage is confirmed by recall below this fraction of its best


@dataclass
class History:
    """The best values of a run's evaluations so far."""

    evaluations: int = 0
    since_better: int = 0  # evaluations since the last new best Frechet distance
    best_frechet: float = math.inf
    best_coverage: float = 0.0
    best_recall: float = 0.0
    fewest_missing: float = math.inf  # classes, among the evaluations with plausible fakes

    def since_better_with(self, result: Result) -> int:
        """Return what `since_better` becomes with one more evaluation."""
        return 0 if result.frechet < BETTER * self.best_frechet else self.since_better + 1

    def add(self, result: Result, *, are_plausible: bool) -> None:
        """Take one more evaluation. Values that are not finite are ignored."""
        self.evaluations += 1
        self.since_better = self.since_better_with(result)
        # min and max keep their first argument if the second is not a number.
        self.best_frechet = min(self.best_frechet, result.frechet)
        self.best_coverage = max(self.best_coverage, result.values["quality/coverage"])
        self.best_recall = max(self.best_recall, result.values["quality/recall"])
        if are_plausible:
            missing = result.values.get("diversity/missing_classes", math.inf)
            self.fewest_missing = min(self.fewest_missing, missing + result.num_uncounted)


@dataclass(frozen=True)
class Evidence:
    """What one evaluation shows; for `history` and `was_improving` see `assess`."""

    result: Result
    thresholds: Thresholds
    history: History | None = None
    was_improving: bool = False

    def value(self, name: str) -> float:
        return self.result.values[name]

    def relative(self, name: str) -> float:
        """Return a value over that of real images."""
        return self.result.values[name] / max(self.result.reals[name], 1e-12)

    @property
    def is_improving(self) -> bool:
        """Whether the run has got better recently."""
        history, patience = self.history, self.thresholds.stall_evaluations
        return history.since_better_with(self.result) < patience if history else self.was_improving

    # ------------------------------------------------------------------------------------ quality

    @property
    def are_plausible(self) -> bool:
        """Whether the fakes look real enough for their kinds to be counted."""
        is_precise = self.relative("quality/precision") >= self.thresholds.plausible_precision
        return is_precise and not self.are_blurred

    @property
    def are_blurred(self) -> bool:
        """Whether the fakes lack the detail of reals: features find such images alike and real."""
        return self.relative("quality/detail") < self.thresholds.detail

    @property
    def is_healthy(self) -> bool:
        """Whether the fakes are as precise and as varied as a healthy generator's."""
        enough_coverage = self.relative("quality/coverage") >= self.thresholds.healthy_coverage
        return enough_coverage and self.has_recall and self.is_precise

    @property
    def is_precise(self) -> bool:
        return self.relative("quality/precision") >= self.thresholds.healthy_precision

    @property
    def has_recall(self) -> bool:
        return self.relative("quality/recall") >= self.thresholds.healthy_recall

    @property
    def has_low_coverage(self) -> bool:
        is_low = self.relative("quality/coverage") < self.thresholds.low_coverage
        return self.are_plausible and is_low and not self.has_recall

    @property
    def lost_coverage(self) -> bool:
        """Whether coverage has fallen far below the run's best, once that was worth something."""
        if self.history is None:
            return False
        t, best = self.thresholds, self.history.best_coverage
        was_settled = best >= t.settled_coverage * self.result.reals["quality/coverage"]
        has_fallen = self.value("quality/coverage") < t.coverage_fall * best
        recall, best_recall = self.value("quality/recall"), self.history.best_recall
        is_confirmed = recall < RECALL_FALL * best_recall or best_recall == 0
        return was_settled and has_fallen and is_confirmed

    # ---------------------------------------------------------------------------------- diversity

    @property
    def has_duplicates(self) -> bool:
        """Whether most fakes have a near-duplicate, in features and in pixels."""
        names = ("diversity/duplicates", "diversity/pixel_duplicates")
        return not self.are_blurred and all(
            self.exceeds(name, self.thresholds.duplicates) for name in names
        )

    @property
    def is_one_image(self) -> bool:
        """Whether the fakes hardly differ from one another, in features and in pixels."""
        t = self.thresholds
        return (
            self.relative("diversity/spread") < t.one_image_spread
            and self.relative("diversity/pixel_spread") < t.one_image_pixel_spread
            and self.exceeds("diversity/pixel_duplicates", t.duplicates)
        )

    def exceeds(self, name: str, limit: float) -> bool:
        """Return whether a value is above a limit and above that of real images."""
        return self.value(name) > max(limit, self.result.reals[name])

    @property
    def is_one_mode(self) -> bool:
        """Whether the fakes use one or a few of very many classes, and the reals many more."""
        few = len(self.result.class_counts) * self.thresholds.few_classes
        # A few confident fakes use few classes by chance.
        enough = bool(few) and self.result.confident_fakes >= FEWEST_EXPECTED * few
        used = "diversity/effective_classes"
        uses_few = enough and self.value(used) <= few and self.relative(used) < 0.5
        return uses_few and self.are_plausible

    @property
    def lacks_classes(self) -> bool:
        """Whether too many classes are missing."""
        return self.are_plausible and self.misses_more_than(
            self.result.reals.get("diversity/missing_classes", 0.0)
        )

    @property
    def lost_classes(self) -> bool:
        """Whether classes are missing that the run once had."""
        had_more = self.history is not None and self.misses_more_than(self.history.fewest_missing)
        return had_more and self.lacks_classes

    @property
    def lacks_kinds(self) -> bool:
        """Whether kinds of reals are missing, beyond what chance explains."""
        return bool(self.missing_kinds)

    @property
    def missing_kinds(self) -> float:
        """The number of kinds of reals that are missing, in features or in pixels; 0 by chance.

        Poor fakes lack kinds in features, too, but then their recall is low for all kinds. In the
        pixels of thumbnails they have all kinds as soon as they resemble the reals at all; that
        some are missing there is confirmed by coverage or recall in features.
        """
        t, found = self.thresholds, 0.0
        if self.are_plausible and self.has_recall:
            found = self.beyond_reals("diversity/missing_kinds", t.missing_kinds)
        is_recognisable = self.relative("quality/precision") >= t.recognisable_precision
        varieties = self.relative("quality/coverage"), self.relative("quality/recall")
        if is_recognisable and not self.are_blurred and min(varieties) < FULL_VARIETY:
            pixels = self.beyond_reals("diversity/missing_pixel_kinds", t.missing_pixel_kinds)
            found = max(found, pixels)
        return found

    def beyond_reals(self, name: str, limit: float) -> float:
        """Return a value, or 0 if it is at most `limit` above that of real images, or unknown."""
        value = self.result.values.get(name, 0.0)
        return value if value - self.result.reals.get(name, 0.0) > limit else 0.0

    def misses_more_than(self, usual: float) -> bool:
        tolerance = self.thresholds.missing_classes * len(self.result.class_counts)
        return self.result.values.get("diversity/missing_classes", 0.0) > usual + tolerance

    @property
    def collapsed_classes(self) -> list[str]:
        """Names of the classes asked for whose fakes hardly differ, though they are not blurred."""
        scores = () if self.are_blurred else self.result.by_class
        return collapsed_classes(scores, self.thresholds)

    @property
    def lacks_diversity(self) -> bool:
        lacks_some = self.lacks_classes or self.lacks_kinds
        return lacks_some or self.has_low_coverage or self.has_duplicates

    @property
    def has_copies(self) -> bool:
        """Whether many fakes are copies of training images, in features and in pixels."""
        name = "diversity/confirmed_copies"
        limit = max(self.thresholds.copies, 5 * self.result.reals[name])
        return self.are_plausible and self.value(name) > limit
