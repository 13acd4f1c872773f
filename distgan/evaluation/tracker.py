"""The verdict on a run in training, from every report of training metrics and every evaluation.

A problem that an evaluation shows is named at once and cleared after two evaluations without it. A
problem that training metrics show must persist for several reports.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from distgan.config.monitoring import Thresholds
from distgan.evaluation.evaluate import Result
from distgan.evaluation.evidence import Evidence, History
from distgan.evaluation.verdict import (
    DEFAULT_THRESHOLDS,
    NAMES,
    Verdict,
    assess,
    infinite_values,
)

NOT_EVALUATED = Verdict("learning", "not evaluated yet")


def young_images(thresholds: Thresholds, *, total_images: int, epoch_images: int) -> int:
    """Return during how many images a run is young, given its length and that of an epoch."""
    early = min(thresholds.young_epochs * epoch_images, 1000 * thresholds.young_kimg)
    return round(max(thresholds.young_fraction * total_images, early))


@dataclass
class Streak:
    """A yes-or-no signal that changes only after several reports in a row contradict it."""

    on: bool = False
    contrary: int = 0  # reports in a row that contradict `on`

    def update(self, is_seen: bool, patience: int) -> None:
        """Take one more report."""
        self.contrary = 0 if is_seen == self.on else self.contrary + 1
        if self.contrary >= patience:
            self.on, self.contrary = is_seen, 0


@dataclass
class VerdictTracker:
    """The verdict on one run. Checkpoints hold its state, so that a rollback restores it too."""

    thresholds: Thresholds = DEFAULT_THRESHOLDS
    young_images: int = 0  # images during which a run is young
    began_images: int = 0  # images seen at the start; a rollback moves it by the images it undid
    images_seen: int = 0
    history: History = field(default_factory=History)
    evaluated: Verdict = NOT_EVALUATED  # the verdict of evaluations alone
    quiet_evaluations: int = 0  # evaluations in a row without a problem
    not_finite: str = ""  # names of metrics in the last report
    was_diverse: bool = False  # whether batches of fakes ever differed clearly
    discriminator_wins: Streak = field(default_factory=Streak)
    generator_wins: Streak = field(default_factory=Streak)
    one_image: Streak = field(default_factory=Streak)
    balance: str = ""  # the discriminator's accuracies in the last report, in words

    @property
    def is_young(self) -> bool:
        """Whether the run has not trained long enough for a verdict."""
        few_images = self.images_seen < self.young_until
        return few_images or self.history.evaluations < self.thresholds.grace_evaluations

    @property
    def is_improving(self) -> bool:
        """Whether the run is not in trouble, and one of its last evaluations was better."""
        history = self.history
        has_stalled = history.since_better >= self.thresholds.stall_evaluations
        return history.evaluations > 0 and not has_stalled and not self.verdict.is_trouble

    @property
    def young_until(self) -> int:
        """Images seen from which on the run is no longer young."""
        return self.began_images + self.young_images

    @property
    def verdict(self) -> Verdict:
        """The worst of what reports and evaluations show; of a young run, whether it diverged."""
        found = [self.evaluated, *self.reported()]
        if self.is_young:
            found = [each for each in found if each.name in ("diverged", "learning")]
            found = found or [Verdict("learning", "too early to tell")]
        return min(found, key=lambda verdict: NAMES.index(verdict.name))

    def reported(self) -> list[Verdict]:
        """Return the problems that training metrics show."""
        found = []
        if self.not_finite:
            found.append(Verdict("diverged", f"{self.not_finite} not finite"))
        if self.one_image.on:
            found.append(Verdict("complete collapse", "the images of a batch hardly differ"))
        is_evaluated = self.history.evaluations > 0
        has_stalled = self.history.since_better >= self.thresholds.stall_evaluations
        # In most healthy runs the discriminator wins at first, or while samples still get better.
        if self.discriminator_wins.on and is_evaluated and has_stalled:
            found.append(Verdict("unbalanced", f"discriminator winning; {self.balance}"))
        if self.generator_wins.on and (has_stalled or not is_evaluated):
            found.append(Verdict("unbalanced", f"generator winning; {self.balance}"))
        return found

    def add_report(self, metrics: Mapping[str, float], *, images_seen: int) -> Verdict:
        """Take the training metrics of one report, means over all ranks; returns the verdict."""
        self.images_seen = images_seen
        # Gradient norms may overflow with fp16 loss scaling, which then skips the step.
        essential = {n: x for n, x in metrics.items() if n.startswith(("loss/", "logits/"))}
        self.not_finite = infinite_values(essential)
        if {"accuracy/d_real", "accuracy/d_fake"} <= metrics.keys():
            self.add_accuracies(metrics["accuracy/d_real"], metrics["accuracy/d_fake"])
        if {"diversity/batch_ratio", "diversity/batch_duplicates"} <= metrics.keys():
            self.add_diversity(
                metrics["diversity/batch_ratio"], metrics["diversity/batch_duplicates"]
            )
        return self.verdict

    def add_accuracies(self, on_reals: float, on_fakes: float) -> None:
        """Take the discriminator's accuracies of one report."""
        t = self.thresholds
        self.balance = f"discriminator right on {on_reals:.0%} of reals and {on_fakes:.0%} of fakes"
        won = min(on_reals, on_fakes) > t.accuracy_high
        lost = on_fakes < t.fakes_accuracy_low or (on_reals + on_fakes) / 2 < t.accuracy_low
        self.discriminator_wins.update(won, t.patience_reports)
        self.generator_wins.update(lost, t.patience_reports)

    def add_diversity(self, ratio: float, duplicates: float) -> None:
        """Take the diversity of a batch of fakes, relative to reals, and its near-duplicates."""
        t = self.thresholds
        self.was_diverse |= ratio > 3 * t.batch_ratio
        # Every generator begins with almost one grey image. Only a return there, or never leaving
        # it, is a collapse.
        can_collapse = self.was_diverse or not self.is_young
        is_one_image = ratio < t.batch_ratio and duplicates > t.duplicates
        self.one_image.update(is_one_image and can_collapse, t.patience_reports)

    def add_evaluation(self, result: Result, *, images_seen: int) -> Verdict:
        """Take one evaluation; returns the verdict."""
        self.images_seen = images_seen
        found = assess(result, self.thresholds, history=self.history, is_young=self.is_young)
        self.quiet_evaluations = 0 if found.is_trouble else self.quiet_evaluations + 1
        has_recovered = self.quiet_evaluations >= self.thresholds.recovery_evaluations
        if found.is_trouble or has_recovered or not self.evaluated.is_trouble:
            self.evaluated = found
        are_plausible = Evidence(result, self.thresholds).are_plausible
        self.history.add(result, are_plausible=are_plausible)
        return self.verdict

    def restart(self, *, images_seen: int) -> None:
        """Continue from a restored checkpoint, with fewer evaluations to compare with.

        The networks are as old as they were at the checkpoint, so only what it lacked of its youth
        is left. One that was no longer young must not lose what it had.
        """
        age = self.images_seen - self.began_images
        self.images_seen, self.began_images = images_seen, images_seen - age
        self.history.evaluations, self.history.since_better = 0, 0
        self.history.best_frechet = math.inf
        self.evaluated, self.quiet_evaluations = Verdict("learning", "rolled back"), 0
        self.not_finite = ""
        self.discriminator_wins, self.generator_wins, self.one_image = Streak(), Streak(), Streak()

    def forget_evaluations(self) -> None:
        """Compare with no earlier evaluation, because those were measured in another way."""
        self.history = History()
        self.evaluated, self.quiet_evaluations = Verdict("learning", "measured in a new way"), 0

    def state_dict(self) -> dict[str, Any]:
        """Return everything but the thresholds and their images, as plain values for JSON."""
        state = asdict(self)
        del state["thresholds"], state["young_images"]
        for name, value in state["history"].items():
            state["history"][name] = None if value == math.inf else value  # JSON has no infinity
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned; older versions called the history `past`."""
        values = dict(state)
        saved = values.pop("history", None) or values.pop("past")
        numbers: dict[str, Any] = {
            name: math.inf if value is None else value for name, value in saved.items()
        }
        values |= {"history": History(**numbers), "evaluated": Verdict(**state["evaluated"])}
        for name in ("discriminator_wins", "generator_wins", "one_image"):
            values[name] = Streak(**state[name])
        for each in fields(self):
            if each.name in values:
                setattr(self, each.name, values[each.name])
