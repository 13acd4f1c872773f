"""If a rank dies, hangs or fails, the others end within seconds and name it in one line."""

import json
import os
import platform
import signal
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from tests.worlds import CONTEXT, free_port, train_run

HOST = platform.node()


def child(rank: int, port: int, shards: Path, run_dir: Path, failing_rank: int | None) -> None:
    """Train as one of three ranks, with short timeouts, and write all output to a file."""
    import distgan.data
    import distgan.runtime.heartbeat

    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "3",
        "LOCAL_WORLD_SIZE": "3",
    }
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    sys.stdout = sys.stderr = run_dir.with_suffix(f".{rank}").open("w", buffering=1)
    (
        distgan.runtime.heartbeat.BEAT_SEC,
        distgan.runtime.heartbeat.SILENCE_SEC,
        distgan.runtime.heartbeat.GRACE_SEC,
    ) = (
        0.2,
        3.0,
        1.0,
    )
    if rank == failing_rank:
        distgan.data.BatchStream.__next__ = lambda self: 1 / 0  # type: ignore[method-assign,assignment]
    try:
        train_run(shards, run_dir, ["train.kimg=600"])
    except BaseException as error:
        print(f"ended by {type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(1)


def start(shards: Path, run_dir: Path, failing_rank: int | None = None) -> list[BaseProcess]:
    """Start three ranks; returns once they train, or at once if one of them is going to fail."""
    port = free_port()
    ranks = [
        CONTEXT.Process(target=child, args=(rank, port, shards, run_dir, failing_rank))
        for rank in range(3)
    ]
    for process in ranks:
        process.start()
    metrics = run_dir / "metrics.jsonl"
    began = time.monotonic()
    while failing_rank is None and not (metrics.exists() and metrics.read_text()):
        assert time.monotonic() - began < 60, "the run does not start"
        time.sleep(0.05)
    return ranks


def end(ranks: list[BaseProcess], but: int | None = None) -> list[int | None]:
    """Wait for all ranks but one, and return the exit codes of all."""
    for rank, process in enumerate(ranks):
        if rank != but:
            process.join(30)
    codes = [process.exitcode for process in ranks]
    for process in ranks:
        process.kill()
        process.join()
    return codes


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_status_names_the_lost_rank(how: signal.Signals, shards: Path, tmp_path: Path) -> None:
    """A killed rank is noticed at once, a frozen one after a while, although the others hang."""
    ranks, run_dir = start(shards, tmp_path / "run"), tmp_path / "run"
    os.kill(ranks[2].pid or 0, how)
    assert end(ranks, but=2)[:2] == [1, 1]
    status = json.loads((run_dir / "status.json").read_text())
    why = (
        "its process has ended (connection closed)"
        if how == signal.SIGKILL
        else "no sign of life for 3 s"
    )
    assert (status["state"], status["reason"]) == ("failed", f"lost rank 2 on {HOST}: {why}")
    assert run_dir.with_suffix(".0").read_text().count(f"lost rank 2 on {HOST}: {why}") >= 1


def test_other_ranks_name_a_lost_rank_zero(shards: Path, tmp_path: Path) -> None:
    """They end too, and report it in place of rank zero."""
    ranks = start(shards, tmp_path / "run")
    ranks[0].kill()
    assert end(ranks)[1:] == [1, 1]
    assert f"PeerLost: lost rank 0 on {HOST}" in (tmp_path / "run.1").read_text()


def test_status_has_the_error_of_the_rank_that_failed(shards: Path, tmp_path: Path) -> None:
    """Not the broken connection that the other ranks see."""
    assert end(start(shards, tmp_path / "run", failing_rank=1)) == [1, 1, 1]
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["reason"] == f"rank 1 on {HOST} failed: division by zero"
