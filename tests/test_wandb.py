"""Weights & Biases: offline runs, runs with a server, and a server that dies."""

import json
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from distgan.config.load import load_config
from distgan.reporting.run_logger import RunLogger
from distgan.reporting.wandb_sink import WandbSink, default_group, grouped_in_wandb
from distgan.run.files import read_rows
from distgan.run.folder import RunFolder
from tests.wandb_server import WandbServer
from tests.worlds import rows, run_world, train_run

DIVERGING = ["optim.lr_d=1e30", "collapse.action=rollback", "collapse.remedy=['optim.lr_d=2e-4']"]
"""A run that diverges once and recovers after a rollback."""


@pytest.fixture(autouse=True)
def logged_out_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run each test as a user who has never logged in."""
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))


def log_in(server: WandbServer, monkeypatch: pytest.MonkeyPatch, *, finish_sec: int) -> None:
    """Make runs use the server."""
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_FINISH_TIMEOUT", str(finish_sec))


def wandb_records(path: Path) -> Iterator[Any]:
    """Yield the records of an offline run: protocol buffers in a LevelDB log after 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    data, place, part, block = path.read_bytes(), 7, b"", 32768
    while place + 7 <= len(data):
        if (left := block - place % block) < 7:
            place += left
            continue
        checksum, size, kind = struct.unpack("<IHB", data[place : place + 7])
        body = data[place + 7 : place + 7 + size]
        if kind == 0 or len(body) < size:
            return
        assert zlib.crc32(body, zlib.crc32(bytes([kind]))) == checksum
        place += 7 + size
        part += body
        if kind in (1, 4):  # a whole record, or the last part of one
            record = wandb_internal_pb2.Record()
            record.ParseFromString(part)
            yield record
            part = b""


def items(entries: Any) -> dict[str, Any]:
    """Return the names and values of a record's entries."""
    return {
        "/".join(entry.nested_key) or entry.key: json.loads(entry.value_json) for entry in entries
    }


@pytest.mark.parametrize(("name", "tags"), [("cifar10", ["cifar10", "1xcpu"]), ("run", ["1xcpu"])])
def test_only_presets_are_tags(name: str, tags: list[str], tmp_path: Path) -> None:
    """A run without a preset has no tag in its place."""
    folder = RunFolder(tmp_path / "run")
    logger = RunLogger(
        folder,
        name=name,
        config=load_config(None, ["log.wandb=disabled"]),
        wandb_id=None,
        total_images=1,
        images_per_epoch=1,
    )
    [sink] = logger.open_sinks({"processes": 1, "device": "cpu"}, images_seen=0)
    folder.close()
    assert isinstance(sink, WandbSink) and sink.settings["tags"] == tags


