"""An endless stream of batches in the global order, read ahead in a thread.

position ──order──> ids ──reader.gather, or DecodeWorkers──> queue ──> BatchStream.__next__
             └──needs──> Prefetcher (threads, if the shards are remote)
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from multiprocessing.util import Finalize
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from shards.decode_workers import DecodeWorkers
from shards.order.permutation import Order
from shards.order.rank import RankSlice
from shards.reader import ShardReader
from shards.remote.prefetch import Prefetcher

TENSOR_TYPE = {np.dtype(np.uint8): torch.uint8, np.dtype("<u2"): torch.int16}
_MAX_JOIN_SEC = 5.0  # a thread that is downloading ends by itself, or with the process


class BatchStream(Iterator[torch.Tensor]):
    """The slice of one rank, [batch_size / world_size, C, H, W], of one batch after another.

    It is uint8, or int16 with the bits of uint16, for which torch has few operations.

    The batches are those of `RankSlice` in the reader's order under `key`. The whole state is
    `position`, that of the next batch. A thread reads `prefetch` batches ahead, into pinned memory
    if `pin_memory`; its errors are raised here. Compressed images are decoded by `workers`
    processes, or by the thread if there are none. Close it, or use it as a context manager.
    """

    def __init__(
        self,
        reader: ShardReader,
        *,
        key: int,
        start: int,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        prefetch: int = 4,
        workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        rank_slice = RankSlice.of_rank(rank, world_size, start=start, batch_size=batch_size)
        order = reader.make_order(key, batch_size=batch_size)
        workers = workers if reader.index.is_compressed else 0
        reader.order_settings.check_cache_size(
            reader.files,
            reader.index,
            num_needed=order.max_needed_shards(rank_slice.first, rank_slice.count),
            num_readers=max(1, workers),
        )
        self.position = start
        self._batch_size = batch_size
        self._batches: queue.Queue[torch.Tensor | BaseException] = queue.Queue(maxsize=prefetch)
        self._stop = stop = threading.Event()
        decoders = None
        if workers:
            decoders = DecodeWorkers(reader, rank_slice, key=key, num_workers=workers, stop=stop)
        self._thread = threading.Thread(
            target=_read_ahead,
            args=(reader, order, rank_slice, decoders, pin_memory, self._batches, stop),
            name="shards-batch-stream",
            daemon=True,  # a stream that nobody closed must not keep the process alive
        )
        self._thread.start()
        # The thread does not refer to the stream, so a forgotten stream ends, too. With a priority
        # it also ends before multiprocessing waits, at exit, for the workers that it must end.
        Finalize(self, stop.set, exitpriority=0)

    def __next__(self) -> torch.Tensor:
        if self._stop.is_set():
            raise StopIteration
        batch = self._batches.get()
        if isinstance(batch, BaseException):
            self.close()
            raise batch
        self.position += self._batch_size
        return batch

    def close(self) -> None:
        """End the stream and its thread."""
        self._stop.set()
        self._thread.join(_MAX_JOIN_SEC)

    def __enter__(self) -> BatchStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _read_ahead(
    reader: ShardReader,
    order: Order,
    rank_slice: RankSlice,
    decoders: DecodeWorkers | None,
    pin_memory: bool,
    batches: queue.Queue[torch.Tensor | BaseException],
    stop: threading.Event,
) -> None:
    """Put the batches of a rank into the queue until `stop` is set, or the error that ends it."""
    try:
        read_into = _gather_into(reader, order, rank_slice) if not decoders else decoders.read_into
        shape = (rank_slice.count, *reader.image_shape)
        stored, dtype = reader.dtype, TENSOR_TYPE[reader.dtype]
        position = rank_slice.first
        with _prefetcher(reader, order, rank_slice, stop) as prefetcher:
            while not stop.is_set():
                if prefetcher is not None:
                    prefetcher.advance(position)
                batch = torch.empty(shape, dtype=dtype, pin_memory=pin_memory)
                read_into(batch.numpy().view(stored))
                _put(batches, batch, stop)
                position += rank_slice.step
    except BaseException as error:  # whatever it is, the consumer has to know
        _put(batches, error, stop)
    finally:
        if decoders is not None:
            decoders.close()


def _gather_into(
    reader: ShardReader, order: Order, rank_slice: RankSlice
) -> Callable[[NDArray[Any]], None]:
    """Return a function that reads, and decodes if needed, one batch after another."""
    batches = rank_slice.batches(order)

    def read_into(out: NDArray[Any]) -> None:
        reader.gather(next(batches), out=out)

    return read_into


def _prefetcher(
    reader: ShardReader, order: Order, rank_slice: RankSlice, stop: threading.Event
) -> AbstractContextManager[Prefetcher | None]:
    """Return what fetches remote shards ahead, or None for local ones."""
    if not reader.files.remote:
        return nullcontext()
    first, count = rank_slice.first, rank_slice.count
    return Prefetcher(
        order.needs(first, count, rank_slice.step),
        keep=reader.keep,
        release=reader.release,
        stop=stop,
        position=first,
    )


def _put(
    batches: queue.Queue[torch.Tensor | BaseException],
    batch: torch.Tensor | BaseException,
    stop: threading.Event,
) -> None:
    while not stop.is_set():
        with suppress(queue.Full):
            batches.put(batch, timeout=0.1)
            return
