"""Evaluations grade controlled sets, record their protocol, and are equal in any world."""

import json
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from distgan.config.metrics import EVALUATION_METRICS
from distgan.errors import UserError
from distgan.evaluation.evaluate import Result, evaluate
from distgan.evaluation.extractors import RandomConv
from distgan.evaluation.metrics import VERDICT_METRICS
from distgan.evaluation.probe import Probe
from distgan.evaluation.reference import (
    PreparedReference,
    RealImages,
    prepare_reference,
    split_reals,
)
from distgan.evaluation.verdict import assess
from distgan.runtime.distributed import current_world
from tests.evaluation.sets import (
    ALONE,
    NUM,
    SETTINGS,
    ExampleClassifier,
    controlled_sets,
    cut,
    digits,
    score,
)
from tests.worlds import run_world

Scores = dict[str, Result]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("references")


@pytest.fixture(scope="module")
def classifier() -> ExampleClassifier:
    return ExampleClassifier()


@pytest.fixture(scope="module")
def prepared(classifier: ExampleClassifier, folder: Path) -> PreparedReference:
    return prepare_reference(
        controlled_sets()[1],
        classifier,
        world=ALONE,
        settings=SETTINGS,
        num_samples=NUM,
        folder=folder,
    )


@pytest.fixture(scope="module")
def scores(classifier: ExampleClassifier, prepared: PreparedReference) -> Scores:
    return {
        name: score(fakes, prepared, classifier) for name, fakes in controlled_sets()[0].items()
    }


@pytest.mark.parametrize("metric", ["quality/frechet", "quality/kernel", "diversity/reverse_kl"])
def test_distances_grow_with_what_is_missing(scores: Scores, metric: str) -> None:
    found = [
        scores[name].values[metric] for name in ("all classes", "half of the classes", "one class")
    ]
    assert found == sorted(found)
    assert scores["copies"].values[metric] <= scores["all classes"].values[metric]


@pytest.mark.parametrize(
    "metric",
    ["quality/recall", "quality/coverage", "diversity/vendi", "diversity/effective_classes"],
)
def test_diversity_falls_with_what_is_missing(scores: Scores, metric: str) -> None:
    names = ("all classes", "half of the classes", "one class", "one image")
    found = [scores[name].values[metric] for name in names]
    assert found == sorted(found, reverse=True)
    assert found[0] == pytest.approx(scores["all classes"].reals[metric], rel=0.15)


def test_precision_and_density_see_bad_images_and_nothing_else(scores: Scores) -> None:
    for metric in ("quality/precision", "quality/density"):
        assert scores["noise"].values[metric] < 0.3 * scores["noise"].reals[metric]
        for name in ("all classes", "half of the classes", "one class", "copies"):
            assert scores[name].values[metric] > 0.75 * scores[name].reals[metric]


def test_missing_classes_are_named(scores: Scores) -> None:
    assert scores["all classes"].missing == ()
    assert scores["half of the classes"].missing == tuple("56789")
    assert scores["one class"].missing == tuple("012456789")
    assert sum(scores["one class"].class_counts) == NUM


def test_duplicates_and_copies_are_told_apart(scores: Scores) -> None:
    assert scores["duplicates"].values["diversity/duplicates"] > 0.5
    assert scores["duplicates"].values["diversity/copies"] < 0.1
    assert scores["copies"].values["diversity/copies"] == 1
    assert scores["copies"].values["diversity/duplicates"] < 0.1
    assert scores["all classes"].values["diversity/copies"] < 0.1


def test_pixels_confirm_copies_and_duplicates(folder: Path) -> None:
    sets, reals = controlled_sets()
    prepared = prepare_reference(
        reals, RandomConv(), world=ALONE, settings=SETTINGS, num_samples=NUM, folder=folder
    )
    found = {name: score(fakes, prepared, RandomConv()).values for name, fakes in sets.items()}
    for name, values in found.items():
        copies, duplicates = (
            values[f"diversity/{each}"] for each in ("confirmed_copies", "pixel_duplicates")
        )
        assert copies == 1 if name == "copies" else copies < 0.1, name
        has_duplicates = name in ("one class", "one image", "duplicates")
        assert duplicates > 0.9 if has_duplicates else duplicates < 0.3, name
    assert found["one image"]["diversity/pixel_spread"] < 0.2
    assert found["half of the classes"]["diversity/pixel_spread"] > 0.8


