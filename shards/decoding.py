"""Processes that decode the batches of a stream ahead, in order: torch's DataLoader, made to live and die with its stream.

rows of a batch ──DataLoader──> worker process: gather ──shared memory──> uint8 [b, C, H, W]
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from shards.errors import ShardError
from shards.files import usable_cores
from shards.pack_workers import end_with_parent

if TYPE_CHECKING:
    import torch

    from shards.reader import ShardReader

MAX_WORKERS = 16  # where their number is not chosen
DEAF_TO = {
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGUSR1,
}  # what a trainer answers with a checkpoint


def fair_workers() -> int:
    """The cores of this process's share but one, at most MAX_WORKERS."""
    return min(
        MAX_WORKERS, max(0, usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) - 1)
    )


def decoded_by_workers(
    open_reader: Callable[[], ShardReader], rows: Iterator[NDArray[np.int64]], *, workers: int
) -> Generator[torch.Tensor]:
    """The images uint8 [b, C, H, W] of each of `rows`, in their order. Close it: that ends the processes.

    Each of `workers` processes opens a reader of its own. Raises ShardError for what they could not read, and where one
    has died.
    """
    import torch
    from torch.utils.data import DataLoader

    loader: Any = DataLoader(
        _RemoteGather(open_reader),  # type: ignore[arg-type]
        sampler=rows,
        batch_size=None,
        num_workers=workers,
        multiprocessing_context="spawn",  # a fork server would die of the signals that trainers outlive
        worker_init_fn=_live_with_parent,
        generator=torch.Generator(),  # or else the seed of the workers would be drawn from the run's own
    )
    with _deaf_children():
        batches = iter(loader)
    try:
        while True:
            try:
                batch = next(batches)
            # torch says that one died, or what the dead one was handing over is lost
            except (RuntimeError, OSError, EOFError) as error:
                if not wait([worker.sentinel for worker in batches._workers], timeout=1.0):
                    raise  # they all live
                raise ShardError(
                    "a process that decodes images died (out of memory, or of /dev/shm?): start again, with fewer data.workers"
                ) from error
            if isinstance(batch, ShardError):
                raise batch
            yield batch
    finally:
        batches._shutdown_workers()
        for worker in batches._workers:
            worker.kill()  # torch leaves them to SIGTERM where one hangs, and where Python ends


class _RemoteGather:
    """What a worker does: rows to images, or to the error that says why there are none."""

    def __init__(self, open_reader: Callable[[], ShardReader]) -> None:
        self._open_reader = open_reader
        self._reader: ShardReader | None = None

    def __getitem__(self, rows: NDArray[np.int64]) -> torch.Tensor | ShardError:
        import torch

        try:
            if self._reader is None:
                self._reader = self._open_reader()
            return torch.from_numpy(self._reader.gather_rows(rows))
        except ShardError as error:
            return error  # raised here, it would arrive with a traceback in its message


def _live_with_parent(_: int) -> None:
    """End with the parent, even where it is killed."""
    threading.Thread(target=end_with_parent, daemon=True).start()


@contextmanager
def _deaf_children() -> Iterator[None]:
    """Processes started meanwhile leave signals to their parent, which may want a batch more before it ends."""
    resource_tracker.ensure_running()  # its own start would undo the mask
    before = signal.pthread_sigmask(signal.SIG_BLOCK, DEAF_TO)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
