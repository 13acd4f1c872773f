"""A run survives a full disk and a broken W&B server; garbage in files and settings is refused."""

import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distgan.config.load import load_config
from distgan.errors import UserError
from distgan.reporting.run_logger import RunLogger
from distgan.run import checkpoints
from distgan.run.checkpoints import CheckpointError
from distgan.run.files import read_rows
from distgan.run.folder import RunFolder
from distgan.run.session import recorded_outcome
from distgan.runtime.distributed import World
from distgan.runtime.heartbeat import Heartbeat
from tests.worlds import checkpoint_digest, rows, run_world, train_run

OVERRIDES = ["train.kimg=0.072", "checkpoint.every_kimg=0.024", "checkpoint.keep=1"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a disk of 3 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a small tmpfs")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def fill(disk: Path, *, leave: int) -> Path:
    """Fill a disk up to `leave` bytes."""
    state = os.statvfs(disk)
    filler = disk / "filler"
    filler.write_bytes(bytes(max(0, state.f_bavail * state.f_frsize - leave)))
    return filler


@pytest.fixture(scope="module")
def undisturbed(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Train a run on a disk with room; return the digest of its last checkpoint."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    run_world(1, train_run, shards, run, OVERRIDES)
    return checkpoint_digest(run)


@pytest.mark.parametrize("leave", [0, 40_000])
def test_run_on_a_full_disk_fails_cleanly_and_resumes_bit_identically(
    shards: Path, undisturbed: str, small_disk: Path, leave: int
) -> None:
    """Without room for a row or a checkpoint the run fails with one line, its checkpoint intact.

    Once there is room again, the same command ends with the same weights as an undisturbed run.
    """
    run = small_disk / "run"
    run_world(1, train_run, shards, run, OVERRIDES, 24)
    filler = fill(small_disk, leave=leave)
    with pytest.raises(
        AssertionError,
        match=r"(RunFailed|UserError): .*No space left on device.* repeat the command",
    ):
        run_world(1, train_run, shards, run, OVERRIDES)
    filler.unlink()
    assert run_world(1, train_run, shards, run, OVERRIDES)[0]["state"] == "done"
    assert checkpoint_digest(run) == undisturbed
    assert [row["progress/images"] for row in rows(run)] == list(range(12, 73, 12))


class BadServer:
    """A server in place of W&B's that answers with nothing, with garbage or with a refusal."""

    ANSWERS: ClassVar = {
        "silent": b"",
        "garbage": b"\x00\xffnot http at all\r\n\r\n",
        "refusing": b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n",
    }

    def __init__(self, kind: str) -> None:
        self.answer = self.ANSWERS[kind]
        self.server = socket.create_server(("127.0.0.1", 0))
        self.port = self.server.getsockname()[1]
        self.open: list[socket.socket] = []
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self) -> None:
        """Give every client the same answer until closed."""
        with suppress(OSError):
            while True:
                connection, _ = self.server.accept()
                self.open.append(connection)
                if self.answer:
                    with suppress(OSError):
                        connection.recv(65536)
                        connection.sendall(self.answer)
                        connection.close()

    def close(self) -> None:
        """Close the server and all connections."""
        self.server.close()
        for connection in self.open:
            connection.close()


@pytest.mark.parametrize("kind", ["dead", "silent", "garbage", "refusing"])
def test_broken_wandb_server_does_not_stop_training(
    kind: str, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run trains to its end in bounded time, writes its rows and records a warning."""
    server = BadServer("silent" if kind == "dead" else kind)
    if kind == "dead":
        server.close()
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.port}")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "1")
    monkeypatch.setenv("WANDB_FINISH_TIMEOUT", "1")
    began = time.monotonic()
    result = run_world(
        1,
        train_run,
        shards,
        tmp_path / "run",
        ["train.kimg=0.036", "log.wandb=online"],
        timeout=300,
    )[0]
    assert result["state"] == "done"
    assert [row["progress/images"] for row in rows(tmp_path / "run")] == [12, 24, 36]
    assert time.monotonic() - began < 120
    assert any("W&B" in event["what"] for event in read_rows(tmp_path / "run" / "events.jsonl"))
    server.close()


@given(st.text(max_size=40))
@settings(max_examples=300, deadline=None)
def test_any_override_is_accepted_or_a_user_error(word: str) -> None:
    """Arbitrary text on the command line gives a configuration or a UserError."""
    with suppress(UserError):
        load_config(None, [word])
    with suppress(UserError):
        load_config(None, [f"train.{word}"])
    with suppress(UserError):
        load_config(None, [f"train.batch_size={word}"])


@given(st.binary(max_size=200))
@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_preset_file_is_accepted_or_a_user_error(tmp_path: Path, content: bytes) -> None:
    """Arbitrary bytes in a preset file give a configuration or a UserError."""
    (tmp_path / "preset.toml").write_bytes(content)
    with suppress(UserError):
        load_config(str(tmp_path / "preset.toml"))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["files", "state.json", "sha256"]), inner)
    ),
    max_leaves=8,
)


@given(JSON)
@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_arbitrary_manifest_is_refused(tmp_path: Path, manifest: object) -> None:
    """A manifest.json of arbitrary JSON raises CheckpointError and nothing else."""
    path = tmp_path / "00000001.000"
    path.mkdir(exist_ok=True)
    (path / "state.json").write_text("{}")
    (path / "tensors.safetensors").write_bytes(b"")
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError):
        checkpoints.load(path)


def test_a_failure_that_two_threads_report_is_recorded_once(tmp_path: Path) -> None:
    """The heartbeat ends a process that hangs, while the process notices a failed collective."""
    folder = RunFolder(tmp_path / "run")
    config = load_config(None, ["log.wandb=disabled", "log.report=false"])
    logger = RunLogger(
        folder, name="x", config=config, wandb_id=None, total_images=1, images_per_epoch=1
    )
    heartbeat = Heartbeat(World(0, 1))
    thread = threading.Thread(target=lambda: heartbeat.on_hang("lost rank 1 on node2"))

    def fail() -> None:
        with recorded_outcome(logger, heartbeat, images_seen=lambda: 1):
            thread.start()
            raise RuntimeError("gloo: connection closed")

    with pytest.raises(RuntimeError, match="gloo"):
        fail()
    thread.join()
    events = [row["kind"] for row in read_rows(folder.path / "events.jsonl")]
    assert events == ["failed"]
