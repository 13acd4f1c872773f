"""Packed images by id, from memory maps."""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from shards.errors import ShardError, printable
from shards.files import Files, LocalFiles
from shards.format.compressed import CompressedImages
from shards.format.index import LABELS_FILE, SPANS_FILE, ShardIndex, read_index
from shards.format.raw import NPY_HEADER_BYTES
from shards.order.permutation import Order
from shards.order.settings import PERMUTATION, OrderSettings
from shards.planes import with_bits

_MAX_OPEN_SHARDS = 512  # each takes a file descriptor, of which a process has 1,024 by default


class Images(Protocol):
    """The images of a shard by row."""

    def __getitem__(self, row: int) -> NDArray[Any]:
        """Return an image [C, H, W]."""


class OpenShard(NamedTuple):
    """The images of a shard, and the memory map from which they are read."""

    images: Images
    mapped: mmap.mmap
    name: str

    def check_size(self) -> None:
        """Raise ShardError if the file was cut short since it was opened.

        Reading beyond its end would end the process with SIGBUS.
        """
        if self.mapped.size() < len(self.mapped):
            raise ShardError(
                f"{self.name} was cut short while it was read ({self.mapped.size():,} bytes are "
                f"left of {len(self.mapped):,}): restore it, or pack it again"
            )


