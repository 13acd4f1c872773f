"""Verdicts name what a run shows at the right time, in spite of noise and a bad start."""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace

import pytest

from distgan.config.flat import flat_values
from distgan.config.schema import Config, Thresholds
from distgan.evaluation.evaluate import Result
from distgan.evaluation.reference import Protocol
from distgan.evaluation.sample import MetricSettings
from distgan.evaluation.tracker import VerdictTracker, young_images
from distgan.evaluation.verdict import EXPLANATIONS, Verdict, assess

PROTOCOL = Protocol(
    "probe", "abc", "none", (1, 8, 8), "digits", 1000, 1000, 1000, "disjoint", 0, MetricSettings()
)
REALS = {
    "quality/frechet": 0.1,
    "quality/precision": 0.85,
    "quality/recall": 0.8,
    "quality/coverage": 0.97,
    "quality/detail": 1.0,
    "diversity/spread": 1.0,
    "diversity/duplicates": 0.01,
    "diversity/confirmed_copies": 0.01,
    "diversity/pixel_spread": 1.0,
    "diversity/pixel_duplicates": 0.01,
    "diversity/missing_kinds": 0.0,
    "diversity/missing_classes": 0.0,
    "diversity/effective_classes": 10.0,
}
BALANCED = {"accuracy/d_real": 0.8, "accuracy/d_fake": 0.75, "loss/d": 1.0, "loss/g": 1.2}
D_WINS = BALANCED | {"accuracy/d_real": 1.0, "accuracy/d_fake": 0.995}
EVERY = 1000  # images between evaluations
QUALITY = ("precision", "recall", "detail")


def result(
    frechet: float, coverage: float, *, missing: Sequence[str] = (), **more: float
) -> Result:
    """Return an evaluation. Unless given, recall follows coverage, and pixels follow features."""
    values = REALS | {
        "quality/frechet": frechet,
        "quality/coverage": coverage,
        "quality/recall": 0.8 * coverage,
        "quality/precision": 0.7,
        "diversity/missing_classes": float(len(missing)),
    }
    follow = {f"pixel_{name}": more[name] for name in ("spread", "duplicates") if name in more}
    for name, value in (follow | more).items():
        values[("quality/" if name in QUALITY else "diversity/") + name] = value
    classes = (tuple("0123456789"), (100,) * 10, (0.1,) * 10, (0.1,) * 10)
    return Result(values, REALS, PROTOCOL, *classes, tuple(missing))


def with_classes(each: Result, num: int) -> Result:
    """Return an evaluation with other classes, in equal use among 10 fakes of each."""
    even = (1 / num,) * num
    return replace(each, class_counts=(10,) * num, class_shares=even, real_class_shares=even)


GREY = result(30, 0.0, missing=tuple("012345678"), precision=0.0, duplicates=1.0, spread=0.05)


def evaluate(tracker: VerdictTracker, *results: Result) -> list[str]:
    """Return the names of the verdicts after each evaluation."""
    return [add(tracker, each).name for each in results]


def add(tracker: VerdictTracker, each: Result) -> Verdict:
    images_seen = (tracker.history.evaluations + 1) * EVERY
    return tracker.add_evaluation(each, images_seen=images_seen)


def report(tracker: VerdictTracker, metrics: dict[str, float], *, times: int = 1) -> list[str]:
    """Return the names of the verdicts after each of some equal reports."""
    images_seen = tracker.images_seen
    return [tracker.add_report(metrics, images_seen=images_seen).name for _ in range(times)]


def healthy_run() -> VerdictTracker:
    """Return a run after five evaluations that improved steadily."""
    tracker = VerdictTracker(young_images=2 * EVERY)
    evaluate(tracker, GREY, result(12, 0.10, missing=tuple("38"), precision=0.5))
    evaluate(tracker, *(result(frechet, c) for frechet, c in ((6, 0.4), (3, 0.7), (2, 0.8))))
    return tracker


def test_a_run_that_learns_is_never_called_collapsed() -> None:
    found = evaluate(
        VerdictTracker(young_images=2 * EVERY),
        GREY,
        result(15, 0.02, missing=tuple("2345678"), precision=0.3, duplicates=0.2, spread=0.4),
        result(9, 0.1, missing=tuple("238"), precision=0.6),
        result(6, 0.2, missing=("8",), precision=0.7),
        result(4, 0.6),
    )
    assert found == ["learning"] * 4 + ["healthy"]


