"""TensorBoard: event files read back, a resumed run, and what keeps them from being written."""

import json
from pathlib import Path
from typing import Any

import pytest

from distgan.errors import UserError
from distgan.reporting.tensorboard_sink import check_installed
from distgan.run.files import read_rows
from tests.worlds import rows, run_world, train_run

SETTINGS = ["log.tensorboard=true", "log.samples_every_kimg=0.024", "evaluation.every_kimg=0.024"]


def read_events(run: Path) -> Any:
    """Return the events of a run as TensorBoard reads them."""
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="pip install 'distgan[tensorboard]'",
    )
    events = accumulator.EventAccumulator(
        str(run / "tensorboard"), size_guidance=dict.fromkeys(("scalars", "images", "tensors"), 0)
    )
    return events.Reload()


def test_event_files_have_metrics_images_and_settings(shards: Path, tmp_path: Path) -> None:
    """A resumed run continues them; each metric equals metrics.jsonl, with the images as step."""
    pytest.importorskip("tensorboard", reason="pip install 'distgan[tensorboard]'")
    run = tmp_path / "run"
    for kimg in (0.024, 0.048):
        outcome = run_world(1, train_run, shards, run, [*SETTINGS, f"train.kimg={kimg}"])
        assert outcome[0]["state"] == "done"
    events, metrics = read_events(run), rows(run)
    assert len(metrics) == 4
    for name in ("loss/d", "accuracy/d_fake", "time/images_per_sec"):
        logged = [(event.step, event.value) for event in events.Scalars(name)]
        expected = [(row["progress/images"], pytest.approx(row[name])) for row in metrics]
        assert logged == expected
    evaluations = read_rows(run / "evaluations.jsonl")
    logged = [(event.step, event.value) for event in events.Scalars("quality/frechet")]
    assert logged == [
        (row["progress/images"], pytest.approx(row["values"]["quality/frechet"]))
        for row in evaluations
    ]
    assert "reals/quality/frechet" in events.Tags()["scalars"]
    assert {event.step for event in events.Images("samples/fakes")} >= {0, 24, 48}
    image = events.Images("samples/reals")[0].encoded_image_string
    assert image.startswith(b"\x89PNG")
    texts = {
        name: events.Tensors(name)[-1].tensor_proto.string_val[0].decode()
        for name in ("settings/text_summary", "summary/text_summary")
    }
    assert "| train.batch_size | 12 |" in texts["settings/text_summary"]
    assert "| state | done |" in texts["summary/text_summary"]


def test_event_files_that_cannot_be_written_do_not_fail_the_run(
    shards: Path, tmp_path: Path
) -> None:
    """The run is done, with one warning."""
    pytest.importorskip("tensorboard", reason="pip install 'distgan[tensorboard]'")
    run = tmp_path / "run"
    run.mkdir()
    (run / "tensorboard").write_text("a file where the folder should be")
    settings = [*SETTINGS, "train.kimg=0.024"]
    assert run_world(1, train_run, shards, run, settings)[0]["state"] == "done"
    events = [row for row in read_rows(run / "events.jsonl") if "TensorBoard" in row["what"]]
    assert [event["kind"] for event in events] == ["warning"]
    assert json.loads((run / "status.json").read_text())["state"] == "done"


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what to install."""
    monkeypatch.setattr("distgan.reporting.tensorboard_sink.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'distgan\[tensorboard\]'"):
        check_installed()
