"""The parallel part of packing: chunks of images become samples at their places in a shard file.

Workers decode images and write the samples straight into the file. The place of each chunk is known
in advance, since samples have a maximum length, so no image crosses from one process to another.
Gaps are closed once a shard is complete.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import threading
import warnings
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shards.errors import ShardError
from shards.format.compressed import CompressedLayout
from shards.format.index import RAW, VERSION
from shards.format.raw import RawLayout
from shards.images import BadImage, decode_image
from shards.order.permutation import order_key, sample_ids
from shards.processes import SPAWN, exit_with_parent
from shards.sources.source import Source

_CHUNKS_AHEAD = 16  # in flight per worker
_MAX_CHUNK_IMAGES = 128
_MAX_CHUNK_BYTES = 2**24
_STORED_ORDER_KEY = order_key("stored order", 0)


class Rejected(NamedTuple):
    """An image that could not be used."""

    slot: int
    name: str
    reason: str


class Chunk(NamedTuple):
    """Consecutive slots of one shard, the file for their samples, and the offset in it."""

    shard: int
    file: str
    slots: range
    offset: int


class Written(NamedTuple):
    """The result of a chunk: bytes written at its offset, and the images that were left out."""

    num_bytes: int
    spans: NDArray[np.int64]  # [n, 2], counted from the chunk's offset; empty for raw pixels
    rejected: list[Rejected]


@dataclass(frozen=True)
class Packing:
    """What is packed and how: all that a worker needs to know.

    Every item of the source has a slot in the dataset, and a shard is a range of slots. The slot of
    a broken image remains unused.
    """

    source: Source
    raw: RawLayout
    samples_per_shard: int
    compressed: CompressedLayout | None = None  # None: raw pixels

    @property
    def num_shards(self) -> int:
        return -(-len(self.source) // self.samples_per_shard)

    @property
    def plan(self) -> str:
        """The identity of this packing: an equal plan gives equal bytes."""
        settings = [self.raw.image_shape, self.raw.cls, self.samples_per_shard]
        if self.compressed is not None:
            settings.append(self.compressed.quality)
        encoding = RAW if self.compressed is None else self.compressed.encoding
        parts = [VERSION, encoding, self.source.digest, self.source.class_names, settings]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def slots(self, shard: int) -> range:
        """Return the slots of a shard."""
        start = shard * self.samples_per_shard
        return range(start, min(start + self.samples_per_shard, len(self.source)))

    def chunks(self, shard: int, file: str = "") -> list[Chunk]:
        """Split the slots of a shard into parts, one for each task of a worker."""
        slots = self.slots(shard)
        length = max(1, min(_MAX_CHUNK_IMAGES, _MAX_CHUNK_BYTES // self.raw.stride))
        room = self.raw.stride if self.compressed is None else self.compressed.max_sample_bytes
        starts = range(0, len(slots), length)
        return [Chunk(shard, file, slots[start : start + length], start * room) for start in starts]

    def items(self, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the items of slots, in a fixed permutation that mixes sorted sources."""
        return sample_ids(slots, num_samples=len(self.source), key=_STORED_ORDER_KEY)

    def write(self, chunk: Chunk) -> Written:
        """Decode the images of a chunk and write their samples, except for broken images."""
        slots = np.array(chunk.slots, np.int64)
        items = self.items(slots)
        labels = self.source.labels[items] if self.source.labels is not None else None
        rows = pixels = np.empty((len(slots), *self.raw.image_shape), np.uint8)
        if self.compressed is None:
            rows = self.raw.blank(slots, labels)
            pixels = self.raw.pixels(rows)
        rejected = self._decode_into(pixels, chunk.slots, items)
        kept = np.delete(np.arange(len(slots)), [image.slot - chunk.slots[0] for image in rejected])
        spans = np.empty((0, 2), np.int64)
        if self.compressed is None:
            data = (rows[kept] if rejected else rows).tobytes()
        else:
            files = [self.compressed.encode(pixels[row]) for row in kept.tolist()]
            kept_labels = None if labels is None else labels[kept]
            data, spans = self.compressed.join(slots[kept], files, kept_labels)
            is_short = len(data) <= len(kept) * self.compressed.max_sample_bytes
            assert is_short, "image files are longer than their limit"
        # Without O_CREAT, so that a worker of a killed pack cannot bring its file back.
        handle = os.open(chunk.file, os.O_WRONLY)
        try:
            pwrite_all(handle, data, chunk.offset)
        finally:
            os.close(handle)
        return Written(len(data), spans, rejected)

    def _decode_into(
        self, pixels: NDArray[np.uint8], slots: range, items: NDArray[np.int64]
    ) -> list[Rejected]:
        """Decode items into `pixels` [n, C, H, W] and return those that are broken."""
        channels, size, _ = self.raw.image_shape
        rejected = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's about odd but readable content
            for row, item in enumerate(items.tolist()):
                name = self.source.names[item]
                try:
                    pixels[row] = decode_image(self.source.read(item), size=size, channels=channels)
                except BadImage as error:
                    rejected.append(Rejected(slots[row], name, str(error)))
                except OSError as error:
                    raise ShardError(
                        f"cannot read {name} ({error.strerror}): resolve that and pack again"
                    ) from error
        return rejected


def run(
    packing: Packing, chunks: Iterable[Chunk], *, workers: int
) -> Generator[tuple[Chunk, Written]]:
    """Write all chunks and yield each in turn. With one worker, work in this process.

    Close the generator: that ends the processes.
    """
    if workers == 1:
        for chunk in chunks:
            yield chunk, packing.write(chunk)
        return
    pool = ProcessPoolExecutor(
        workers, mp_context=SPAWN, initializer=_start_worker, initargs=(packing,)
    )
    ahead: deque[tuple[Chunk, Future[Written]]] = deque()
    try:
        for chunk in chunks:
            ahead.append((chunk, pool.submit(_write_in_worker, chunk)))
            if len(ahead) == workers * _CHUNKS_AHEAD:
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
    """Write all of `data` at `offset`.

    On a nearly full disk `os.pwrite` first writes less than it was given, and only then fails.
    """
    view = memoryview(data)
    while view:
        written = os.pwrite(handle, view, offset)
        view, offset = view[written:], offset + written


# Set once in each worker process: a pool has no other way to keep what all tasks share.
_packing_of_worker: Packing


def _start_worker(packing: Packing) -> None:
    global _packing_of_worker
    _packing_of_worker = packing
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    # Otherwise an orphan would wait on the pool's queue without end.
    threading.Thread(target=exit_with_parent, daemon=True).start()


def _write_in_worker(chunk: Chunk) -> Written:
    return _packing_of_worker.write(chunk)
