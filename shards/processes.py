"""What packing, verifying and decoding share about worker processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import Any, TypeVar

from shards.errors import ShardError

_ITEMS_AHEAD = 16  # in flight per worker
Item = TypeVar("Item")
Result = TypeVar("Result")

# Spawned rather than forked: a fork would copy the locks of the caller's threads.
SPAWN = multiprocessing.get_context("spawn")


def num_usable_cores() -> int:
    """Return how many cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def exit_with_parent() -> None:
    """Wait until the parent of this worker has ended, even by SIGKILL, and then exit."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker has a parent"
    wait([parent.sentinel])
    os._exit(1)


def run(
    task: Callable[[Item], Result], items: Iterable[Item], *, workers: int
) -> Generator[tuple[Item, Result]]:
    """Yield each item with the result of `task`, in order. One worker means this process.

    Close the generator: that ends the processes.
    """
    if workers == 1:
        for item in items:
            yield item, task(item)
        return
    try:
        pool = ProcessPoolExecutor(
            workers, mp_context=SPAWN, initializer=_start_worker, initargs=(task,)
        )
    except OSError as error:
        raise ShardError(
            f"worker processes cannot share locks, which Linux keeps in /dev/shm "
            f"({error.strerror or error}): give --workers 1"
        ) from error
    ahead: deque[tuple[Item, Future[Result]]] = deque()
    try:
        for item in items:
            ahead.append((item, pool.submit(_run_in_worker, item)))
            if len(ahead) == workers * _ITEMS_AHEAD:
                first, future = ahead.popleft()
                yield first, future.result()
        while ahead:
            first, future = ahead.popleft()
            yield first, future.result()
    except BrokenProcessPool as error:
        raise ShardError(
            "a worker process died (out of memory?): repeat it with fewer --workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


# Set once in each worker process: a pool has no other way to keep what all items share.
_task_of_worker: Callable[[Any], Any]


def _start_worker(task: Callable[[Any], Any]) -> None:
    global _task_of_worker
    _task_of_worker = task
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    # Otherwise an orphan would wait on the pool's queue without end.
    threading.Thread(target=exit_with_parent, daemon=True).start()


def _run_in_worker(item: Any) -> Any:
    return _task_of_worker(item)
