"""The verdict on one evaluation: a name, and the figures behind it.

From the worst to the best: diverged, complete collapse, partial collapse, memorising, unbalanced
(from training metrics: tracker.py), learning, healthy. `assess` compares the fakes with real images
and, during training, with the run's history. Losing what the run once had is a collapse at once;
lacking what it never had is one only when the run has stopped improving. Two measurements must
agree before images are called copies or near-duplicates: features, and pixels of thumbnails.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from distgan.config.monitoring import Thresholds
from distgan.evaluation.by_class import collapsed_classes
from distgan.evaluation.evaluate import Result
from distgan.evaluation.modes import FEWEST_EXPECTED

EXPLANATIONS = {
    "diverged": "A loss or a metric is no longer finite, so these weights cannot be used. "
    "Lower optim.lr_g and optim.lr_d, or train with collapse.action=rollback.",
    "complete collapse": "The generator makes only one image, or a few, and rarely recovers. "
    "If it was trained with a classic preset, train without one: that prevents most collapses. "
    "Otherwise try collapse.action=rollback; more in docs/remedies.md.",
    "partial collapse": "Some kinds of images are missing, however good the others look. "
    "If it was trained with a classic preset, train without one. "
    "Otherwise try loss.diversity.mode_seeking=5; more in docs/remedies.md.",
    "memorising": "Some generated images are copies of training images. "
    "Use more images, or augment them: \"loss.augment=['color','translation','cutout']\".",
    "unbalanced": "One network dominates, so the other one learns little from it. "
    "Change optim.lr_d or optim.lr_g; more in docs/reading-the-curves.md.",
    "learning": "No problem was found, but the generated images do not match the real ones yet. "
    "As long as they improve, train for longer: raise train.kimg.",
    "healthy": "No problem was found, and most kinds of real images are covered. "
    "The metrics and the samples show how good the images are.",
}
"""What each verdict means, and what to do about it; from the worst to the best."""

NAMES = tuple(EXPLANATIONS)
DEFAULT_THRESHOLDS = Thresholds()
BETTER = 0.98  # a distance counts as better than the best from this fraction of it on
BELOW_BEST = 0.95  # coverage below this fraction of the best is shown beside the best
RECALL_FALL = 0.8  # a fall of coverage is confirmed by recall below this fraction of its best


@dataclass(frozen=True)
class Verdict:
    """A name from NAMES, and the figures behind it."""

    name: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.name} ({self.detail})" if self.detail else self.name

    @property
    def explanation(self) -> str:
        """What the verdict means, and what to do about it."""
        return EXPLANATIONS[self.name]

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
        """Whether kinds of reals are missing, beyond what chance explains.

        Blurred fakes lack kinds, too, but their recall is low for all kinds.
        """
        name = "diversity/missing_kinds"
        missing = self.result.values.get(name, 0.0) - self.result.reals.get(name, 0.0)
        could_be_healthy = self.are_plausible and self.has_recall
        return could_be_healthy and missing > self.thresholds.missing_kinds

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


def assess(
    result: Result,
    thresholds: Thresholds = DEFAULT_THRESHOLDS,
    *,
    history: History | None = None,
    is_young: bool = False,
    was_improving: bool = False,
) -> Verdict:
    """Return the verdict on one evaluation.

    `history` is that of the run before it. Outside of a run it is None, and `was_improving` says
    whether the run was still getting better. `is_young` if it has not trained long enough for a
    verdict. The result must have VERDICT_METRICS.
    """
    if bad := infinite_values(result.values):
        return Verdict("diverged", f"{bad} not finite")
    seen = Evidence(result, thresholds, history, was_improving)
    if is_young:
        return Verdict("learning", f"too early to tell; {describe_coverage(seen)}")
    if seen.is_one_image or seen.is_one_mode:
        return Verdict("complete collapse", describe_complete(seen))
    if seen.collapsed_classes and len(seen.collapsed_classes) == len(result.by_class):
        return Verdict("complete collapse", "within each class the fakes hardly differ")
    never_had = seen.lacks_diversity and not seen.is_improving
    if seen.collapsed_classes or seen.lost_coverage or seen.lost_classes or never_had:
        return Verdict("partial collapse", describe_partial(seen))
    if seen.has_copies:
        return Verdict("memorising", describe_copies(seen))
    if not seen.are_plausible or seen.lacks_diversity or not seen.is_healthy:
        return Verdict("learning", describe_learning(seen))
    return Verdict("healthy", describe_coverage(seen))


def infinite_values(values: Mapping[str, float]) -> str:
    """Return the names of all values that are not finite, separated by commas."""
    return ", ".join(name for name, value in values.items() if not math.isfinite(value))


# ------------------------------------------------------------------------------------------ details


def describe_complete(seen: Evidence) -> str:
    if seen.is_one_image:
        spread, pixels = seen.value("diversity/spread"), seen.value("diversity/pixel_spread")
        return (
            f"features vary {spread:.2f} and pixels {pixels:.2f} times as much as those of reals; "
            f"{seen.value('diversity/pixel_duplicates'):.0%} of fakes have a near-duplicate"
        )
    classes, num_classes = seen.value("diversity/effective_classes"), len(seen.result.class_counts)
    return f"{classes:.1f} of {num_classes} classes in use; {describe_duplicates(seen)}"


def describe_partial(seen: Evidence) -> str:
    collapsed = seen.collapsed_classes
    reasons = [f"{list_classes(collapsed)}: fakes hardly differ"] if collapsed else []
    if seen.lacks_classes:
        reasons.append(f"{list_classes(seen.result.missing)} missing")
    if seen.lacks_kinds and not reasons:
        reasons.append(f"{seen.value('diversity/missing_kinds'):.0f} kinds of reals missing")
    reasons += [describe_duplicates(seen)] if seen.has_duplicates else []
    return "; ".join([*reasons, describe_coverage(seen)])


def describe_copies(seen: Evidence) -> str:
    copies = seen.value("diversity/confirmed_copies")
    return f"{copies:.0%} of fakes copy one of the {seen.result.protocol.num_reference} reals"


def describe_learning(seen: Evidence) -> str:
    missing, reasons = seen.result.missing, list[str]()
    if not (seen.are_plausible and seen.is_precise):
        reasons.append(beside_reals(seen, "precision"))
    if seen.are_plausible and missing:
        reasons.append(f"{list_classes(missing)} missing so far")
    reasons += [beside_reals(seen, "recall")] if seen.are_plausible and not seen.has_recall else []
    return "; ".join([*reasons, describe_coverage(seen)])


def beside_reals(seen: Evidence, name: str) -> str:
    value, usual = (each[f"quality/{name}"] for each in (seen.result.values, seen.result.reals))
    return f"{name} {value:.2f}, reals {usual:.2f}"


def describe_duplicates(seen: Evidence) -> str:
    return f"{seen.value('diversity/duplicates'):.0%} of fakes have a near-duplicate"


def describe_coverage(seen: Evidence) -> str:
    """Return the coverage, beside the run's best if it is lower, otherwise beside the reals'."""
    coverage, history = seen.value("quality/coverage"), seen.history
    if history is not None and coverage < BELOW_BEST * history.best_coverage:
        return f"coverage {coverage:.2f}, was {history.best_coverage:.2f}"
    return beside_reals(seen, "coverage")


def list_classes(names: Sequence[str], *, most: int = 4) -> str:
    """Return `class 3`, `classes 3 and 7`, or `classes 1, 2, 3, 4 and 6 more`."""
    if len(names) == 1:
        return f"class {names[0]}"
    if len(names) <= most:
        return f"classes {', '.join(names[:-1])} and {names[-1]}"
    return f"classes {', '.join(names[:most])} and {len(names) - most} more"