@pytest.mark.parametrize(
    "early",
    [
        GREY,
        result(9, 0.9),
        result(9, 0.9, confirmed_copies=1.0),
        result(9, 0.3, missing=("3",), duplicates=0.9),
    ],
)
def test_a_young_run_is_learning_whatever_it_shows(early: Result) -> None:
    tracker = VerdictTracker(young_images=9 * EVERY)
    report(tracker, D_WINS, times=20)
    assert set(evaluate(tracker, *[early] * 8)) == {"learning"}
    assert str(tracker.verdict).startswith("learning (too early to tell; coverage")


def test_a_young_run_may_diverge() -> None:
    tracker = VerdictTracker(young_images=9 * EVERY)
    assert report(tracker, BALANCED | {"loss/g": math.nan}) == ["diverged"]
    assert evaluate(VerdictTracker(young_images=9 * EVERY), result(math.inf, 0.5)) == ["diverged"]


def test_youth_is_counted_in_images_of_the_run_and_of_the_dataset() -> None:
    def young(total_kimg: float, epoch_images: int) -> int:
        return young_images(
            Thresholds(), total_images=round(1000 * total_kimg), epoch_images=epoch_images
        )

    assert young(1000, 50_000) == 200_000  # a fifth of a long run
    assert young(20, 1_797) == 8_985  # five epochs of a small dataset
    assert young(8, 6_000) == 20_000  # a run this short is young to its end


def test_a_run_that_never_leaves_one_image_is_a_complete_collapse() -> None:
    found = evaluate(VerdictTracker(young_images=3 * EVERY), GREY, GREY, GREY)
    assert found == ["learning", "learning", "complete collapse"]


def test_a_fall_from_its_own_best_is_named_at_once_with_figures() -> None:
    found = add(healthy_run(), result(8, 0.21, missing=("3", "7")))
    assert str(found) == "partial collapse (classes 3 and 7 missing; coverage 0.21, was 0.80)"


def test_a_fall_of_coverage_that_recall_does_not_confirm_is_no_collapse() -> None:
    assert evaluate(healthy_run(), result(8, 0.4, recall=0.64)) == ["learning"]


def test_classes_that_are_lost_are_named_at_once() -> None:
    assert evaluate(healthy_run(), result(2.5, 0.7, missing=("3",))) == ["partial collapse"]


def test_classes_that_never_came_are_named_when_the_run_has_stopped_improving() -> None:
    never = result(5, 0.6, missing=("3",))
    found = evaluate(VerdictTracker(), result(9, 0.5, missing=("3",)), never, never, never)
    assert found == ["learning"] * 3 + ["partial collapse"]


def test_few_confident_fakes_are_no_collapse_to_few_classes() -> None:
    """Of 200 classes one confident fake uses one; if a thousand do, the reals must use more."""
    one = with_classes(result(2, 0.7, effective_classes=1.0), 200)
    for num, used, collapsed in ((0, 9, False), (1, 9, False), (1000, 9, True), (1000, 1.5, False)):
        reals = one.reals | {"diversity/effective_classes": used}
        assert assess(replace(one, num_confident=num, reals=reals)).is_collapse == collapsed


def test_classes_that_could_not_be_counted_before_are_not_lost() -> None:
    """At first too few fakes are classified with confidence to say which classes there are."""
    run = VerdictTracker()
    uncertain = replace(result(6, 0.6), num_confident=50)
    certain = replace(result(4, 0.6, missing=("3",)), num_confident=1000)
    assert evaluate(run, uncertain, certain) == ["healthy", "learning"]


def test_outside_of_a_run_its_generators_are_judged_as_in_the_run() -> None:
    """One that was still improving lacks kinds because it is not done; trouble is remembered."""
    lacking = result(6, 0.3, missing="347")
    assert assess(lacking).name == "partial collapse"
    assert assess(lacking, was_improving=True).name == "learning"
    assert assess(result(6, 0.3, spread=0.05, duplicates=1.0), was_improving=True).is_collapse
    tracker = VerdictTracker(young_images=EVERY)
    assert not tracker.is_improving
    found = [(add(tracker, each).name, tracker.is_improving) for each in [lacking] * 4]
    assert found[0] == ("learning", True)
    assert found[-1] == ("partial collapse", False)


