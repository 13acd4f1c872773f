"""The verdict: from cheap signals and evaluations to one name and one sentence with the figures behind it.

    every report --tick--+                                       worst first: diverged, complete collapse,
                         +--> VerdictTracker --> Verdict(name, detail)  partial collapse, memorising, unbalanced,
    every evaluation ----+                                       learning, healthy

`judge` looks at one evaluation alone. `VerdictTracker` adds the run's own past: what was once better and is lost is a collapse
at once; what was never there is one only when the run has stopped improving. A trouble named by an evaluation is
named at the first one that shows it and withdrawn after two that do not.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from distgan.config.schema import Thresholds
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


@dataclass(frozen=True)
class Verdict:
    """A name of NAMES, and the figures behind it."""

    name: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.name} ({self.detail})" if self.detail else self.name

    @property
    def is_trouble(self) -> bool:
        """Whether someone should look."""
        return self.name not in ("learning", "healthy")

    @property
    def is_collapse(self) -> bool:
        """Whether going on makes little sense."""
        return self.name in ("diverged", "complete collapse", "partial collapse")


DEFAULT_THRESHOLDS = Thresholds()


@dataclass
class Past:
    """What a run has shown in its evaluations so far."""

    evaluations: int = 0
    since_better: int = 0  # evaluations since the last best Frechet distance
    best_frechet: float = math.inf
    best_coverage: float = 0.0
    fewest_missing: float = math.inf  # classes, among evaluations with plausible fakes

    def since_better_with(self, values: Mapping[str, float]) -> int:
        """What `since_better` is once these values are counted; better means by two per cent."""
        frechet = values.get("quality/frechet", values.get("quality/fid", math.inf))
        return 0 if frechet < 0.98 * self.best_frechet else self.since_better + 1

    def add(self, result: Result, *, plausible_precision: float) -> None:
        """Count one more evaluation."""
        values = result.values
        self.evaluations += 1
        self.since_better = self.since_better_with(values)
        # min and max keep the old best where the new value is not a number.
        self.best_frechet = min(
            self.best_frechet, values.get("quality/frechet", values.get("quality/fid", math.inf))
        )
        self.best_coverage = max(self.best_coverage, values.get("quality/coverage", 0.0))
        precision, real_precision = (
            each.get("quality/precision", 1.0) for each in (values, result.reals)
        )
        if precision >= plausible_precision * real_precision:
            self.fewest_missing = min(
                self.fewest_missing, values.get("diversity/missing_classes", math.inf)
            )


def is_finite(values: Mapping[str, float]) -> bool:
    """Whether every number is one."""
    return all(math.isfinite(value) for value in values.values())


def listed(names: Sequence[str], *, most: int = 4) -> str:
    """`class 3`, `classes 3 and 7`, `classes 1, 2, 3, 4 and 6 more`."""
    if len(names) == 1:
        return f"class {names[0]}"
    if len(names) <= most:
        return f"classes {', '.join(names[:-1])} and {names[-1]}"
    return f"classes {', '.join(names[:most])} and {len(names) - most} more"


def judge(
    result: Result, thresholds: Thresholds = DEFAULT_THRESHOLDS, *, past: Past | None = None
) -> Verdict:
    """The verdict on one evaluation; `past` is that of the run before it, None where there is no run."""
    t, values, reals = thresholds, result.values, result.reals
    if not is_finite(values):
        bad = ", ".join(name for name, value in values.items() if not math.isfinite(value))
        return Verdict("diverged", f"{bad} not finite")

    def relative(name: str, *, missing: float) -> float:
        """A value over that of the reals; `missing` where it was not measured."""
        return values[name] / max(reals[name], 1e-12) if name in values else missing

    coverage = values.get("quality/coverage", math.nan)
    num_classes = len(result.class_counts)
    missing = values.get("diversity/missing_classes", 0.0)
    real_missing = reals.get("diversity/missing_classes", 0.0)
    duplicates = values.get("diversity/duplicates", 0.0)
    plausible = relative("quality/precision", missing=1.0) >= t.plausible_precision
    young = past is not None and past.evaluations < t.grace_evaluations
    improving = past is not None and past.since_better_with(values) < t.stall_evaluations

    many_duplicates = duplicates > max(t.duplicates, reals.get("diversity/duplicates", 0.0))
    one_image = many_duplicates and relative("diversity/spread", missing=1.0) < t.one_image_spread
    few = num_classes * t.few_classes
    one_mode = plausible and values.get("diversity/effective_classes", math.inf) <= few
    if (one_image or one_mode) and not young:
        detail = (
            f"features vary {values['diversity/spread']:.2f} as much as the reals'"
            if one_image
            else ""
        )
        detail = (
            detail or f"{values['diversity/effective_classes']:.1f} of {num_classes} classes in use"
        )
        return Verdict(
            "complete collapse", f"{detail}; {duplicates:.0%} of fakes have a near-duplicate"
        )

    coverage_text = f"coverage {coverage:.2f}, reals {reals.get('quality/coverage', math.nan):.2f}"
    fell = False
    if past is not None:
        settled = past.best_coverage >= t.settled_coverage * reals.get("quality/coverage", math.inf)
        fell = settled and coverage < t.coverage_fall * past.best_coverage
        if coverage < 0.95 * past.best_coverage:
            coverage_text = f"coverage {coverage:.2f}, was {past.best_coverage:.2f}"
    tolerated = real_missing + t.missing_classes * num_classes
    lacking = plausible and missing > tolerated
    lost = (
        past is not None
        and lacking
        and missing > past.fewest_missing + t.missing_classes * num_classes
    )
    narrow = plausible and relative("quality/coverage", missing=1.0) < t.low_coverage
    never_there = (lacking or narrow or many_duplicates) and not young and not improving
    if fell or lost or never_there:
        reasons = [f"{listed(result.missing)} missing"] if lacking else []
        reasons += [f"{duplicates:.0%} of fakes have a near-duplicate"] if many_duplicates else []
        return Verdict("partial collapse", "; ".join([*reasons, coverage_text]))

    copies, real_copies = values.get("diversity/copies", 0.0), reals.get("diversity/copies", 0.0)
    if plausible and copies > max(t.copies, 5 * real_copies):
        return Verdict(
            "memorising",
            f"{copies:.0%} of fakes copy one of the {result.protocol.num_reference} reals",
        )
    if not plausible or lacking or narrow or many_duplicates or one_image:
        lack = [f"{listed(result.missing)} missing so far"] if plausible and result.missing else []
        precision = f"precision {values.get('quality/precision', math.nan):.2f}, reals {reals.get('quality/precision', 0):.2f}"
        return Verdict(
            "learning", "; ".join([*lack, *([] if plausible else [precision]), coverage_text])
        )
    return Verdict("healthy", coverage_text if "quality/coverage" in values else "")


@dataclass
class Streak:
    """A signal with patience: on after so many reports in a row that show it, off after as many that do not."""

    on: bool = False
    contrary: int = 0

    def update(self, seen: bool, patience: int) -> bool:
        """Whether the signal counts, after one more report."""
        self.contrary = 0 if seen == self.on else self.contrary + 1
        if self.contrary >= patience:
            self.on, self.contrary = seen, 0
        return self.on


@dataclass
class VerdictTracker:
    """Watches one run. Its state is plain values and travels in checkpoints, so that a rollback rewinds it too."""

    thresholds: Thresholds = DEFAULT_THRESHOLDS
    past: Past = field(default_factory=Past)
    evaluated: Verdict = Verdict(
        "learning", "not evaluated yet"
    )  # the last evaluation's, until it is withdrawn
    quiet_evaluations: int = 0
    not_finite: str = ""
    was_diverse: bool = False
    discriminator_wins: Streak = field(default_factory=Streak)
    generator_wins: Streak = field(default_factory=Streak)
    one_image: Streak = field(default_factory=Streak)
    balance: str = ""  # the accuracies last seen

    @property
    def verdict(self) -> Verdict:
        """The worst of what reports and evaluations say."""
        found = [self.evaluated]
        if self.not_finite:
            found.append(Verdict("diverged", f"{self.not_finite} not finite"))
        if self.one_image.on:
            found.append(Verdict("complete collapse", "the images of a batch hardly differ"))
        evaluated, stalled = (
            self.past.evaluations > 0,
            self.past.since_better >= self.thresholds.stall_evaluations,
        )
        # A discriminator that wins at first, or while samples still get better, is how most healthy runs look.
        if self.discriminator_wins.on and evaluated and stalled:
            found.append(Verdict("unbalanced", f"discriminator winning; {self.balance}"))
        if self.generator_wins.on and (stalled or not evaluated):
            found.append(Verdict("unbalanced", f"generator winning; {self.balance}"))
        return min(found, key=lambda verdict: NAMES.index(verdict.name))

    def tick(self, signals: Mapping[str, float]) -> Verdict:
        """Take one report's means over all ranks, by metric name; names that are not there are not judged."""
        t = self.thresholds
        # Gradient norms may overflow under fp16 loss scaling, which skips such steps.
        bad = [
            n
            for n, value in signals.items()
            if n.startswith(("loss/", "logits/")) and not math.isfinite(value)
        ]
        self.not_finite = ", ".join(bad)
        if {"accuracy/d_real", "accuracy/d_fake"} <= signals.keys():
            real, fake = signals["accuracy/d_real"], signals["accuracy/d_fake"]
            self.balance = f"discriminator right on {real:.0%} of reals and {fake:.0%} of fakes"
            self.discriminator_wins.update(min(real, fake) > t.accuracy_high, t.patience_reports)
            lost = fake < t.fakes_accuracy_low or (real + fake) / 2 < t.accuracy_low
            self.generator_wins.update(lost, t.patience_reports)
        if "diversity/batch_ratio" in signals:
            ratio = signals["diversity/batch_ratio"]
            same = (
                ratio < t.batch_ratio
                and signals.get("diversity/batch_duplicates", 1.0) > t.duplicates
            )
            self.was_diverse |= ratio > 3 * t.batch_ratio
            # Every generator begins with nearly one grey image: only a way back there, or staying, is a collapse.
            armed = self.was_diverse or self.past.evaluations > t.grace_evaluations
            self.one_image.update(same and armed, t.patience_reports)
        return self.verdict

    def evaluate(self, result: Result) -> Verdict:
        """Take one evaluation."""
        t = self.thresholds
        found = judge(result, t, past=self.past)
        self.quiet_evaluations = 0 if found.is_trouble else self.quiet_evaluations + 1
        if (
            found.is_trouble
            or not self.evaluated.is_trouble
            or self.quiet_evaluations >= t.recovery_evaluations
        ):
            self.evaluated = found
        self.past.add(result, plausible_precision=t.plausible_precision)
        return self.verdict

    def forgive(self) -> None:
        """Give a run that was rolled back the time of a young one; its best coverage still counts against it."""
        self.past.evaluations, self.past.since_better, self.past.best_frechet = 0, 0, math.inf
        self.evaluated, self.quiet_evaluations, self.not_finite = (
            Verdict("learning", "rolled back"),
            0,
            "",
        )
        self.discriminator_wins, self.generator_wins, self.one_image = Streak(), Streak(), Streak()

    def state_dict(self) -> dict[str, Any]:
        """Everything but the thresholds, as plain values for JSON."""
        state = asdict(self)
        del state["thresholds"]
        for name, value in state["past"].items():
            state["past"][name] = (
                None if value == math.inf else value
            )  # which JSON has no number for
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        past: dict[str, Any] = {
            name: math.inf if value is None else value for name, value in state["past"].items()
        }
        rebuilt: dict[str, Any] = {
            "past": Past(**past),
            "evaluated": Verdict(**state["evaluated"]),
            "discriminator_wins": Streak(**state["discriminator_wins"]),
            "generator_wins": Streak(**state["generator_wins"]),
            "one_image": Streak(**state["one_image"]),
        }
        for each in fields(self):
            if each.name != "thresholds":
                setattr(self, each.name, rebuilt.get(each.name, state[each.name]))
