"""What packing, verifying and decoding share about worker processes."""

from __future__ import annotations

import mmap
import multiprocessing
import os
import pickle
import signal
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import Any, BinaryIO, TypeVar

from shards.errors import ShardError

_ITEMS_AHEAD = 16  # in flight per worker
_MIN_SHARED_BYTES = 2**20  # less is copied to each worker
Item = TypeVar("Item")
Result = TypeVar("Result")

# Spawned rather than forked: a fork would copy the locks of the caller's threads.
SPAWN = multiprocessing.get_context("spawn")
NEEDS_GUARD = 'needs `if __name__ == "__main__":` before what it does, since processes import it'


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
    shared = SharedTask(task)
    try:
        pool = ProcessPoolExecutor(
            workers, mp_context=SPAWN, initializer=_start_worker, initargs=(shared,)
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
            "a worker process died (out of memory?): repeat it with fewer --workers. A script of "
            f"your own {NEEDS_GUARD}"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)
        shared.close()


class SharedTask:
    """A task whose large arrays all processes map from one file, instead of a copy in each.

    The file has no name, so that it ends with this process. Small tasks need none, and without
    /proc, through which other processes open it, the arrays are copied.
    """

    def __init__(self, task: Callable[[Any], Any]) -> None:
        buffers: list[pickle.PickleBuffer] = []
        self._pickled = pickle.dumps(task, protocol=5, buffer_callback=buffers.append)
        self._sizes = [buffer.raw().nbytes for buffer in buffers]
        self._file: BinaryIO | None = None
        self._path = ""
        if sum(self._sizes) < _MIN_SHARED_BYTES or not os.path.exists("/proc/self/fd"):
            self._pickled, self._sizes = pickle.dumps(task, protocol=5), []
            return
        self._file = tempfile.TemporaryFile()  # noqa: SIM115
        self._path = f"/proc/{os.getpid()}/fd/{self._file.fileno()}"
        for buffer in buffers:
            self._file.write(buffer.raw())
        self._file.flush()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_file": None}

    def load(self) -> Callable[[Any], Any]:
        """Return the task; its arrays cannot be written to."""
        buffers, start = [], 0
        if self._sizes:
            with open(self._path, "rb") as file:
                mapped = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            for size in self._sizes:
                buffers.append(mapped[start : start + size])
                start += size
        task: Callable[[Any], Any] = pickle.loads(self._pickled, buffers=buffers)
        return task

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


# Set once in each worker process: a pool has no other way to keep what all items share.
_task_of_worker: Callable[[Any], Any]


def _start_worker(shared: SharedTask) -> None:
    global _task_of_worker
    _task_of_worker = shared.load()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    # Otherwise an orphan would wait on the pool's queue without end.
    threading.Thread(target=exit_with_parent, daemon=True).start()


def _run_in_worker(item: Any) -> Any:
    return _task_of_worker(item)