def test_noise_does_not_cry_wolf() -> None:
    wobble = [0.8, 0.7, 0.75, 0.64, 0.83, 0.6, 0.73, 0.67, 0.8, 0.58]
    found = evaluate(healthy_run(), *(result(2 + each, each) for each in wobble))
    assert set(found) == {"healthy"}


def test_a_trouble_is_withdrawn_after_two_evaluations_without_it() -> None:
    bad, good = result(8, 0.2), result(3, 0.75)
    found = evaluate(healthy_run(), bad, good, bad, good, result(2, 0.8))
    assert found == ["partial collapse"] * 4 + ["healthy"]


def test_varied_images_are_healthy_and_others_are_not() -> None:
    assert assess(result(2, 0.6)).name == "healthy"
    for name, usual, value in (("precision", "0.85", 0.5), ("recall", "0.80", 0.11)):
        expected = f"learning ({name} {value:.2f}, reals {usual}; coverage 0.63, reals 0.97)"
        assert str(assess(result(2, 0.63, **{name: value}))) == expected
    assert assess(result(2, 0.45, recall=0.6)).name == "learning"


def test_copies_count_only_if_pixels_confirm_them() -> None:
    assert assess(result(1, 0.97, confirmed_copies=0.2)).name == "memorising"
    assert assess(result(1, 0.97, copies=0.9)).name == "healthy"


def test_near_duplicates_count_only_if_pixels_confirm_them() -> None:
    assert assess(result(5, 0.7, duplicates=0.9)).name == "partial collapse"
    assert assess(result(5, 0.7, duplicates=0.9, pixel_duplicates=0.2)).name == "healthy"
    one_image = {"duplicates": 0.9, "spread": 0.1}
    assert assess(result(5, 0.0, **one_image)).name == "complete collapse"
    assert assess(result(5, 0.7, **one_image, pixel_spread=0.9)).name == "partial collapse"


def test_blurred_images_are_alike_and_yet_no_collapse() -> None:
    """They lack details, and features may find them plausible."""
    for alike in ({"duplicates": 0.9}, {"recall": 0.1}):
        assert assess(result(5, 0.1, **alike, detail=0.9)).name == "partial collapse"
        assert assess(result(5, 0.1, **alike, detail=0.4)).name == "learning"


def test_kinds_that_are_missing_are_named_without_labels() -> None:
    few = assess(result(5, 0.7, missing_kinds=4.0))
    assert str(few) == ("partial collapse (4 kinds of reals missing; coverage 0.70, reals 0.97)")
    assert assess(result(5, 0.7, missing_kinds=1.0)).name == "healthy"
    assert assess(result(5, 0.3, missing_kinds=4.0, precision=0.2)).name == "learning"
    assert assess(result(5, 0.7, missing_kinds=4.0, recall=0.1)).name == "learning"
    run = VerdictTracker()  # which is still improving
    assert evaluate(run, result(9, 0.5), result(5, 0.6, missing_kinds=4.0))[-1] == "learning"


def test_poor_images_that_lack_kinds_in_pixels_are_a_partial_collapse() -> None:
    """Features find them too poor for a judgement; thumbnails hide how poor they are."""
    poor = {"precision": 0.4, "missing_pixel_kinds": 5.0}
    found = assess(result(5, 0.3, **poor))
    assert str(found) == "partial collapse (5 kinds of reals missing; coverage 0.30, reals 0.97)"
    assert assess(result(5, 0.3, **poor | {"missing_pixel_kinds": 2.0})).name == "learning"
    assert assess(result(5, 0.3, **poor | {"precision": 0.1})).name == "learning"  # noise
    assert assess(result(5, 0.3, **poor, detail=0.4)).name == "learning"  # blurred
    varied = assess(result(5, 0.95, **poor, recall=0.75))  # which features do not confirm
    assert varied.name == "learning"
    improving = assess(result(5, 0.3, **poor), was_improving=True)
    assert improving.name == "learning"
    assert "5 kinds of reals missing so far" in improving.detail