@pytest.mark.parametrize(
    ("name", "verdict"),
    [
        ("all classes", "healthy"),
        ("half of the classes", "partial collapse (classes 5, 6, 7, 8 and 1 more missing"),
        ("one class", "partial collapse (classes 0, 1, 2, 4 and 5 more missing"),
        ("one image", "complete collapse (features vary 0.0"),
        ("duplicates", "partial collapse ("),
        ("copies", "memorising (100% of fakes copy one of the 150 reals)"),
        ("noise", "learning (precision"),
    ],
)
def test_the_verdict_names_each_set(scores: Scores, name: str, verdict: str) -> None:
    assert str(assess(scores[name])).startswith(verdict)


def test_without_labels_the_extremes_are_still_named(folder: Path) -> None:
    sets, reals = controlled_sets()
    extractor = RandomConv()
    prepared = prepare_reference(
        reals, extractor, world=ALONE, settings=SETTINGS, num_samples=NUM, folder=folder
    )
    found = {name: assess(score(fakes, prepared, extractor)).name for name, fakes in sets.items()}
    assert found == {
        "all classes": "healthy",
        "half of the classes": "healthy",  # a narrow dataset would look the same
        "one class": "partial collapse",
        "one image": "complete collapse",
        "duplicates": "partial collapse",
        "copies": "memorising",
        "noise": "learning",
    }


def test_a_trained_probe_tells_health_from_collapse(probe: Probe, folder: Path) -> None:
    sets, reals = controlled_sets()
    prepared = prepare_reference(
        reals, probe, world=ALONE, settings=SETTINGS, num_samples=NUM, folder=folder
    )
    found = {name: score(sets[name], prepared, probe) for name in sets if name != "noise"}
    assert {name: assess(result).name for name, result in found.items()} == {
        "all classes": "healthy",
        "half of the classes": "partial collapse",
        "one class": "partial collapse",
        "one image": "complete collapse",
        "duplicates": "partial collapse",
        "copies": "memorising",
    }
    assert found["all classes"].missing == ()
    missing = set(found["half of the classes"].missing)
    assert missing <= set("56789")
    assert len(missing) >= 3  # a probe may read another digit as one of the others
    assert "3" not in found["one class"].missing
    assert len(found["one class"].missing) >= 6


def test_every_value_is_declared_and_has_its_real_one(scores: Scores) -> None:
    for result in scores.values():
        assert set(result.values) <= set(EVALUATION_METRICS)
        assert set(result.values) == set(result.reals)


def test_a_result_carries_its_protocol_through_json(
    classifier: ExampleClassifier, prepared: PreparedReference
) -> None:
    fakes = controlled_sets()[0]["all classes"]
    result = evaluate(
        lambda a, b: fakes[a:b], prepared, classifier, world=ALONE, seed=7, weights="ema"
    )
    assert Result.from_dict(json.loads(json.dumps(result.to_dict()))) == result
    line = result.protocol.line()
    for part in (
        "150 generated images (ema, seed 7)",
        "150 real ones",
        f"examples {classifier.version}",
        "disjoint",
    ):
        assert part in line


def test_the_wanted_metrics_and_those_of_the_verdict_are_computed(
    classifier: ExampleClassifier, prepared: PreparedReference
) -> None:
    fakes = controlled_sets()[0]["all classes"]
    wanted = {"quality/density", "diversity/copies"}
    result = evaluate(lambda a, b: fakes[a:b], prepared, classifier, world=ALONE, wanted=wanted)
    assert set(result.values) == wanted | set(VERDICT_METRICS)
    assert set(result.only(wanted).values) == set(result.only(wanted).reals) == wanted
    assert result.only(None) == result
    with pytest.raises(UserError, match="unknown metric 'fid'"):
        evaluate(lambda a, b: fakes[a:b], prepared, classifier, world=ALONE, wanted={"fid"})


def test_only_published_features_give_a_fid(folder: Path) -> None:
    class Published(RandomConv):
        published = True

    sets, reals = controlled_sets()
    prepared = prepare_reference(
        reals,
        Published(),
        world=ALONE,
        settings=SETTINGS,
        num_samples=20,
        folder=folder / "published",
    )
    values = score(sets["all classes"], prepared, Published()).values
    assert {"quality/fid", "quality/kid"} <= set(values)
    assert "quality/frechet" not in values


