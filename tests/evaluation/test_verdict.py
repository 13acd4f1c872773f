"""Verdicts name what a run shows at the right time, in spite of noise and a bad start."""

import json
import math
from collections.abc import Sequence

import torch

from distgan.evaluation.batch_diversity import BatchDiversity
from distgan.evaluation.evaluate import Result
from distgan.evaluation.metrics import MetricSettings
from distgan.evaluation.reference import Protocol
from distgan.evaluation.tracker import VerdictTracker
from distgan.evaluation.verdict import assess

PROTOCOL = Protocol(
    "probe", "abc", "none", (1, 8, 8), "digits", 1000, 1000, 1000, "disjoint", 0, MetricSettings()
)
REALS = {
    "quality/frechet": 0.1,
    "quality/precision": 0.85,
    "quality/coverage": 0.97,
    "diversity/spread": 1.0,
    "diversity/duplicates": 0.01,
    "diversity/copies": 0.01,
    "diversity/missing_classes": 0.0,
    "diversity/effective_classes": 10.0,
}
BALANCED = {"accuracy/d_real": 0.8, "accuracy/d_fake": 0.75, "loss/d": 1.0, "loss/g": 1.2}
D_WINS = BALANCED | {"accuracy/d_real": 1.0, "accuracy/d_fake": 0.995}


def result(
    frechet: float, coverage: float, *, missing: Sequence[str] = (), **more: float
) -> Result:
    found = REALS | {"quality/frechet": frechet, "quality/coverage": coverage}
    found |= {"diversity/missing_classes": float(len(missing)), "quality/precision": 0.7}
    found |= {
        ("quality/" if name == "precision" else "diversity/") + name: value
        for name, value in more.items()
    }
    return Result(
        found,
        REALS,
        PROTOCOL,
        tuple("0123456789"),
        (100,) * 10,
        (0.1,) * 10,
        (0.1,) * 10,
        tuple(missing),
    )


def healthy_run() -> VerdictTracker:
    """A run after five evaluations that got better and better."""
    tracker = VerdictTracker()
    tracker.add_evaluation(
        result(30, 0.0, missing=tuple("2345678"), precision=0.1, duplicates=0.9, spread=0.1)
    )
    tracker.add_evaluation(result(12, 0.10, missing=tuple("38"), precision=0.5))
    for frechet, coverage in ((6, 0.3), (3, 0.45), (2, 0.55)):
        tracker.add_evaluation(result(frechet, coverage))
    return tracker


def names(tracker: VerdictTracker, results: Sequence[Result]) -> list[str]:
    return [tracker.add_evaluation(each).name for each in results]


def test_a_run_that_learns_is_never_called_collapsed() -> None:
    tracker = VerdictTracker()
    found = names(
        tracker,
        [
            result(30, 0.0, missing=tuple("012345678"), precision=0.0, duplicates=1.0, spread=0.05),
            result(15, 0.02, missing=tuple("2345678"), precision=0.3, duplicates=0.2, spread=0.4),
            result(9, 0.1, missing=tuple("238"), precision=0.6),
            result(6, 0.2, missing=("8",), precision=0.7),
            result(4, 0.4),
        ],
    )
    assert found == ["learning"] * 4 + ["healthy"]


def test_a_run_that_never_leaves_one_image_is_a_complete_collapse() -> None:
    stuck = [
        result(30, 0.0, missing=tuple("012345678"), precision=0.0, duplicates=1.0, spread=0.05)
    ] * 3
    assert names(VerdictTracker(), stuck) == ["learning", "learning", "complete collapse"]


def test_a_fall_from_its_own_best_is_named_at_once_with_figures() -> None:
    tracker = healthy_run()
    found = tracker.add_evaluation(result(8, 0.21, missing=("3", "7")))
    assert str(found) == "partial collapse (classes 3 and 7 missing; coverage 0.21, was 0.55)"


def test_classes_that_are_lost_are_named_at_once() -> None:
    assert (
        healthy_run().add_evaluation(result(2.5, 0.45, missing=("3",))).name == "partial collapse"
    )


def test_classes_that_never_came_are_named_when_the_run_has_stopped_improving() -> None:
    tracker = VerdictTracker()
    never = result(5, 0.5, missing=("3",))
    assert names(tracker, [result(9, 0.4, missing=("3",)), never, never, never]) == [
        "learning"
    ] * 3 + ["partial collapse"]


def test_noise_does_not_cry_wolf() -> None:
    tracker = healthy_run()
    wobble = [0.55, 0.48, 0.52, 0.44, 0.57, 0.41, 0.5, 0.46, 0.55, 0.4]
    assert set(names(tracker, [result(2 + each, each) for each in wobble])) == {"healthy"}