class ShardReader:
    """Random access to the images of packed shards, or of some of their classes.

    Ids run from 0 to `num_samples` - 1. With `classes` (names or numbers) they count the images of
    those classes only. `files` is where the files are opened, by default in the folder of the
    index. `order_settings` is for streams. Raises ShardError if a file is missing or has the wrong
    size, for an unknown class, and if the cache is too small.
    """

    def __init__(
        self,
        index: ShardIndex | str | Path,
        classes: Sequence[str | int] | None = None,
        *,
        files: Files | None = None,
        order_settings: OrderSettings = PERMUTATION,
    ) -> None:
        self.index = index if isinstance(index, ShardIndex) else read_index(index)
        self.files = files = files or LocalFiles(self.index.path)
        self.order_settings = order_settings
        self._classes = classes
        if isinstance(files, LocalFiles):
            for shard in self.index.shards:
                files.check_size(shard.file, shard.num_bytes)
        if order_settings.kind == "permutation":  # windows need as much as a stream's lanes say
            order_settings.check_cache_size(files, self.index, num_needed=None)
        counts = np.array([shard.num_samples for shard in self.index.shards], np.int64)
        self._starts = np.cumsum(counts) - counts
        self._labels = _side_file(self.index, files, LABELS_FILE, "<i4")
        self._subset: NDArray[np.int64] | None = None
        if classes is not None:
            chosen = np.isin(self._all_labels(), _class_numbers(self.index, classes))
            self._subset = np.flatnonzero(chosen)
            if not len(self._subset):
                raise ShardError(f"no image in classes {list(classes)}: choose others")
        open_shard = _ShardOpener(self.index, files)
        # An open shard cannot be evicted from the node's cache. With windows the cache holds few
        # shards, so only streams keep some open.
        is_scarce = files.remote and order_settings.kind == "windows"
        self._images_of = open_shard if is_scarce else lru_cache(_MAX_OPEN_SHARDS)(open_shard)
        self._kept: dict[int, tuple[OpenShard, int]] = {}  # and how often it was kept
        self._kept_lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle what it takes to open the same reader in another process."""
        return _reopen, (self.index, self._classes, self.files, self.order_settings)

    @property
    def num_samples(self) -> int:
        return self.index.num_samples if self._subset is None else len(self._subset)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.index.image_shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of pixels: uint8 or uint16."""
        return self.index.raw_layout.dtype

    def gather_8_bits(self, ids: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the images of ids [n] as uint8 [n, C, H, W], to be shown and evaluated."""
        pixels: NDArray[np.uint8] = with_bits(self.gather(ids), 8)
        return pixels

    def gather(self, ids: NDArray[np.int64], *, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Return the images [n, C, H, W] of ids [n] as stored, written into `out` if given."""
        rows = self._rows(ids)
        if out is None:
            out = np.empty((len(rows), *self.image_shape), self.dtype)
        shards = np.searchsorted(self._starts, rows, side="right") - 1
        rows = rows - self._starts[shards]
        by_shard = np.argsort(shards, kind="stable")  # only a few may be open at a time
        current = -1
        images: Images = out[:0]
        for i, shard, row in zip(
            by_shard.tolist(), shards[by_shard].tolist(), rows[by_shard].tolist(), strict=True
        ):
            if shard != current:
                images = out[:0]  # close one shard before the next is opened
                kept = self._kept.get(shard)
                opened = kept[0] if kept is not None else self._images_of(shard)
                opened.check_size()
                images, current = opened.images, shard
                del kept, opened
            out[i] = images[row]
        return out

    def keep(self, shard: int) -> None:
        """Open a shard, fetching it if it is remote, until it is released as often as it was kept.

        Raises ShardError.
        """
        with self._kept_lock:
            if shard in self._kept:
                opened, times = self._kept[shard]
                self._kept[shard] = opened, times + 1
                return
        opened = self._images_of(shard)
        with self._kept_lock:
            _, times = self._kept.get(shard, (opened, 0))
            self._kept[shard] = opened, times + 1

    def release(self, shard: int) -> None:
        """Undo one `keep`."""
        with self._kept_lock:
            opened, times = self._kept.pop(shard)
            if times > 1:
                self._kept[shard] = opened, times - 1

    def make_order(self, key: int, *, batch_size: int) -> Order:
        """Return the order of this reader's samples under `key`.

        Raises ShardError if the settings do not fit the batch size.
        """
        counts = np.array([shard.num_samples for shard in self.index.shards], np.int64)
        if self._subset is not None:
            shards = np.searchsorted(self._starts, self._subset, side="right") - 1
            counts = np.bincount(shards, minlength=len(counts)).astype(np.int64)
        return self.order_settings.build(counts, key=key, batch_size=batch_size)

    def labels(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the class numbers [n] of ids [n], which count all classes of the dataset."""
        return self._all_labels()[self._rows(ids)].astype(np.int64)

    def _all_labels(self) -> NDArray[np.int32]:
        if self._labels is None:
            raise ShardError(
                f"{printable(self.index.path)} has no labels: "
                "pack a source whose images are in class folders"
            )
        return self._labels

    def _rows(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the samples of ids, counted over all classes. Raises IndexError."""
        ids = np.asarray(ids, np.int64)
        if ids.size and not 0 <= ids.min() <= ids.max() < self.num_samples:
            raise IndexError(
                f"ids {ids.min()} .. {ids.max()} are not all among {self.num_samples} samples"
            )
        return ids if self._subset is None else self._subset[ids]


def _reopen(
    index: ShardIndex,
    classes: Sequence[str | int] | None,
    files: Files,
    order_settings: OrderSettings,
) -> ShardReader:
    return ShardReader(index, classes, files=files, order_settings=order_settings)


class _ShardOpener:
    """Opens the images of a shard by its number."""

    def __init__(self, index: ShardIndex, files: Files) -> None:
        self._index, self._files = index, files
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        self._exceeds_memory = index.num_bytes > memory / 2
        spans = _side_file(index, files, SPANS_FILE, "<i8")
        self._spans = None if spans is None else spans.reshape(-1, 2)
        self._ends = np.cumsum([shard.num_samples for shard in index.shards])

    def __call__(self, shard: int) -> OpenShard:
        record, layout = self._index.shards[shard], self._index.raw_layout
        mapped = _map(
            self._files,
            record.file,
            num_bytes=record.num_bytes,
            sha256=record.sha256,
            # The kernel's read-ahead, megabytes per image, would push out pages that are needed.
            random_access=self._exceeds_memory,
        )
        name, data = f"{self._files.source}/{record.file}", np.frombuffer(mapped, np.uint8)
        if self._spans is not None:
            spans = self._spans[self._ends[shard] - record.num_samples : self._ends[shard]]
            images = CompressedImages(data, spans, layout.image_shape, shard=name)
            return OpenShard(images, mapped, name)
        samples = data[: record.num_samples * layout.stride]
        pixels = layout.pixels(samples.reshape(record.num_samples, layout.stride))
        return OpenShard(pixels, mapped, name)


def _side_file(index: ShardIndex, files: Files, file: str, kind: str) -> NDArray[Any] | None:
    """Return the values of an npy file beside the tars, flat, or None if the dataset has none."""
    if file not in index.side_files:
        return None
    num_bytes, sha256 = index.side_files[file]
    mapped = _map(files, file, num_bytes=num_bytes, sha256=sha256)
    return np.frombuffer(mapped, np.uint8)[NPY_HEADER_BYTES:].view(kind)


def _map(
    files: Files, file: str, *, num_bytes: int, sha256: str, random_access: bool = False
) -> mmap.mmap:
    """Return the bytes of a file. It stays open as long as they are in use."""
    with files.open(file, num_bytes=num_bytes, sha256=sha256) as opened:
        mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    if random_access and hasattr(mmap, "MADV_RANDOM"):
        mapped.madvise(mmap.MADV_RANDOM)
    return mapped


def _class_numbers(index: ShardIndex, classes: Sequence[str | int]) -> list[int]:
    names = list(index.class_names or ())
    numbers = []
    for wanted in classes:
        if isinstance(wanted, int) and 0 <= wanted < len(names):
            numbers.append(wanted)
        elif wanted in names:
            numbers.append(names.index(str(wanted)))
        else:
            raise ShardError(
                f"no class {wanted!r}: the classes are {', '.join(map(printable, names))}"
            )
    return numbers
