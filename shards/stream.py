"""An endless stream of batches in the global order, read ahead in a thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator
from contextlib import closing, nullcontext, suppress
from functools import partial
from multiprocessing.util import Finalize
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from shards.decoding import decoded_by_workers
from shards.errors import ShardError
from shards.order.permutation import Order
from shards.reader import ShardReader
from shards.remote.prefetch import Prefetcher

if TYPE_CHECKING:
    import torch

_MAX_JOIN_SEC = 5.0  # a thread in the middle of a download ends by itself, or with the process


class BatchStream(Iterator["torch.Tensor"]):
    """This rank's share, uint8 [batch_size / world, C, H, W], of one global batch after another, without an end.

    The global batch at position p holds positions p .. p + batch_size - 1 of the reader's order under `key`, of which
    rank r of `world` takes the r-th slice: the global order is the same for any world. Its whole state is `position`,
    of the batch that comes next. A thread reads `prefetch` batches ahead, into pinned memory where there is CUDA; what fails
    there is raised here. Encoded images are decoded by `workers` processes, by the thread where there are none. Close it,
    or use it as a context manager.
    """

    def __init__(
        self,
        reader: ShardReader,
        *,
        key: int,
        start: int,
        batch_size: int,
        rank: int = 0,
        world: int = 1,
        prefetch: int = 4,
        workers: int = 0,
    ) -> None:
        if batch_size < 1 or batch_size % world:
            raise ShardError(
                f"batch size {batch_size} does not divide among {world} processes: give a multiple"
            )
        assert 0 <= rank < world, f"rank {rank} is not in a world of {world}"
        self.position = start
        self._batch_size = batch_size
        self._queue: queue.Queue[torch.Tensor | BaseException] = queue.Queue(maxsize=prefetch)
        self._stop = threading.Event()
        share = batch_size // world
        first = start + rank * share
        order = reader.order(key, batch_size=batch_size)
        workers = workers if reader.index.is_encoded else 0
        reader.ordering.check_room(
            reader.files,
            reader.index,
            num_held=order.num_held(first, share),
            num_reading=max(1, workers),
        )
        self._thread = threading.Thread(
            target=_read_ahead,
            args=(reader, order, first, share, batch_size, workers, self._queue, self._stop),
            name="shards-batch-stream",
            daemon=True,  # a stream that nobody closed must not keep the process alive
        )
        self._thread.start()
        # The thread knows only the queue: a forgotten stream ends too. With a priority it also ends when the process does,
        # before multiprocessing waits for the workers, which only the thread can end.
        Finalize(self, self._stop.set, exitpriority=0)

    def __next__(self) -> torch.Tensor:
        if self._stop.is_set():
            raise StopIteration
        batch = self._queue.get()
        if isinstance(batch, BaseException):
            self.close()
            raise batch
        self.position += self._batch_size
        return batch

    def close(self) -> None:
        """End the thread; the stream is over."""
        self._stop.set()
        self._thread.join(_MAX_JOIN_SEC)

    def __enter__(self) -> BatchStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _read_ahead(
    reader: ShardReader,
    order: Order,
    first: int,
    share: int,
    step: int,
    workers: int,
    batches: queue.Queue[torch.Tensor | BaseException],
    stop: threading.Event,
) -> None:
    """Put this rank's batches at positions `first`, `first` + `step`, ... into the queue until told to stop."""

    def put(batch: torch.Tensor | BaseException) -> None:
        while not stop.is_set():
            with suppress(queue.Full):
                batches.put(batch, timeout=0.1)
                return

    try:
        import torch

        pinned = torch.cuda.is_available()
        block = step * np.arange(max(1, order.block // share))[:, None] + np.arange(share)

        def rows(position: int) -> Iterator[NDArray[np.int64]]:
            while True:
                yield from reader.rows(order.ids(position + block))
                position += step * len(block)

        def decoded_here() -> Generator[torch.Tensor]:
            for some in rows(first):
                batch = torch.empty(
                    (share, *reader.image_shape), dtype=torch.uint8, pin_memory=pinned
                )
                reader.gather_rows(some, out=batch.numpy())
                yield batch

        def decoded_elsewhere() -> Generator[torch.Tensor]:
            again = partial(ShardReader, reader.index, files=reader.files, ordering=reader.ordering)
            with closing(decoded_by_workers(again, rows(first), workers=workers)) as decoded:
                for batch in decoded:
                    yield batch.pin_memory() if pinned else batch

        needs = order.needs(first, share, step)
        with (
            (
                Prefetcher(
                    needs, hold=reader.hold, release=reader.release, stop=stop, position=first
                )
                if reader.files.remote
                else nullcontext()
            ) as ahead,
            closing(decoded_elsewhere() if workers else decoded_here()) as decoded,
        ):
            while not stop.is_set():
                if ahead is not None:
                    ahead.reach(first)
                put(next(decoded))
                first += step
    except BaseException as error:  # whatever it is, the consumer has to hear of it
        put(error)
