"""The work inside packing: chunks of images become samples at their places in a shard file, on all cores.

Workers write what they decode straight into the file, each chunk at a place that is known beforehand since there is a
longest sample: no image crosses from one process to another. Gaps are closed once a shard is whole.
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
from shards.format.compressed import EncodedLayout
from shards.format.index import RAW, VERSION
from shards.format.raw import ShardLayout
from shards.images import BadImage, decode_image
from shards.order.permutation import order_key, sample_ids
from shards.sources.listing import Source

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
    """Consecutive slots of one shard, the file that takes their samples, and where in it."""

    shard: int
    file: str
    slots: range
    offset: int


class Written(NamedTuple):
    """What became of a chunk: bytes at its offset, spans of image files counted from there, and what is left out."""

    num_bytes: int
    spans: NDArray[np.int64]  # [n, 2]; of raw pixels none
    rejected: list[Rejected]


@dataclass(frozen=True)
class Packing:
    """What is packed and how: all that a worker needs to know.

    Every item of the source has a slot in the dataset; a shard is a range of slots. A broken image leaves its slot out.
    """

    source: Source
    layout: ShardLayout
    samples_per_shard: int
    encoded: EncodedLayout | None = None  # None: raw pixels

    @property
    def num_shards(self) -> int:
        return -(-len(self.source) // self.samples_per_shard)

    @property
    def plan(self) -> str:
        """The identity of this packing: with an equal one the bytes will be equal."""
        settings = [self.layout.image_shape, self.layout.cls, self.samples_per_shard]
        if self.encoded is not None:
            settings.append(self.encoded.quality)
        encoding = RAW if self.encoded is None else self.encoded.encoding
        parts = [VERSION, encoding, self.source.digest, self.source.class_names, settings]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def slots(self, shard: int) -> range:
        """The slots of a shard."""
        start = shard * self.samples_per_shard
        return range(start, min(start + self.samples_per_shard, len(self.source)))

    def chunks(self, shard: int, file: str = "") -> list[Chunk]:
        """The slots of a shard, cut into what a worker takes at a time."""
        slots, length = (
            self.slots(shard),
            max(1, min(_MAX_CHUNK, _MAX_CHUNK_BYTES // self.layout.stride)),
        )
        room = self.layout.stride if self.encoded is None else self.encoded.max_sample_bytes
        starts = range(0, len(slots), length)
        return [Chunk(shard, file, slots[start : start + length], start * room) for start in starts]

    def items(self, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        """The items of slots, in a fixed pseudo-random order, which mixes sources that are sorted by class."""
        return sample_ids(slots, num_samples=len(self.source), key=_STORED_ORDER_KEY)

    def write(self, chunk: Chunk) -> Written:
        """Decode a chunk's images and write their samples, but for broken ones."""
        slots = np.array(chunk.slots, np.int64)
        items = self.items(slots)
        labels = self.source.labels[items] if self.source.labels is not None else None
        channels, size, _ = self.layout.image_shape
        if self.encoded is None:
            rows = self.layout.blank(slots, labels)
            pixels = self.layout.pixels(rows)
        else:
            pixels = np.empty((len(slots), channels, size, size), np.uint8)
        rejected = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what Pillow finds odd but can read
            for row, item in enumerate(items.tolist()):
                name = self.source.names[item]
                try:
                    pixels[row] = decode_image(self.source.read(item), size=size, channels=channels)
                except BadImage as error:
                    rejected.append(Rejected(chunk.slots[row], name, str(error)))
                except OSError as error:
                    raise ShardError(
                        f"cannot read {name} ({error.strerror}): mend that and pack again"
                    ) from error
        kept = np.delete(np.arange(len(slots)), [image.slot - chunk.slots[0] for image in rejected])
        if self.encoded is None:
            data, spans = (rows[kept] if rejected else rows).tobytes(), np.empty((0, 2), np.int64)
        else:
            files = [self.encoded.encode(pixels[row]) for row in kept.tolist()]
            data, spans = self.encoded.join(
                slots[kept], files, None if labels is None else labels[kept]
            )
            assert len(data) <= len(kept) * self.encoded.max_sample_bytes, (
                "image files are longer than they can be"
            )
        # without O_CREAT: the worker of a killed pack must not bring its file back
        handle = os.open(chunk.file, os.O_WRONLY)
        try:
            pwrite_all(handle, data, chunk.offset)
        finally:
            os.close(handle)
        return Written(len(data), spans, rejected)


def run(
    packing: Packing, chunks: Iterable[Chunk], *, workers: int
) -> Generator[tuple[Chunk, Written]]:
    """Write all chunks, each yielded in its turn; with one worker in this process. Close the generator."""
    if workers == 1:
        for chunk in chunks:
            yield chunk, packing.write(chunk)
        return
    # spawned, since a fork would copy the locks of the caller's threads
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(
        workers, mp_context=spawn, initializer=_start_worker, initargs=(packing,)
    )
    ahead: deque[tuple[Chunk, Future[Written]]] = deque()
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
        raise ShardError(
            "a worker process died (out of memory?): pack again, with fewer --workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def pwrite_all(handle: int, data: bytes, offset: int) -> None:
    """Write all of `data` at `offset`: on a nearly full disk `os.pwrite` writes less and only then fails."""
    view = memoryview(data)
    while view:
        written = os.pwrite(handle, view, offset)
        view, offset = view[written:], offset + written


_packing_of_worker: (
    Packing  # set once in each worker process: a pool has no other way to keep what tasks share
)


def _start_worker(packing: Packing) -> None:
    global _packing_of_worker
    _packing_of_worker = packing
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=end_with_parent, daemon=True).start()


def end_with_parent() -> None:
    """Wait for the end of this process's parent, however it comes, and end too."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker has a parent"
    wait([parent.sentinel])
    os._exit(1)  # the pool's queue would keep the orphan waiting for ever


def _write_in_worker(chunk: Chunk) -> Written:
    return _packing_of_worker.write(chunk)