def test_the_parts_are_disjoint_or_the_protocol_says_so() -> None:
    reference, against, control, split = split_reals(100, 30, None, seed=0)
    assert (len(reference), len(control), split) == (30, 30, "disjoint")
    assert torch.equal(reference, against)
    assert not set(reference.tolist()) & set(control.tolist())
    reference, against, control, split = split_reals(100, 80, 100, seed=0)
    assert (len(reference), len(against), len(control), split) == (
        100,
        50,
        50,
        "two halves of the images",
    )
    assert not set(against.tolist()) & set(control.tolist())


def test_a_whole_reference_still_knows_copies(classifier: ExampleClassifier, folder: Path) -> None:
    reals = controlled_sets()[1]
    prepared = prepare_reference(
        reals,
        classifier,
        world=ALONE,
        settings=SETTINGS,
        num_samples=NUM,
        num_reference=reals.num_images,
        folder=folder,
    )
    assert prepared.protocol.num_reference == reals.num_images
    assert prepared.reference.copy_threshold > 0


def test_a_dataset_that_is_too_small_is_refused(classifier: ExampleClassifier) -> None:
    with pytest.raises(UserError, match="at least 12"):
        prepare_reference(RealImages(digits()[0].__getitem__, 8, "few"), classifier, world=ALONE)
    reals = RealImages(digits()[0].__getitem__, 60, "enough")
    with pytest.raises(UserError, match="5 images are too few"):
        prepare_reference(reals, classifier, world=ALONE, num_samples=5, num_reference=60)


def test_the_reference_is_measured_once(
    classifier: ExampleClassifier, prepared: PreparedReference, folder: Path
) -> None:
    asked: list[int] = []
    images, _, reals = cut(*digits())

    def noting(indices: torch.Tensor) -> torch.Tensor:
        asked.append(len(indices))
        return reals.images(indices)

    again = RealImages(noting, reals.num_images, reals.fingerprint)
    cached = prepare_reference(
        again, classifier, world=ALONE, settings=SETTINGS, num_samples=NUM, folder=folder
    )
    assert asked == [1]
    assert cached.values == prepared.values
    assert score(images[:NUM], cached, classifier) == score(images[:NUM], prepared, classifier)


def test_a_damaged_cache_is_measured_anew(
    classifier: ExampleClassifier, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reals = controlled_sets()[1]
    first = prepare_reference(
        reals, classifier, world=ALONE, settings=SETTINGS, num_samples=20, folder=tmp_path
    )
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:1000])
    assert (
        prepare_reference(
            reals, classifier, world=ALONE, settings=SETTINGS, num_samples=20, folder=tmp_path
        ).values
        == first.values
    )
    assert "measured again" in caplog.text


def evaluate_in_world(size: int, weights: Path, folder: Path) -> dict[str, Result]:
    torch.set_num_threads(1)
    if size > 1:
        dist.init_process_group("gloo", rank=int(os.environ["RANK"]), world_size=size)
    world, probe = current_world(), Probe.load(weights)
    sets, reals = controlled_sets()
    images = torch.cat([sets["half of the classes"], sets["all classes"], sets["noise"]])
    prepared = [
        # The second reads what the first has written, on rank zero, for all.
        prepare_reference(
            reals, probe, world=world, settings=SETTINGS, num_samples=311, folder=folder / str(size)
        )
        for _ in range(2)
    ]
    found = {str(turn): score(images, each, probe, world) for turn, each in enumerate(prepared)}
    if size > 1:
        dist.destroy_process_group()
    return found


def test_worlds_of_one_two_and_three_find_the_same(probe: Probe, tmp_path: Path) -> None:
    probe.save(tmp_path / "probe.safetensors")
    # 311 fakes are two chunks: in a world of three, one rank has none of its own.
    found = {
        size: run_world(size, evaluate_in_world, size, tmp_path / "probe.safetensors", tmp_path)
        for size in (1, 2, 3)
    }
    alone = found[1][0]["0"]
    for ranks in found.values():
        for rank in ranks:
            assert rank == ranks[0]
            for result in rank.values():
                assert result.values == pytest.approx(alone.values, rel=1e-9, abs=1e-9)
                assert result.reals == pytest.approx(alone.reals, rel=1e-9, abs=1e-9)
                assert (result.missing, result.class_counts) == (alone.missing, alone.class_counts)
                assert str(assess(result)) == str(assess(alone))
