"""The work inside packing: chunks of images become samples at their places in a shard file, on all cores.

Workers write what they decode straight into the file, at offsets known beforehand since all samples have one length:
no image crosses from one process to another.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import threading
import warnings
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shards.errors import ShardError
from shards.images import BadImage, decode_image
from shards.index import ENCODING, VERSION
from shards.layout import ShardLayout
from shards.listing import Source
from shards.order import order_key, sample_ids

_LOOK_AHEAD = 16  # chunks in flight for each worker
_MAX_CHUNK = 128  # images
_MAX_CHUNK_BYTES = 2**24
_STORED_ORDER_KEY = order_key("stored order", 0)


class Rejected(NamedTuple):
    """An image that could not be used."""

    slot: int
    name: str
    reason: str


class Chunk(NamedTuple):
    """Consecutive slots of one shard, and the file that takes their samples."""

    shard: int
    file: str
    slots: range


@dataclass(frozen=True)
class Packing:
    """What is packed and how: all that a worker needs to know.

    Every item of the source has a slot in the dataset; a shard is a range of slots. A broken image leaves its slot out.
    """

    source: Source
    layout: ShardLayout
    samples_per_shard: int

    @property
    def num_shards(self) -> int:
        return -(-len(self.source) // self.samples_per_shard)

    @property
    def plan(self) -> str:
        """The identity of this packing: with an equal one the bytes will be equal."""
        settings = [self.layout.image_shape, self.layout.cls, self.samples_per_shard]
        parts = [VERSION, ENCODING, self.source.digest, self.source.class_names, settings]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def slots(self, shard: int) -> range:
        """The slots of a shard."""
        start = shard * self.samples_per_shard
        return range(start, min(start + self.samples_per_shard, len(self.source)))

    def chunks(self, shard: int) -> list[range]:
        """The slots of a shard, cut into what a worker takes at a time."""
        slots, length = self.slots(shard), max(1, min(_MAX_CHUNK, _MAX_CHUNK_BYTES // self.layout.stride))
        return [slots[start : start + length] for start in range(0, len(slots), length)]

    def items(self, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        """The items of slots, in a fixed pseudo-random order, which mixes sources that are sorted by class."""
        return sample_ids(slots, num_samples=len(self.source), key=_STORED_ORDER_KEY)

    def write(self, chunk: Chunk) -> list[Rejected]:
        """Decode a chunk's images and write their samples; the place of a broken image holds nothing of use."""
        slots = np.array(chunk.slots, np.int64)
        items = self.items(slots)
        rows = self.layout.blank(slots, self.source.labels[items] if self.source.labels is not None else None)
        pixels, rejected = self.layout.pixels(rows), []
        channels, size, _ = self.layout.image_shape
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what Pillow finds odd but can read
            for row, item in enumerate(items.tolist()):
                name = self.source.names[item]
                try:
                    pixels[row] = decode_image(self.source.read(item), size=size, channels=channels)
                except BadImage as error:
                    rejected.append(Rejected(chunk.slots[row], name, str(error)))
                except OSError as error:
                    raise ShardError(f"cannot read {name} ({error.strerror}): mend that and pack again") from error
        # without O_CREAT: the worker of a killed pack must not bring its file back
        handle = os.open(chunk.file, os.O_WRONLY)
        try:
            pwrite_all(handle, rows.tobytes(), (chunk.slots[0] - self.slots(chunk.shard)[0]) * self.layout.stride)
        finally:
            os.close(handle)
        return rejected


def run(packing: Packing, chunks: Iterable[Chunk], *, workers: int) -> Generator[tuple[Chunk, list[Rejected]]]:
    """Write all chunks, each yielded in its turn; with one worker in this process. Close the generator."""
    if workers == 1:
        for chunk in chunks:
            yield chunk, packing.write(chunk)
        return
    # spawned, since a fork would copy the locks of the caller's threads
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=spawn, initializer=_start_worker, initargs=(packing,))
    ahead: deque[tuple[Chunk, Future[list[Rejected]]]] = deque()
    try:
        for chunk in chunks:
            ahead.append((chunk, pool.submit(_write_in_worker, chunk)))
            if len(ahead) == workers * _LOOK_AHEAD:
                first, written = ahead.popleft()
                yield first, written.result()
        while ahead:
            first, written = ahead.popleft()
            yield first, written.result()
    except BrokenProcessPool as error:
        raise ShardError("a worker process died (out of memory?): pack again, with fewer --workers") from error
    finally:
        pool.shutdown(cancel_futures=True)


def pwrite_all(handle: int, data: bytes, offset: int) -> None:
    """Write all of `data` at `offset`: on a nearly full disk `os.pwrite` writes less and only then fails."""
    view = memoryview(data)
    while view:
        written = os.pwrite(handle, view, offset)
        view, offset = view[written:], offset + written


_packing_of_worker: Packing  # set once in each worker process: a pool has no other way to keep what tasks share


def _start_worker(packing: Packing) -> None:
    global _packing_of_worker
    _packing_of_worker = packing
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker has a parent"
    wait([parent.sentinel])
    os._exit(1)  # the pool's queue would keep the orphan waiting for ever


def _write_in_worker(chunk: Chunk) -> list[Rejected]:
    return _packing_of_worker.write(chunk)
