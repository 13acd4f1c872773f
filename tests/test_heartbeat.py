"""If a rank dies, hangs or fails, the others end within seconds and name it in one line."""

import json
import os
import platform
import signal
import socket
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from distgan.runtime.distributed import World
from distgan.runtime.heartbeat import Heartbeat, listen
from tests.worlds import CONTEXT, free_port, run_world, train_run

HOST = platform.node()
HOUR = 3600.0


def child(
    rank: int, port: int, shards: Path, run_dir: Path, faults: dict[int, str], grace_sec: float
) -> None:
    """Train as one of three ranks, with short timeouts, and write all output to a file."""
    import distgan.data
    import distgan.trainer
    from distgan.runtime import heartbeat

    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ |= {"WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "3"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    sys.stdout = sys.stderr = run_dir.with_suffix(f".{rank}").open("w", buffering=1)
    heartbeat.BEAT_SEC, heartbeat.SILENCE_SEC, heartbeat.GRACE_SEC = 0.2, 3.0, grace_sec
    next_batch, num_batches = distgan.data.BatchStream.__next__, 0

    def faulty(stream: Any) -> Any:
        nonlocal num_batches
        num_batches += 1
        if faults[rank] == "fails":
            raise ZeroDivisionError("division by zero")
        if num_batches == 20:
            print("hangs")
            time.sleep(HOUR)
        return next_batch(stream)

    if faults.get(rank) == "dies early":
        distgan.trainer.build_gan = lambda *_, **__: os._exit(1)
    elif rank in faults:
        distgan.data.BatchStream.__next__ = faulty  # type: ignore[method-assign]
    try:
        train_run(shards, run_dir, ["train.kimg=600"])
    except BaseException as error:
        print(f"ended by {type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(1)


def start(
    shards: Path, run_dir: Path, faults: dict[int, str] | None = None, *, grace_sec: float = 1.0
) -> list[BaseProcess]:
    """Start three ranks, some of which may hang or fail; returns once they train."""
    port, faults = free_port(), faults or {}
    ranks = [
        CONTEXT.Process(target=child, args=(rank, port, shards, run_dir, faults, grace_sec))
        for rank in range(3)
    ]
    for process in ranks:
        process.start()
    metrics = run_dir / "metrics.jsonl"
    if not {"fails", "dies early"} & set(faults.values()):
        wait_until(lambda: metrics.exists() and bool(metrics.read_text()), "the first metrics")
    return ranks


def wait_until(condition: Callable[[], bool], what: str, timeout: float = 60) -> None:
    """Wait for a condition; AssertionError after `timeout` seconds."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < timeout, f"waited {timeout:g} s for {what}"
        time.sleep(0.05)


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


def recorded(run_dir: Path) -> tuple[str, str]:
    """Return the state and the reason in status.json."""
    status = json.loads((run_dir / "status.json").read_text())
    return status["state"], status["reason"]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_status_names_the_lost_rank(how: signal.Signals, shards: Path, tmp_path: Path) -> None:
    """A killed rank is noticed at once, a frozen one after a while, although the others hang."""
    ranks, run_dir = start(shards, tmp_path / "run"), tmp_path / "run"
    os.kill(ranks[2].pid or 0, how)
    assert end(ranks, but=2)[:2] == [1, 1]
    killed, frozen = "its process has ended (connection closed)", "no sign of life for 3 s"
    reason = f"lost rank 2 on {HOST}: {killed if how == signal.SIGKILL else frozen}"
    assert recorded(run_dir) == ("failed", reason)
    assert run_dir.with_suffix(".0").read_text().count(reason) >= 1


def test_other_ranks_name_a_lost_rank_zero(shards: Path, tmp_path: Path) -> None:
    """They end too, and report it in place of rank zero."""
    ranks = start(shards, tmp_path / "run")
    ranks[0].kill()
    assert end(ranks)[1:] == [1, 1]
    assert f"RankLost: lost rank 0 on {HOST}" in (tmp_path / "run.1").read_text()


def test_status_has_the_error_of_the_rank_that_failed(shards: Path, tmp_path: Path) -> None:
    """Not the broken connection that the other ranks see."""
    assert end(start(shards, tmp_path / "run", {1: "fails"})) == [1, 1, 1]
    assert recorded(tmp_path / "run")[1] == f"rank 1 on {HOST} failed: division by zero"


def test_a_rank_that_dies_before_the_first_step_is_named(shards: Path, tmp_path: Path) -> None:
    """Not the collective that failed while the networks were built."""
    assert end(start(shards, tmp_path / "run", {2: "dies early"})) == [1, 1, 1]
    for rank in (0, 1):
        output = (tmp_path / f"run.{rank}").read_text()
        assert f"RankLost: lost rank 2 on {HOST}: its process has ended" in output


def test_a_loss_is_recorded_while_rank_zero_hangs(shards: Path, tmp_path: Path) -> None:
    """NCCL may end a process that hangs in a collective, so the status does not wait for it."""
    ranks, run_dir = start(shards, tmp_path / "run", {0: "hangs"}, grace_sec=HOUR), tmp_path / "run"
    output = run_dir.with_suffix(".0")
    wait_until(lambda: "hangs" in output.read_text(), "rank zero to hang")
    ranks[2].kill()
    wait_until(lambda: recorded(run_dir)[0] == "failed", "the status", timeout=20)
    assert ranks[0].is_alive()
    assert recorded(run_dir)[1].startswith(f"lost rank 2 on {HOST}")
    for process in ranks:
        process.kill()
        process.join()


def steps_with_a_slow_rank(slow_step: int) -> int:
    """Take three steps, one of which rank 1 begins 3 s late, with a step timeout of 1 s."""
    import torch
    import torch.distributed as dist

    from distgan.runtime import heartbeat as module
    from distgan.runtime.distributed import current_world

    module.STEP_TIMEOUT = timedelta(seconds=1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=1))
    heartbeat = module.Heartbeat(current_world())
    for step in range(3):
        heartbeat.should_stop(False)
        if (dist.get_rank(), step) == (1, slow_step):
            time.sleep(3)
        dist.all_reduce(torch.ones(1))
    heartbeat.close()
    return step + 1


def test_slow_work_before_the_first_step_is_waited_for() -> None:
    """A rank may load images or compile for longer than a collective of a later step may take."""
    assert run_world(2, steps_with_a_slow_rank, 0) == [3, 3]


def test_a_rank_that_misses_a_collective_ends_the_run() -> None:
    """Once training has begun, the collectives' timeout is short."""
    with pytest.raises(AssertionError, match=r"(?i)timed? ?out"):
        run_world(2, steps_with_a_slow_rank, 2)


def test_other_programs_that_connect_are_turned_away() -> None:
    """Such as a scan of ports, over IPv6 if the machine has it; then the rank is connected."""
    heartbeat = Heartbeat(World(0, 1))  # connects nobody
    heartbeat.world = World(0, 2)
    server = listen(backlog=8)
    port = server.getsockname()[1]
    host = "::1" if server.family == socket.AF_INET6 else "127.0.0.1"
    greetings = (b"\x16\x03\x01\x02\x00\xff\n", b"x" * 5000, b"word\n", b"token 1 node1\n")
    links = []
    for greeting, address in zip(greetings, ("127.0.0.1", host, host, host), strict=True):
        links.append(socket.create_connection((address, port)))
        links[-1].sendall(greeting)
    heartbeat.accept_all(server, "token")
    assert list(heartbeat.links) == [1]
    for link in [*links, heartbeat.links[1].socket]:
        link.close()


def handling_when_the_group_is_made() -> str | None:
    """Return how NCCL is going to handle errors, as it reads it when a group is created."""
    import torch.distributed as dist

    from distgan.config.schema import Train
    from distgan.runtime.accelerator import build_accelerator

    create, found = dist.init_process_group, []

    def noting(*args: Any, **kwargs: Any) -> None:
        found.append(os.environ.get("TORCH_NCCL_ASYNC_ERROR_HANDLING"))
        create(*args, **kwargs)

    dist.init_process_group = noting
    build_accelerator(Train())
    return found[0]


def test_nccl_does_not_end_the_process() -> None:
    """It only aborts its communicator: 2 is CleanUpOnly, the default 3 ends the process."""
    assert run_world(2, handling_when_the_group_is_made) == ["2", "2"]
