"""What a run does about a collapse or divergence: warn, stop, or roll back with a remedy."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from distgan.run.files import read_rows
from shards.pack import pack
from tests.worlds import run_world, train_run

DIVERGING = ["optim.lr_d=1e30", "train.kimg=0.096", "collapse.lr_factor=1.0"]


def test_run_finishes_after_a_rollback_with_a_remedy(shards: Path, tmp_path: Path) -> None:
    """Both ranks roll back together, the remedy takes effect, and the run trains to its end."""
    run = tmp_path / "run"
    remedy = "collapse.remedy=['optim.lr_d=2e-4','loss.augment_probability=0.25']"
    overrides = [*DIVERGING, "loss.augment=['color']", "collapse.action=rollback", remedy]
    results = run_world(2, train_run, shards, run, overrides)
    assert {result["state"] for result in results} == {"done"}
    assert results[0]["images_seen"] == 96
    events = [event for event in read_rows(run / "events.jsonl") if event["kind"] == "rollback"]
    assert len(events) == 1
    assert "diverged" in events[0]["what"] and "rollback 1 of 3 to 0 kimg" in events[0]["what"]
    for name, weight in results[0]["weights"].items():
        assert np.isfinite(weight).all()
        np.testing.assert_array_equal(weight, results[1]["weights"][name])
    newest = sorted((run / "checkpoints").iterdir())[-1]
    contents = json.loads((newest / "state.json").read_text())
    assert contents["rollbacks"] == 1
    assert contents["players"]["optimizer_d"]["param_groups"][0]["lr"] == 2e-4
    assert load_file(newest / "tensors.safetensors")["augment_probability"] == 0.25


def test_run_gives_up_after_max_rollbacks(shards: Path, tmp_path: Path) -> None:
    """Without a remedy it diverges again, ends as `collapsed` and keeps its checkpoints."""
    run = tmp_path / "run"
    result = run_world(
        1,
        train_run,
        shards,
        run,
        [*DIVERGING, "collapse.action=rollback", "collapse.max_rollbacks=2"],
    )[0]
    assert result["state"] == "collapsed"
    status = json.loads((run / "status.json").read_text())
    assert status["state"] == "collapsed"
    assert "gave up after 2 rollbacks" in status["reason"]
    assert (run / "checkpoints" / "00000000.000").exists()


def test_collapse_at_the_end_of_a_run_is_its_outcome(shards: Path, tmp_path: Path) -> None:
    """A rollback there would end the run as `done`, with a generator that no image trained."""
    run = tmp_path / "run"
    overrides = [*DIVERGING, "collapse.action=rollback", "log.every_kimg=1"]
    result = run_world(1, train_run, shards, run, overrides)[0]
    assert (result["state"], result["images_seen"]) == ("collapsed", 96)
    assert "diverged" in json.loads((run / "status.json").read_text())["reason"]
    assert not [event for event in read_rows(run / "events.jsonl") if event["kind"] == "rollback"]


@pytest.mark.parametrize("action", ["warn", "stop"])
def test_divergence_without_rollback_ends_the_run_as_failed(
    shards: Path, tmp_path: Path, action: str
) -> None:
    """The error says at which point, and what to do."""
    with pytest.raises(
        AssertionError, match=r"diverged \(.*not finite\) at .* kimg.*collapse.action=rollback"
    ):
        run_world(1, train_run, shards, tmp_path / "run", [*DIVERGING, f"collapse.action={action}"])
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "failed"


def test_evaluations_are_recorded_and_the_best_is_kept(shards: Path, tmp_path: Path) -> None:
    """Evaluations have a protocol and values of reals; the best checkpoint survives pruning."""
    run = tmp_path / "run"
    overrides = ["train.kimg=0.12", "evaluation.every_kimg=0.024", "checkpoint.keep=1"]
    run_world(2, train_run, shards, run, overrides)
    found = evaluations(run)
    assert [row["progress/images"] for row in found] == [24, 48, 72, 96, 120]
    assert all(row["protocol"]["extractor"] == "random-conv" for row in found)
    assert all("quality/coverage" in row["reals"] for row in found)
    best = min(found, key=lambda row: row["values"]["quality/frechet"])["progress/images"]
    assert f"{best / 1000:012.3f}" in {path.name for path in (run / "checkpoints").iterdir()}


def test_an_evaluation_that_an_interruption_prevents_is_made_up_for(
    shards: Path, tmp_path: Path
) -> None:
    """The next start begins with it, so that the run has the evaluations of one without pause."""
    overrides = ["train.kimg=0.072", "evaluation.every_kimg=0.024"]
    stopped = run_world(1, train_run, shards, tmp_path / "run", overrides, 36)[0]
    assert (stopped["state"], stopped["images_seen"]) == ("preempted", 48)
    assert [row["progress/images"] for row in evaluations(tmp_path / "run")] == [24]
    run_world(1, train_run, shards, tmp_path / "run", overrides)
    run_world(1, train_run, shards, tmp_path / "whole", overrides)
    found, expected = (evaluations(tmp_path / name) for name in ("run", "whole"))
    assert [row["progress/images"] for row in found] == [24, 48, 72]
    assert [row["values"] for row in found] == [row["values"] for row in expected]


def evaluations(run: Path) -> list[dict[str, Any]]:
    """Return the rows of a run's evaluations."""
    return read_rows(run / "evaluations.jsonl")


@pytest.mark.slow
def test_collapsed_run_becomes_healthy_after_a_rollback(tmp_path: Path) -> None:
    """A generator far faster than its discriminator collapses; the remedy makes the run healthy."""
    pack("digits", tmp_path / "digits")
    overrides = [
        "networks.generator_width=32", "networks.discriminator_width=32", "networks.latent_dim=100",
        "train.batch_size=64", "train.kimg=140", "train.cpu_threads=2", "train.precision=auto",
        "train.ema_halflife_kimg=5", "optim.lr_g=2e-3", "optim.lr_d=1e-5",
        "evaluation.extractor=random", "evaluation.every_kimg=4.5", "evaluation.num_samples=2000",
        "log.every_kimg=0.5", "log.samples_every_kimg=40", "checkpoint.every_kimg=20",
        "collapse.action=rollback", "collapse.lr_factor=1.0",
        "collapse.remedy=['optim.betas=[0.0,0.99]','optim.lr_g=2e-4','optim.lr_d=2e-4']",
    ]  # fmt: skip
    result = run_world(1, train_run, tmp_path / "digits", tmp_path / "run", overrides, timeout=600)[
        0
    ]
    assert result["state"] == "done"
    events = read_rows(tmp_path / "run" / "events.jsonl")
    assert "complete collapse" in [event.get("verdict") for event in events]
    back = next(event for event in events if event["kind"] == "rollback")
    assert back["what"].endswith("rollback 1 of 3 to 0 kimg")
    assert json.loads((tmp_path / "run" / "status.json").read_text())["verdict"] == "healthy"
