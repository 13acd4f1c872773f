"""Weights & Biases: what a run leaves for it without a network, what a server gets, and what its death costs."""

import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from distgan.reporting.wandb_sink import default_group
from distgan.run.files import read_rows
from tests.wandb_server import WandbServer
from tests.worlds import rows, run_world, train_run

DIVERGING = ["optim.lr_d=1e30", "collapse.action=rollback", "collapse.remedy=['optim.lr_d=2e-4']"]
"""A run that collapses once, and then goes on healthily."""


@pytest.fixture(autouse=True)
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user who has never logged in."""
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))


def log_in(server: WandbServer, monkeypatch: pytest.MonkeyPatch, *, finish_sec: int) -> None:
    """Let runs find the server."""
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_FINISH_TIMEOUT", str(finish_sec))


def wandb_records(path: Path) -> Iterator[Any]:
    """The records of an offline run's file: a LevelDB log of protocol buffers after a header of 7 bytes."""
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
    """Names and values of a record's entries."""
    return {
        "/".join(entry.nested_key) or entry.key: json.loads(entry.value_json) for entry in entries
    }


def test_an_offline_run_holds_everything(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With no key the run goes offline by itself; a resumed run keeps its id; the files hold what was logged."""
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


def test_an_online_run_tells_the_server_everything(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows over kimg, pictures with captions, summary, the alert of a collapse, the generator, group, tags and outcome."""
    server, run = WandbServer(), tmp_path / "run"
    log_in(server, monkeypatch, finish_sec=30)
    words = [
        "log.wandb=online",
        "log.group=pairs",
        "train.kimg=0.096",
        "evaluation.every_kimg=0.048",
        *DIVERGING,
    ]
    assert run_world(1, train_run, shards, run, words)[0]["state"] == "done"
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
    assert [alert["title"] for alert in server.alerts] == ["diverged"]
    assert json.loads(server.artifacts[0]["metadata"])["images_seen"] == 96
    weights = (run / "generator.safetensors").read_bytes()
    assert server.files["artifact/generator.safetensors"] == weights
    assert server.exit_code == 0


def test_a_server_that_dies_costs_its_rows_only(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It hangs up for ever at the first picture: the run is trained to its end, and says how to send what is missing."""
    server, run = WandbServer(dies_when=lambda server: bool(server.files)), tmp_path / "run"
    log_in(server, monkeypatch, finish_sec=2)
    words = ["log.wandb=online", "train.kimg=0.24"]
    assert run_world(1, train_run, shards, run, words)[0]["state"] == "done"
    assert server.is_dead.is_set()
    assert [row["progress/images"] for row in rows(run)] == list(range(12, 241, 12))
    (said,) = (event["what"] for event in read_rows(run / "events.jsonl") if "W&B" in event["what"])
    assert "wandb sync" in said
    (kept,) = run.glob("wandb/run-*/run-*.wandb")
    history = [
        items(record.history.item)
        for record in wandb_records(kept)
        if record.WhichOneof("record_type") == "history"
    ]
    assert [row["progress/kimg"] for row in history if "loss/d" in row][-1] == 0.24


def test_groups() -> None:
    """A group that the user names goes before the array of a SLURM job."""
    assert default_group({}) is None
    assert default_group({"SLURM_ARRAY_JOB_ID": "7"}) == "array-7"
    assert default_group({"SLURM_ARRAY_JOB_ID": "7", "WANDB_RUN_GROUP": "mine"}) == "mine"