def test_a_winning_discriminator_is_named_when_samples_stop_improving() -> None:
    tracker = VerdictTracker()
    assert set(report(tracker, D_WINS, times=20)) == {"learning"}  # as all runs begin
    found = evaluate(tracker, *[result(5, 0.6)] * 3)
    assert found == ["healthy", "healthy", "unbalanced"]
    assert "discriminator winning; discriminator right on 100% of reals" in str(tracker.verdict)
    assert report(tracker, BALANCED, times=5)[-1] == "healthy"


def test_a_winning_generator_is_named() -> None:
    tracker = VerdictTracker()
    report(tracker, BALANCED | {"accuracy/d_fake": 0.05}, times=5)
    assert str(tracker.verdict).startswith("unbalanced (generator winning")


def test_equilibrium_is_balanced() -> None:
    even = BALANCED | {"accuracy/d_real": 0.5, "accuracy/d_fake": 0.5}
    assert set(report(VerdictTracker(), even, times=20)) == {"learning"}


def test_one_report_out_of_balance_is_nothing() -> None:
    tracker = VerdictTracker()
    for turn in range(30):
        assert report(tracker, D_WINS if turn % 4 == 0 else BALANCED) == ["learning"]


def test_what_is_not_finite_has_diverged_at_once() -> None:
    tracker = healthy_run()
    report(tracker, BALANCED | {"loss/g": math.nan})
    assert str(tracker.verdict) == "diverged (loss/g not finite)"
    assert assess(result(math.inf, 0.5)).name == "diverged"


def test_an_overflowing_gradient_norm_alone_has_not() -> None:
    assert report(VerdictTracker(), BALANCED | {"grad_norm/d": math.inf}) == ["learning"]


def test_one_image_is_seen_between_evaluations_but_not_at_the_start() -> None:
    same = BALANCED | {"diversity/batch_ratio": 0.02, "diversity/batch_duplicates": 1.0}
    varied = BALANCED | {"diversity/batch_ratio": 0.9, "diversity/batch_duplicates": 0.0}
    tracker = VerdictTracker(young_images=EVERY)
    assert set(report(tracker, same, times=20)) == {"learning"}
    report(tracker, varied)
    tracker.images_seen = EVERY
    assert report(tracker, same, times=5)[-1] == "complete collapse"


def test_a_run_that_was_rolled_back_is_as_young_as_its_checkpoint() -> None:
    """From the start it is young again in full, from half of its youth for the other half."""
    for checkpoint, young_until in ((0, 14), (2, 12), (4, 10), (5, 10)):
        tracker = VerdictTracker(young_images=4 * EVERY, images_seen=checkpoint * EVERY)
        tracker.history.best_coverage = 0.8
        tracker.restart(images_seen=10 * EVERY)
        found = [
            tracker.add_evaluation(result(8, 0.2), images_seen=images * EVERY).name
            for images in range(10, 16)
        ]
        num_young = young_until - 10
        assert found == ["learning"] * num_young + ["partial collapse"] * (6 - num_young)


def test_state_survives_json_and_rewinds() -> None:
    fresh = VerdictTracker()
    fresh.load_state_dict(json.loads(json.dumps(VerdictTracker().state_dict())))
    assert fresh == VerdictTracker()
    tracker = healthy_run()
    saved = json.dumps(tracker.state_dict())
    collapsed = result(8, 0.2)
    add(tracker, collapsed)
    other = VerdictTracker(young_images=2 * EVERY)
    other.load_state_dict(json.loads(saved))
    assert other == healthy_run()
    assert other.verdict.name == "healthy"
    assert add(other, collapsed) == tracker.verdict


def test_the_state_of_an_older_version_is_read() -> None:
    tracker = healthy_run()
    older = tracker.state_dict()
    older["past"] = older.pop("history")
    del older["past"]["best_recall"], older["images_seen"], older["began_images"]
    restored = VerdictTracker(young_images=2 * EVERY)
    restored.load_state_dict(json.loads(json.dumps(older)))
    assert restored.history.best_coverage == tracker.history.best_coverage
    assert evaluate(restored, result(8, 0.2)) == ["partial collapse"]


def test_advice_names_settings_that_exist() -> None:
    names = flat_values(Config())
    for text in EXPLANATIONS.values():
        for name in re.findall(r"\b(?:collapse|loss|networks|optim|train)\.[a-z_.]*[a-z]", text):
            assert name in names, name
