"""The parallel part of packing: chunks of images become samples at their places in a shard file.

Workers decode images and write the samples straight into the file. The place of each chunk is known
in advance, since samples have a maximum length, so no image crosses from one process to another.
Gaps are closed once a shard is complete.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shards.errors import BadImage, ShardError
from shards.format.compressed import CompressedLayout
from shards.format.index import RAW, VERSION
from shards.format.raw import RawLayout
from shards.images import Fit, decode_image
from shards.order.permutation import order_key, sample_ids
from shards.sources.source import Source

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
    digests: bytes  # see Packing.digests


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
    fit: Fit = "crop"
    background: str = "white"  # of transparent images, if alpha is not kept
    bands: tuple[int, ...] | None = None  # channels to take, from 1; None: all of them
    any_bits: bool = False  # whether images of the other depth are converted

    @property
    def num_shards(self) -> int:
        return -(-len(self.source) // self.samples_per_shard)

    @property
    def plan(self) -> str:
        """The identity of this packing: an equal plan gives equal bytes."""
        settings = [self.raw.image_shape, self.raw.cls, self.samples_per_shard]
        if self.compressed is not None:
            settings.append(self.compressed.quality)
        if self.fit != "crop":
            settings.append(self.fit)
        pixels = {"bits": self.raw.bits, "background": self.background, "bands": self.bands}
        usual = {"bits": 8, "background": "white", "bands": None}
        if pixels != usual:
            settings.append(pixels)
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

    def stamp(self, shard: int) -> str:
        """Return what changes once any file of a shard's items was written or replaced."""
        items = self.items(np.array(self.slots(shard), np.int64))
        return hashlib.sha256(self.source.stamps(items).astype("<i8").tobytes()).hexdigest()

    def digests(self, chunk: Chunk) -> bytes:
        """Return the sha256 digests of the files of a chunk, one after another."""
        items = self.items(np.array(chunk.slots, np.int64)).tolist()
        return b"".join(self._read(item)[1] for item in items)

    def write(self, chunk: Chunk) -> Written:
        """Decode the images of a chunk and write their samples, except for broken images."""
        slots = np.array(chunk.slots, np.int64)
        items = self.items(slots)
        labels = self.source.labels[items] if self.source.labels is not None else None
        rows: NDArray[np.uint8] = np.empty((len(slots), 0), np.uint8)
        pixels = np.empty((len(slots), *self.raw.image_shape), np.uint8)
        if self.compressed is None:
            rows = self.raw.blank(slots, labels)
            pixels = self.raw.pixels(rows)
        rejected, digests = self._decode_into(pixels, chunk.slots, items)
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
        return Written(len(data), spans, rejected, digests)

    def _decode_into(
        self, pixels: NDArray[Any], slots: range, items: NDArray[np.int64]
    ) -> tuple[list[Rejected], bytes]:
        """Decode items into `pixels` [n, C, H, W]; return those that are broken, and digests."""
        rejected, digests = [], []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's about odd but readable content
            for row, item in enumerate(items.tolist()):
                data, digest = self._read(item)
                digests.append(digest)
                try:
                    if isinstance(data, BadImage):
                        raise data
                    pixels[row] = self.decode(data)
                except BadImage as error:
                    rejected.append(Rejected(slots[row], self.source.names[item], str(error)))
        return rejected, b"".join(digests)

    def decode(self, data: bytes | NDArray[Any]) -> NDArray[Any]:
        """Return an image as it is packed, [C, H, W]; raises BadImage."""
        channels, height, width = self.raw.image_shape
        return decode_image(
            data, size=(height, width), channels=channels, bits=self.raw.bits, fit=self.fit,
            background=self.background, bands=self.bands, any_bits=self.any_bits,
        )  # fmt: skip

    def _read(self, item: int) -> tuple[bytes | NDArray[np.uint8] | BadImage, bytes]:
        """Return an item's data, or why it is broken, and the sha256 digest of its file."""
        try:
            data = self.source.read(item)
        except BadImage as error:
            return error, hashlib.sha256(str(error).encode()).digest()
        except OSError as error:
            raise ShardError(
                f"cannot read {self.source.names[item]} ({error.strerror}): "
                "resolve that and pack again"
            ) from error
        return data, hashlib.sha256(data).digest() if isinstance(data, bytes) else b""


def pwrite_all(handle: int, data: bytes, offset: int) -> None:
    """Write all of `data` at `offset`.

    On a nearly full disk `os.pwrite` first writes less than it was given, and only then fails.
    """
    view = memoryview(data)
    while view:
        written = os.pwrite(handle, view, offset)
        view, offset = view[written:], offset + written
