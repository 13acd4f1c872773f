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
from distgan.evaluation.evaluate import Result
from distgan.evaluation.evidence import Evidence, History

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
BELOW_BEST = 0.95  # coverage below this fraction of the best is shown beside the best


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
        reasons.append(f"{seen.missing_kinds:.0f} kinds of reals missing")
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
    elif seen.lacks_kinds:
        reasons.append(f"{seen.missing_kinds:.0f} kinds of reals missing so far")
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
