"""The verdict on one evaluation: a name, and the figures behind it.

From the worst to the best: diverged, complete collapse, partial collapse, memorising, unbalanced,
learning, healthy. `assess` compares the fakes with real images and, during training, with the run's
history. Losing what the run once had is a collapse at once; lacking what it never had is one only
when the run has stopped improving. `unbalanced` comes from training metrics: see tracker.py.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from distgan.config.monitoring import Thresholds
from distgan.evaluation.evaluate import Result

NAMES = (
    "diverged",
    "complete collapse",
    "partial collapse",
    "memorising",
    "unbalanced",
    "learning",
    "healthy",
)
DEFAULT_THRESHOLDS = Thresholds()
BETTER = 0.98  # a distance counts as better than the best from this fraction of it on
BELOW_BEST = 0.95  # coverage below this fraction of the best is shown beside the best


@dataclass(frozen=True)
class Verdict:
    """A name from NAMES, and the figures behind it."""

    name: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.name} ({self.detail})" if self.detail else self.name

    @property
    def is_trouble(self) -> bool:
        """Whether the user should look at the run."""
        return self.name not in ("learning", "healthy")

    @property
    def is_collapse(self) -> bool:
        """Whether training on makes little sense."""
        return self.name in ("diverged", "complete collapse", "partial collapse")


@dataclass
class History:
    """The best values of a run's evaluations so far."""

    evaluations: int = 0
    since_better: int = 0  # evaluations since the last new best Frechet distance
    best_frechet: float = math.inf
    best_coverage: float = 0.0
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
        if are_plausible:
            missing = result.values.get("diversity/missing_classes", math.inf)
            self.fewest_missing = min(self.fewest_missing, missing)


@dataclass(frozen=True)
class Evidence:
    """What one evaluation shows; `history` is that of the run before it, None outside of a run."""

    result: Result
    thresholds: Thresholds
    history: History | None = None

    def value(self, name: str) -> float:
        return self.result.values[name]

    def relative(self, name: str) -> float:
        """Return a value over that of real images."""
        return self.result.values[name] / max(self.result.reals[name], 1e-12)

    # --------------------------------------------------------------------------------------- time

    @property
    def is_young(self) -> bool:
        """Whether the run is too young to be called collapsed."""
        history = self.history
        return history is not None and history.evaluations < self.thresholds.grace_evaluations

    @property
    def is_improving(self) -> bool:
        """Whether the run has got better recently."""
        history, patience = self.history, self.thresholds.stall_evaluations
        return history is not None and history.since_better_with(self.result) < patience

    # ------------------------------------------------------------------------------------ quality

    @property
    def are_plausible(self) -> bool:
        """Whether the fakes look real enough for their kinds to be counted."""
        return self.relative("quality/precision") >= self.thresholds.plausible_precision

    @property
    def has_low_coverage(self) -> bool:
        return (
            self.are_plausible and self.relative("quality/coverage") < self.thresholds.low_coverage
        )

    @property
    def lost_coverage(self) -> bool:
        """Whether coverage has fallen far below the run's best, once that was worth something."""
        if self.history is None:
            return False
        t, best = self.thresholds, self.history.best_coverage
        was_settled = best >= t.settled_coverage * self.result.reals["quality/coverage"]
        return was_settled and self.value("quality/coverage") < t.coverage_fall * best

    # ---------------------------------------------------------------------------------- diversity

    @property
    def has_duplicates(self) -> bool:
        """Whether most fakes have a near-duplicate."""
        usual = self.result.reals["diversity/duplicates"]
        return self.value("diversity/duplicates") > max(self.thresholds.duplicates, usual)

    @property
    def is_one_image(self) -> bool:
        """Whether the fakes hardly differ from one another."""
        spread = self.relative("diversity/spread")
        return self.has_duplicates and spread < self.thresholds.one_image_spread

    @property
    def is_one_mode(self) -> bool:
        """Whether the fakes use only one or a few of very many classes."""
        if not self.result.class_counts:
            return False
        few = len(self.result.class_counts) * self.thresholds.few_classes
        return self.are_plausible and self.value("diversity/effective_classes") <= few

    @property
    def lacks_classes(self) -> bool:
        """Whether too many classes are missing."""
        return self.are_plausible and self.misses_more_than(
            self.result.reals.get("diversity/missing_classes", 0.0)
        )

    @property
    def lost_classes(self) -> bool:
        """Whether classes are missing that the run once had."""
        return (
            self.history is not None
            and self.lacks_classes
            and self.misses_more_than(self.history.fewest_missing)
        )

    def misses_more_than(self, usual: float) -> bool:
        tolerance = self.thresholds.missing_classes * len(self.result.class_counts)
        return self.result.values.get("diversity/missing_classes", 0.0) > usual + tolerance

    @property
    def lacks_diversity(self) -> bool:
        return self.lacks_classes or self.has_low_coverage or self.has_duplicates

    @property
    def has_copies(self) -> bool:
        """Whether many fakes are copies of training images."""
        usual = 5 * self.result.reals["diversity/copies"]
        return self.are_plausible and self.value("diversity/copies") > max(
            self.thresholds.copies, usual
        )


