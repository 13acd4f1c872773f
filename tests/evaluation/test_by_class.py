"""Generators that are asked for a class are judged class by class."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from distgan.evaluation.by_class import worst_classes
from distgan.evaluation.evaluate import Result, evaluate
from distgan.evaluation.reference import PreparedReference, RealImages, prepare_reference
from distgan.evaluation.verdict import assess
from distgan.reporting.classes import class_table
from distgan.runtime.distributed import World, current_world
from tests.evaluation.sets import ALONE, SETTINGS, ExampleClassifier, digits, noisy
from tests.worlds import run_world

NAMES = tuple("0123456789")


def labelled() -> tuple[Tensor, Tensor, RealImages]:
    """Return a fifth of the digits as fakes, their labels, and the rest as labelled reals."""
    images, labels = digits()
    fifth = len(images) // 5
    rest, rest_labels = images[fifth:], labels[fifth:]
    reals = RealImages(
        rest.__getitem__,
        len(rest),
        "digits-rest",
        class_names=NAMES,
        class_labels=rest_labels.__getitem__,
    )
    return images[:fifth], labels[:fifth], reals


def prepare(reals: RealImages, folder: Path, world: World = ALONE) -> PreparedReference:
    """Measure as many reals as there are fakes."""
    return prepare_reference(
        reals, ExampleClassifier(), world=world, num_samples=359, settings=SETTINGS, folder=folder
    )


def score(
    fakes: Tensor, labels: Tensor, prepared: PreparedReference, world: World = ALONE
) -> Result:
    """Evaluate images that were asked for with labels."""
    return evaluate(
        lambda start, stop: fakes[start:stop],
        prepared,
        ExampleClassifier(),
        world=world,
        fake_labels=labels,
    )


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedReference:
    return prepare(labelled()[2], tmp_path_factory.mktemp("references"))


def test_real_digits_are_recognised_and_covered_in_every_class(prepared: PreparedReference) -> None:
    """Each class is beside other reals of it, and near them."""
    fakes, labels, _ = labelled()
    result = score(fakes, labels, prepared)
    assert tuple(each.name for each in result.by_class) == NAMES
    assert result.values["quality/class_accuracy"] > 0.9
    assert result.reals["quality/class_accuracy"] > 0.9
    for each in result.by_class:
        assert each.values.keys() == each.reals.keys()
        assert each.values["quality/coverage"] > 0.6
        assert 0.5 < each.values["diversity/spread"] / each.reals["diversity/spread"] < 2
    assert Result.from_dict(result.to_dict()) == result
    assert "asked for" not in str(assess(result))


def test_wrong_classes_are_not_recognised(prepared: PreparedReference) -> None:
    """All else is as good as before, but the images show the next digit."""
    fakes, labels, _ = labelled()
    result = score(fakes, (labels + 1) % 10, prepared)
    right = score(fakes, labels, prepared)
    assert result.values["quality/class_accuracy"] < 0.1
    assert result.values["quality/class_frechet"] > 2 * right.values["quality/class_frechet"]
    assert result.values["quality/coverage"] == right.values["quality/coverage"]


def test_verdict_names_the_class_that_collapsed_alone(prepared: PreparedReference) -> None:
    """Of all threes only one image is left; it also is the class that is covered least."""
    fakes, labels, _ = labelled()
    fakes = fakes.clone()
    fakes[labels == 3] = noisy(fakes[labels == 3][:1].repeat(int((labels == 3).sum()), 1, 1, 1), 2)
    result = score(fakes, labels, prepared)
    verdict = assess(result)
    assert verdict.name == "partial collapse"
    assert "class 3: fakes hardly differ" in verdict.detail
    assert worst_classes(result.by_class)[0].name == "3"
    head, rows = class_table(result.by_class)
    assert (rows[0][0], head[0]) == ("3", "recognised")


def test_one_image_per_class_is_a_complete_collapse(prepared: PreparedReference) -> None:
    """Taken together, ten images may look varied."""
    fakes, labels, _ = labelled()
    firsts = torch.stack([fakes[labels == number][0] for number in range(10)])
    verdict = assess(score(noisy(firsts[labels], 2), labels, prepared))
    assert verdict.name == "complete collapse"


def test_generators_without_classes_have_no_rows(prepared: PreparedReference) -> None:
    """The other metrics are those of any generator."""
    fakes, labels, _ = labelled()
    result = evaluate(
        lambda start, stop: fakes[start:stop], prepared, ExampleClassifier(), world=ALONE
    )
    with_labels = score(fakes, labels, prepared)
    assert result.by_class == ()
    assert result.values.items() < with_labels.values.items()


def scores_of_rank(folder: Path) -> dict[str, object]:
    """Return the whole result on this rank."""
    from accelerate import Accelerator

    Accelerator(cpu=True)
    fakes, labels, reals = labelled()
    prepared = prepare(reals, folder, current_world())
    return score(fakes, labels, prepared, current_world()).to_dict()


def test_ranks_get_the_numbers_of_one_process(tmp_path: Path, prepared: PreparedReference) -> None:
    """With the reference measured anew, and then from the cache."""
    fakes, labels, _ = labelled()
    alone = score(fakes, labels, prepared)
    expected = alone.to_dict()["by_class"]
    for size in (2, 3):
        first, *others = run_world(size, scores_of_rank, tmp_path)
        assert others == [first] * (size - 1)
        result = Result.from_dict(first)
        assert str(assess(result)) == str(assess(alone))
        assert result.values == pytest.approx(alone.values, rel=1e-6, abs=1e-9)
        for own, wanted in zip(first["by_class"], expected, strict=True):
            assert own["values"] == pytest.approx(wanted["values"], rel=1e-6, abs=1e-9)
            assert own["reals"] == pytest.approx(wanted["reals"], rel=1e-6, abs=1e-9)