def test_offline_run_has_everything_that_was_logged(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a key the run is offline; a resumed run keeps its id."""
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "77")
    run = tmp_path / "run"
    for kimg in (0.024, 0.048):
        run_world(1, train_run, shards, run, ["log.wandb=auto", f"train.kimg={kimg}"])
    files = sorted(run.glob("wandb/offline-run-*/run-*.wandb"))
    assert len(files) == 2
    assert len({file.stem for file in files}) == 1
    history, config, summary, kinds = [], {}, {}, set()
    for record in (record for file in files for record in wandb_records(file)):
        kind = record.WhichOneof("record_type")
        kinds.add(kind)
        if kind == "run":
            config |= items(record.run.config.update)
            assert (record.run.run_group, list(record.run.tags)) == ("array-77", ["test", "1xcpu"])
        elif kind == "history":
            history.append(items(record.history.item))
        elif kind == "summary":
            summary |= items(record.summary.update)
        elif kind == "metric" and record.metric.glob_name == "*":
            assert record.metric.step_metric == "progress/kimg"
        elif kind == "artifact":
            assert (record.artifact.type, record.artifact.name.partition("-")[0]) == (
                "model",
                "generator",
            )
            assert {entry.path for entry in record.artifact.manifest.contents} == {
                "generator.json",
                "generator.safetensors",
            }
            assert all(
                Path(entry.local_path).is_relative_to(run)
                for entry in record.artifact.manifest.contents
            )
    assert [row["progress/kimg"] for row in history if "loss/d" in row] == [
        0.012,
        0.024,
        0.036,
        0.048,
    ]
    assert all(row.keys() >= {"progress/kimg"} for row in history)
    assert config["train.batch_size"] == 12
    pictures = {
        name.removesuffix("/caption")
        for row in history
        for name in row
        if name.startswith("samples/")
    }
    assert {"samples/fakes", "samples/reals"} <= {
        "/".join(name.split("/")[:2]) for name in pictures
    }
    assert summary["best/kimg"] in (0.024, 0.048)
    assert (summary["state"], "best/quality/frechet" in summary) == ("done", True)
    assert kinds >= {"metric", "artifact", "exit"}


def test_server_receives_everything_that_was_logged(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Metrics, images, summary, an alert, the generator, group, tags and the outcome."""
    server, run = WandbServer(), tmp_path / "run"
    log_in(server, monkeypatch, finish_sec=30)
    settings = [
        "log.wandb=online",
        "log.group=pairs",
        "train.kimg=0.096",
        "evaluation.every_kimg=0.048",
        *DIVERGING,
    ]
    assert run_world(1, train_run, shards, run, settings)[0]["state"] == "done"
    server.die()
    assert not [event for event in read_rows(run / "events.jsonl") if "W&B" in event["what"]]
    assert (server.run["groupName"], server.run["tags"]) == ("pairs", ["test", "1xcpu"])
    assert [row["progress/kimg"] for row in server.history if "loss/d" in row] == [
        r["progress/kimg"] for r in rows(run)
    ]
    fakes = [row["samples/fakes"] for row in server.history if "samples/fakes" in row]
    assert fakes[0]["caption"] == "0 kimg, moving average, fixed latents"
    assert all(server.files[picture["path"]].startswith(b"\x89PNG") for picture in fakes)
    assert server.summary["state"] == "done"
    assert server.summary["best/kimg"] in (0.048, 0.096)
    assert [(alert["title"], alert["severity"]) for alert in server.alerts] == [
        ("diverged", "WARN")
    ]
    assert json.loads(server.artifacts[0]["metadata"])["images_seen"] == 96
    weights = (run / "generator.safetensors").read_bytes()
    assert server.files["artifact/generator.safetensors"] == weights
    assert server.exit_code == 0


def test_training_survives_a_dying_server(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server dies at the first image: the run is completed and says how to send the rest."""
    server, run = WandbServer(dies_when=lambda server: bool(server.files)), tmp_path / "run"
    log_in(server, monkeypatch, finish_sec=2)
    settings = ["log.wandb=online", "train.kimg=0.24"]
    assert run_world(1, train_run, shards, run, settings)[0]["state"] == "done"
    assert server.is_dead.is_set()
    assert [row["progress/images"] for row in rows(run)] == list(range(12, 241, 12))
    (warning,) = (row["what"] for row in read_rows(run / "events.jsonl") if "W&B" in row["what"])
    assert "wandb sync" in warning
    (kept,) = run.glob("wandb/run-*/run-*.wandb")
    history = [
        items(record.history.item)
        for record in wandb_records(kept)
        if record.WhichOneof("record_type") == "history"
    ]
    assert [row["progress/kimg"] for row in history if "loss/d" in row][-1] == 0.24


def test_group_of_the_environment_precedes_the_job_array() -> None:
    """Runs of one SLURM array are a group by default."""
    assert default_group({}) is None
    assert default_group({"SLURM_ARRAY_JOB_ID": "7"}) == "array-7"
    assert default_group({"SLURM_ARRAY_JOB_ID": "7", "WANDB_RUN_GROUP": "mine"}) == "mine"


@pytest.mark.parametrize("chosen", [None, "mine"])
def test_a_group_ends_with_its_runs(chosen: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Later runs of a notebook are not in the group of one GAN per class."""
    monkeypatch.delenv("WANDB_RUN_GROUP", raising=False)
    if chosen:
        monkeypatch.setenv("WANDB_RUN_GROUP", chosen)
    with grouped_in_wandb("classes"):
        assert default_group(os.environ) == (chosen or "classes")
    assert default_group(os.environ) == chosen