def assess(
    result: Result, thresholds: Thresholds = DEFAULT_THRESHOLDS, *, history: History | None = None
) -> Verdict:
    """Return the verdict on one evaluation.

    `history` is that of the run before it, None outside of a run. The result must have all metrics
    that the verdict rests on.
    """
    if bad := infinite_values(result.values):
        return Verdict("diverged", f"{bad} not finite")
    seen = Evidence(result, thresholds, history)
    if (seen.is_one_image or seen.is_one_mode) and not seen.is_young:
        return Verdict("complete collapse", describe_complete(seen))
    has_settled = not seen.is_young and not seen.is_improving
    if seen.lost_coverage or seen.lost_classes or (seen.lacks_diversity and has_settled):
        return Verdict("partial collapse", describe_partial(seen))
    if seen.has_copies:
        return Verdict("memorising", describe_copies(seen))
    if not seen.are_plausible or seen.lacks_diversity:
        return Verdict("learning", describe_learning(seen))
    return Verdict("healthy", describe_coverage(seen))


def infinite_values(values: Mapping[str, float]) -> str:
    """Return the names of all values that are not finite, separated by commas."""
    return ", ".join(name for name, value in values.items() if not math.isfinite(value))


# ------------------------------------------------------------------------------------------ details


def describe_complete(seen: Evidence) -> str:
    duplicates = describe_duplicates(seen)
    if seen.is_one_image:
        spread = seen.value("diversity/spread")
        return f"features vary {spread:.2f} times as much as those of real images; {duplicates}"
    classes, num_classes = seen.value("diversity/effective_classes"), len(seen.result.class_counts)
    return f"{classes:.1f} of {num_classes} classes in use; {duplicates}"


def describe_partial(seen: Evidence) -> str:
    reasons = [f"{list_classes(seen.result.missing)} missing"] if seen.lacks_classes else []
    reasons += [describe_duplicates(seen)] if seen.has_duplicates else []
    return "; ".join([*reasons, describe_coverage(seen)])


def describe_copies(seen: Evidence) -> str:
    copies, num_reference = seen.value("diversity/copies"), seen.result.protocol.num_reference
    return f"{copies:.0%} of fakes copy one of the {num_reference} reals"


def describe_learning(seen: Evidence) -> str:
    if not seen.are_plausible:
        precision, usual = (
            each["quality/precision"] for each in (seen.result.values, seen.result.reals)
        )
        return f"precision {precision:.2f}, reals {usual:.2f}; {describe_coverage(seen)}"
    missing = seen.result.missing
    reasons = [f"{list_classes(missing)} missing so far"] if missing else []
    return "; ".join([*reasons, describe_coverage(seen)])


def describe_duplicates(seen: Evidence) -> str:
    return f"{seen.value('diversity/duplicates'):.0%} of fakes have a near-duplicate"


def describe_coverage(seen: Evidence) -> str:
    """Return the coverage, beside the run's best if it is lower, otherwise beside the reals'."""
    coverage, history = seen.value("quality/coverage"), seen.history
    if history is not None and coverage < BELOW_BEST * history.best_coverage:
        return f"coverage {coverage:.2f}, was {history.best_coverage:.2f}"
    return f"coverage {coverage:.2f}, reals {seen.result.reals['quality/coverage']:.2f}"


def list_classes(names: Sequence[str], *, most: int = 4) -> str:
    """Return `class 3`, `classes 3 and 7`, or `classes 1, 2, 3, 4 and 6 more`."""
    if len(names) == 1:
        return f"class {names[0]}"
    if len(names) <= most:
        return f"classes {', '.join(names[:-1])} and {names[-1]}"
    return f"classes {', '.join(names[:most])} and {len(names) - most} more"
