"""The evaluator of a run judges by what it measured, and keeps the best generator."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from distgan.config.schema import Evaluation, Thresholds
from distgan.errors import UserError
from distgan.evaluation.batch_diversity import BatchDiversity
from distgan.evaluation.evaluate import evaluate
from distgan.evaluation.evaluator import Evaluator
from distgan.evaluation.evidence import History
from distgan.evaluation.extractors import RandomConv
from distgan.evaluation.reference import RealImages, prepare_reference
from distgan.evaluation.verdict import assess
from distgan.labels import class_labels
from shards.format.index import read_index
from shards.reader import ShardReader
from tests.evaluation.sets import ALONE, ExampleClassifier, digits


class Noise(nn.Module):
    """A generator of images that differ in every pixel."""

    def forward(self, latents: Tensor) -> Tensor:
        return latents.tanh().unflatten(1, (1, 32, 32))


class OneImage(nn.Module):
    """A generator that has collapsed completely."""

    def forward(self, latents: Tensor) -> Tensor:
        return 0.001 * latents.unflatten(1, (1, 32, 32))


def make_evaluator(shards: Path, *, conditional: bool = False, **settings: object) -> Evaluator:
    reader = ShardReader(read_index(shards))
    return Evaluator(
        reader,
        evaluation=Evaluation(num_samples=12, **settings),  # type: ignore[arg-type]
        thresholds=Thresholds(),
        classes=None,
        world=ALONE,
        device=torch.device("cpu"),
        seed=0,
        total_images=1000,
        micro_batch_size=8,
        labels=class_labels(reader, None) if conditional else None,
    )


@pytest.mark.parametrize("metrics", [(), ("quality/frechet",), ("diversity/vendi",)])
def test_a_collapse_is_named_whichever_metrics_are_listed(
    shards: Path, metrics: tuple[str, ...]
) -> None:
    evaluator = make_evaluator(shards, metrics=metrics)
    for _ in range(3):
        result, verdict, _ = evaluator.evaluate(OneImage(), 1024, images_seen=900)
    assert verdict.name == "complete collapse"
    assert set(result.values) == {*metrics, "quality/frechet"}


def test_listed_metrics_that_the_features_do_not_allow_are_named(shards: Path) -> None:
    metrics = ("quality/frechet", "quality/fid", "diversity/modes", "quality/class_frechet")
    (warning,) = make_evaluator(shards, metrics=metrics, extractor="random").warnings
    assert warning.startswith(
        "not measured: quality/fid, diversity/modes, quality/class_frechet; those of classes need"
    )
    assert not make_evaluator(shards, metrics=("quality/kernel",)).warnings


def test_the_best_metric_is_measured_though_it_is_not_listed(shards: Path) -> None:
    evaluator = make_evaluator(shards, metrics=("quality/kernel",), best_metric="diversity/vendi")
    found = [
        evaluator.evaluate(generator, 1024, images_seen=images)
        for images, generator in ((1, OneImage()), (2, Noise()), (3, OneImage()))
    ]
    assert [is_best for _, _, is_best in found] == [True, True, False]
    assert evaluator.best_images == 2
    assert set(found[0][0].values) == {"quality/kernel", "diversity/vendi"}


@pytest.mark.parametrize(
    "metric",
    [
        "diversity/modes",
        "diversity/spread",
        "quality/fid",
        "quality/inception_score",
        "quality/kernel_spread",
    ],
)
def test_a_best_metric_that_cannot_choose_is_refused(shards: Path, metric: str) -> None:
    with pytest.raises(UserError, match=f"best_metric={metric} .* choose from quality/frechet"):
        make_evaluator(shards, best_metric=metric)


def test_a_metric_of_classes_that_are_all_too_small_is_refused(shards: Path) -> None:
    """The fixture has two classes, with 6 images each in an evaluation."""
    with pytest.raises(UserError, match=r"class_frechet needs 12 images .* more than [67]; raise"):
        make_evaluator(shards, conditional=True, best_metric="quality/class_frechet")


def test_a_best_metric_that_was_not_measured_chooses_nothing(shards: Path) -> None:
    """As one of classes, if too few images of each were generated."""
    evaluator = make_evaluator(shards)
    evaluator.best_metric = "quality/class_frechet"
    _, _, is_best = evaluator.evaluate(Noise(), 1024, images_seen=1)
    assert not is_best
    assert evaluator.best_value is None


def test_another_best_metric_begins_anew(shards: Path) -> None:
    """A distance says nothing about whether a coverage is better."""
    before = make_evaluator(shards)
    before.evaluate(Noise(), 1024, images_seen=1)
    after = make_evaluator(shards, best_metric="quality/coverage")
    after.load_state_dict(before.state_dict())
    assert after.notes == ["best checkpoint: by quality/frechet before, by quality/coverage now"]
    assert after.best_images is None and after.tracker.history == before.tracker.history


def test_evaluations_in_other_features_are_not_compared(shards: Path) -> None:
    """Worse figures in the features of a probe that was trained meanwhile are no collapse."""
    before = make_evaluator(shards)
    before.evaluate(Noise(), 1024, images_seen=1)
    same, other = make_evaluator(shards), make_evaluator(shards)
    other.extractor.version = "another"
    for evaluator in (same, other):
        evaluator.load_state_dict(before.state_dict())
    assert (same.notes, same.best_images) == ([], 1)
    assert other.notes and other.best_images is None
    assert other.tracker.history == History()


def test_an_unknown_metric_is_refused(shards: Path) -> None:
    with pytest.raises(UserError, match="unknown metric 'frechet'"):
        make_evaluator(shards, metrics=("frechet",))


def test_the_distance_chooses_the_best_under_its_published_name(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RandomConv, "published", True)
    evaluator = make_evaluator(shards)
    assert evaluator.best_metric == "quality/fid"
    result, _, is_best = evaluator.evaluate(Noise(), 1024, images_seen=1)
    assert is_best
    assert evaluator.best_value == result.values["quality/fid"]


def test_a_value_that_is_not_finite_is_never_the_best(shards: Path) -> None:
    evaluator = make_evaluator(shards)
    assert not evaluator.is_better(float("nan"))
    evaluator.best_value = 3.0
    assert [evaluator.is_better(value) for value in (2.0, 4.0, float("nan"))] == [
        True,
        False,
        False,
    ]


def test_an_evaluator_measures_batches_of_as_many_reals_as_fakes(shards: Path) -> None:
    assert make_evaluator(shards).batch_diversity.batch == 8


@pytest.mark.parametrize("batch", [4, 16, 64])
def test_about_a_hundredth_of_reals_are_near_duplicates_in_any_batch(batch: int) -> None:
    """The fewer images there are in a batch, the farther is the nearest one."""
    reals = digits()[0].float() / 127.5 - 1
    diversity = BatchDiversity.of_reals(reals[:896], batch=batch)
    found = [diversity.metrics(part) for part in reals[896:1792].split(batch)]
    duplicates = torch.stack([each["diversity/batch_duplicates"] for each in found]).mean()
    assert 0.003 < duplicates < 0.03


def test_real_images_that_are_all_the_same_are_no_divergence(tmp_path: Path) -> None:
    """Every metric is finite, whatever the fakes are."""
    grey = torch.full((1, 3, 32, 32), 90, dtype=torch.uint8)
    reals = RealImages(lambda ids: grey.expand(len(ids), -1, -1, -1), 60, "grey")
    prepared = prepare_reference(reals, RandomConv(), world=ALONE, num_samples=24, folder=tmp_path)
    draw = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (24, 3, 32, 32), dtype=torch.uint8, generator=draw)
    for fakes in (grey.expand(24, -1, -1, -1), grey.expand(24, -1, -1, -1) // 2, noise):
        result = evaluate(lambda a, b, x=fakes: x[a:b], prepared, RandomConv(), world=ALONE)
        assert assess(result).name != "diverged"


def test_known_shares_of_other_classes_are_not_used(tmp_path: Path) -> None:
    """The probe of another dataset has other classes than stacked digits."""
    classifier = ExampleClassifier()
    reals = RealImages(digits()[0].__getitem__, 60, "other", class_shares=(0.001,) * 1000)
    found = prepare_reference(reals, classifier, world=ALONE, num_samples=20, folder=tmp_path)
    assert found.reference.class_shares is not None
    assert len(found.reference.class_shares) == classifier.num_classes
