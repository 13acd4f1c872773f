"""Properties of real training runs on one to four processes."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import NUM_IMAGES
from tests.worlds import REMEDIES, checkpoint_digest, rows, run_world, train_run


def test_two_ranks_read_each_image_once_per_epoch_and_stay_equal(
    shards: Path, tmp_path: Path
) -> None:
    """Four epochs read each image four times; replicas are equal; only rank zero writes."""
    results = run_world(2, train_run, shards, tmp_path / "run", ["train.epochs=4"])
    assert results[0]["images_seen"] == 4 * NUM_IMAGES
    assert Counter(results[0]["ids"] + results[1]["ids"]) == dict.fromkeys(range(NUM_IMAGES), 4)
    for name, weight in results[0]["weights"].items():
        np.testing.assert_array_equal(weight, results[1]["weights"][name])
    assert results[1]["writes"] == []
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "done"
    assert [row["progress/images"] for row in rows(tmp_path / "run")] == list(range(12, 121, 12))


@pytest.mark.parametrize("world", [1, 2, 4])
def test_resumed_run_is_bit_identical(shards: Path, tmp_path: Path, world: int) -> None:
    """A run stopped by a signal and resumed has the tensors and rows of an uninterrupted one."""
    run_world(world, train_run, shards, tmp_path / "whole", ["train.kimg=0.072", "data.flip=true"])
    stopped = run_world(
        world, train_run, shards, tmp_path / "cut", ["train.kimg=0.072", "data.flip=true"], 24
    )
    assert stopped[0]["state"] == "preempted"
    assert 24 < stopped[0]["images_seen"] < 72
    resumed = run_world(
        world, train_run, shards, tmp_path / "cut", ["train.kimg=0.072", "data.flip=true"]
    )
    assert resumed[0]["start"] == stopped[0]["images_seen"]
    assert checkpoint_digest(tmp_path / "whole") == checkpoint_digest(tmp_path / "cut")
    whole, cut = rows(tmp_path / "whole"), rows(tmp_path / "cut")
    assert [row["progress/images"] for row in cut] == [row["progress/images"] for row in whole]
    assert [row["loss/d"] for row in cut] == [row["loss/d"] for row in whole]


def test_run_with_all_remedies_resumes_bit_identically(shards: Path, tmp_path: Path) -> None:
    """Slow weights, adapted probability, schedules and lazy penalties resume where they were."""
    overrides = [*REMEDIES, "train.kimg=0.096", "data.flip=true"]
    run_world(1, train_run, shards, tmp_path / "whole", overrides)
    stopped = run_world(1, train_run, shards, tmp_path / "cut", overrides, 32)
    assert stopped[0]["state"] == "preempted"
    run_world(1, train_run, shards, tmp_path / "cut", overrides)
    assert checkpoint_digest(tmp_path / "whole") == checkpoint_digest(tmp_path / "cut")


def test_run_continues_with_other_numbers_of_ranks(shards: Path, tmp_path: Path) -> None:
    """With 2, then 1, then 3 ranks no image of two epochs is lost or repeated."""
    run = tmp_path / "run"
    ids: list[int] = []
    for world, kimg in ((2, 0.024), (1, 0.036), (3, 0.060)):
        results = run_world(world, train_run, shards, run, [f"train.kimg={kimg}"])
        assert {result["state"] for result in results} == {"done"}
        ids += [number for result in results for number in result["ids"]]
    assert Counter(ids) == dict.fromkeys(range(NUM_IMAGES), 2)


@pytest.mark.parametrize(
    "settings",
    [["train.d_steps=1"], ["train.d_steps=2"], REMEDIES],
    ids=["1 D step", "2 D steps", "remedies"],
)
def test_micro_batches_train_the_weights_of_ranks(
    shards: Path, tmp_path: Path, settings: Sequence[str]
) -> None:
    """Two micro-batches on one process train the weights that two ranks with the same slices do."""
    overrides = ["train.kimg=0.048", *settings]
    one = run_world(1, train_run, shards, tmp_path / "one", [*overrides, "train.accumulate=2"])[0]
    two = run_world(2, train_run, shards, tmp_path / "two", overrides)[0]
    for name, weight in two["weights"].items():
        np.testing.assert_allclose(one["weights"][name], weight, atol=2e-5, err_msg=name)