def test_a_trouble_is_withdrawn_after_two_evaluations_without_it() -> None:
    tracker = healthy_run()
    found = names(
        tracker, [result(8, 0.2), result(3, 0.5), result(8, 0.2), result(3, 0.5), result(2, 0.55)]
    )
    assert found == ["partial collapse"] * 4 + ["healthy"]


def test_memorising_is_named() -> None:
    assert healthy_run().add_evaluation(result(1, 0.97, copies=0.2)).name == "memorising"


def test_a_winning_discriminator_is_named_when_samples_stop_improving() -> None:
    tracker = VerdictTracker()
    assert {tracker.add_report(D_WINS).name for _ in range(20)} == {"learning"}  # as all runs begin
    improves_then_stalls = [result(5, 0.3), result(5, 0.3), result(5, 0.3)]
    assert names(tracker, improves_then_stalls) == ["healthy", "healthy", "unbalanced"]
    assert "discriminator winning; discriminator right on 100% of reals" in str(tracker.verdict)
    assert [tracker.add_report(BALANCED).name for _ in range(5)][-1] == "healthy"


def test_a_winning_generator_is_named() -> None:
    tracker = VerdictTracker()
    for _ in range(5):
        tracker.add_report(BALANCED | {"accuracy/d_fake": 0.05})
    assert str(tracker.verdict).startswith("unbalanced (generator winning")


def test_equilibrium_is_balanced() -> None:
    tracker = VerdictTracker()
    for _ in range(20):
        tracker.add_report(BALANCED | {"accuracy/d_real": 0.5, "accuracy/d_fake": 0.5})
    assert not tracker.verdict.is_trouble


def test_one_report_out_of_balance_is_nothing() -> None:
    tracker = VerdictTracker()
    for turn in range(30):
        assert not tracker.add_report(D_WINS if turn % 4 == 0 else BALANCED).is_trouble


def test_what_is_not_finite_has_diverged_at_once() -> None:
    tracker = healthy_run()
    assert (
        str(tracker.add_report(BALANCED | {"loss/g": math.nan})) == "diverged (loss/g not finite)"
    )
    assert assess(result(math.inf, 0.5)).name == "diverged"


def test_an_overflowing_gradient_norm_alone_has_not() -> None:
    assert not VerdictTracker().add_report(BALANCED | {"grad_norm/d": math.inf}).is_trouble


def test_one_image_is_seen_between_evaluations_but_not_at_the_start() -> None:
    same = BALANCED | {"diversity/batch_ratio": 0.02, "diversity/batch_duplicates": 1.0}
    tracker = VerdictTracker()
    assert not any(tracker.add_report(same).is_trouble for _ in range(20))
    tracker.add_report(BALANCED | {"diversity/batch_ratio": 0.9, "diversity/batch_duplicates": 0.0})
    assert [tracker.add_report(same).name for _ in range(5)][-1] == "complete collapse"


def test_state_survives_json_and_rewinds() -> None:
    fresh = VerdictTracker()
    fresh.load_state_dict(json.loads(json.dumps(VerdictTracker().state_dict())))
    assert fresh == VerdictTracker()
    tracker = healthy_run()
    saved = json.dumps(tracker.state_dict())
    collapsed = result(8, 0.2)
    tracker.add_evaluation(collapsed)
    other = VerdictTracker()
    other.load_state_dict(json.loads(saved))
    assert other == healthy_run()
    assert other.verdict.name == "healthy"
    assert other.add_evaluation(collapsed) == tracker.verdict


def test_the_state_of_an_older_version_is_read() -> None:
    tracker = healthy_run()
    older = tracker.state_dict()
    older["past"] = older.pop("history")
    restored = VerdictTracker()
    restored.load_state_dict(json.loads(json.dumps(older)))
    assert restored == tracker


def test_batch_diversity_compares_with_reals() -> None:
    draw = torch.Generator().manual_seed(0)
    reals = torch.rand(128, 3, 32, 32, generator=draw) * 2 - 1
    diversity = BatchDiversity.of_reals(reals)
    alike = {name: float(value) for name, value in diversity.metrics(reals[64:]).items()}
    assert abs(alike["diversity/batch_ratio"] - 1) < 0.05
    assert alike["diversity/batch_duplicates"] < 0.1
    one = {
        name: float(value)
        for name, value in diversity.metrics(reals[:1].repeat(64, 1, 1, 1)).items()
    }
    assert one["diversity/batch_ratio"] < 0.01
    assert one["diversity/batch_duplicates"] == 1
