"""A rank dies, hangs or fails: the others end soon, and say in one line which and where."""

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


class Nowhere:
    """Where the notes of a run go."""

    def put(self, result: object) -> None:
        """Dropped."""


def child(rank: int, port: int, shards: Path, run_dir: Path, failing_rank: int | None) -> None:
    """One of three ranks; speaks into a file of its own, waits seconds where users wait half minutes."""
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
    """Three ranks that train."""
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
    """Exit codes of all ranks but one, once they have ended."""
    for rank, process in enumerate(ranks):
        if rank != but:
            process.join(30)
    codes = [process.exitcode for process in ranks]
    for process in ranks:
        process.kill()
        process.join()
    return codes


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_the_lost_rank_is_named(how: signal.Signals, shards: Path, tmp_path: Path) -> None:
    """Killed: at once. Frozen, as behind a pulled cable: after a silence, though the others hang in a collective."""
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


def test_without_rank_zero_the_others_say_so(shards: Path, tmp_path: Path) -> None:
    """They end too, and name it."""
    ranks = start(shards, tmp_path / "run")
    ranks[0].kill()
    assert end(ranks)[1:] == [1, 1]
    assert f"PeerLost: lost rank 0 on {HOST}" in (tmp_path / "run.1").read_text()


def test_what_fails_on_one_rank_is_in_the_status(shards: Path, tmp_path: Path) -> None:
    """The words of the rank that failed, not the broken connection that the others see."""
    assert end(start(shards, tmp_path / "run", failing_rank=1)) == [1, 1, 1]
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["reason"] == f"rank 1 on {HOST} failed: division by zero"
