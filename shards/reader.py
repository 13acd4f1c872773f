"""Reading packed shards: images by id from memory maps, and the endless stream of batches of one rank.

position ──order──> ids ──ShardReader.gather──> uint8 [b, C, H, W] ──queue (thread)──> BatchStream.__next__
             │            (in processes, where images are encoded)
             └──needs──> Prefetcher (threads, where the shards are remote)
"""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from shards.errors import ShardError, printable
from shards.files import Files, LocalFiles
from shards.format.compressed import EncodedImages
from shards.format.index import LABELS_FILE, SPANS_FILE, ShardIndex, read_index
from shards.format.raw import NPY_HEADER_BYTES
from shards.order.ordering import Ordering
from shards.order.permutation import Order

if TYPE_CHECKING:
    pass


_MAX_OPEN_SHARDS = 512  # each holds a file descriptor, of which a process has 1,024 by default


class Images(Protocol):
    """The images of a shard."""

    def __getitem__(self, row: int) -> NDArray[np.uint8]:
        """One of them, uint8 [C, H, W]."""


class ShardReader:
    """Random access to the images of packed shards, or of some of their classes.

    Ids run from 0 to `num_samples` - 1; with `classes` (names or numbers) over the images of those classes only. `files`
    is where the files are, the index's folder where None; `ordering` (a permutation where None) is for streams. Raises
    ShardError where a file is missing or has the wrong size, for a class that is not there, and for too small a cache.
    """

    def __init__(
        self,
        index: ShardIndex | str | Path,
        classes: Sequence[str | int] | None = None,
        *,
        files: Files | None = None,
        ordering: Ordering | None = None,
    ) -> None:
        self.index = index if isinstance(index, ShardIndex) else read_index(index)
        self.files = files = files or LocalFiles(self.index.path)
        if isinstance(files, LocalFiles):
            for shard in self.index.shards:
                files.check_size(shard.file, shard.num_bytes)
        self.ordering = ordering = ordering or Ordering()
        if (
            ordering.kind == "permutation"
        ):  # with windows it depends on how many lanes a stream reads
            ordering.check_room(files, self.index, num_held=None)
        counts = np.array([shard.num_samples for shard in self.index.shards], np.int64)
        self._starts = np.cumsum(counts) - counts
        self._labels = _side_file(self.index, files, LABELS_FILE, "<i4")
        self._subset: NDArray[np.int64] | None = None
        if classes is not None:
            self._subset = np.flatnonzero(
                np.isin(self._all_labels(), _class_numbers(self.index, classes))
            )
            if not len(self._subset):
                raise ShardError(f"no image in classes {list(classes)}: choose others")
        self._open = _ShardOpener(self.index, files)
        # A shard that is open stays in the cache of the node: with windows only streams hold some.
        few = files.remote and ordering.kind == "windows"
        # of this reader alone, and gone with it
        self._images_of_shard = self._open if few else lru_cache(_MAX_OPEN_SHARDS)(self._open)
        self._held: dict[int, tuple[Images, int]] = {}  # images and by how many streams
        self._held_lock = threading.Lock()

    @property
    def num_samples(self) -> int:
        return self.index.num_samples if self._subset is None else len(self._subset)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.index.image_shape

    def gather(
        self, ids: NDArray[np.int64], *, out: NDArray[np.uint8] | None = None
    ) -> NDArray[np.uint8]:
        """The images uint8 [n, C, H, W] of ids [n], into `out` where given."""
        return self.gather_rows(self.rows(ids), out=out)

    def gather_rows(
        self, rows: NDArray[np.int64], *, out: NDArray[np.uint8] | None = None
    ) -> NDArray[np.uint8]:
        """The images of samples counted over all classes, whatever this reader's."""
        if out is None:
            out = np.empty((len(rows), *self.image_shape), np.uint8)
        shards = np.searchsorted(self._starts, rows, side="right") - 1
        places = np.argsort(
            shards, kind="stable"
        )  # shard after shard, where only a few can be open
        rows = rows - self._starts[shards]
        current = -1
        images: Images = out[:0]
        for place, shard, row in zip(
            places.tolist(), shards[places].tolist(), rows[places].tolist(), strict=True
        ):
            if shard != current:
                images = out[:0]  # let go of one shard before the next is opened
                held = self._held.get(shard)
                current, images = (
                    shard,
                    held[0] if held is not None else self._images_of_shard(shard),
                )
                del held
            out[place] = images[row]
        return out

    def hold(self, shard: int) -> None:
        """Keep a shard open, fetched first where it is remote, until it is released as often as it was held."""
        with self._held_lock:
            held = self._held.get(shard)
            if held is not None:
                self._held[shard] = held[0], held[1] + 1
                return
        images = self._open(shard)
        with self._held_lock:
            _, times = self._held.get(shard, (images, 0))
            self._held[shard] = images, times + 1

    def release(self, shard: int) -> None:
        """Undo one `hold`."""
        with self._held_lock:
            images, times = self._held.pop(shard)
            if times > 1:
                self._held[shard] = images, times - 1

    def order(self, key: int, *, batch_size: int) -> Order:
        """The order of this reader's samples under `key`. Raises ShardError where its settings do not fit the batch."""
        counts = np.array([shard.num_samples for shard in self.index.shards], np.int64)
        if self._subset is not None:
            shards = np.searchsorted(self._starts, self._subset, side="right") - 1
            counts = np.bincount(shards, minlength=len(counts)).astype(np.int64)
        return self.ordering.build(counts, key=key, batch_size=batch_size)

    def labels(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """The class numbers [n] of ids [n], counted over all classes of the dataset."""
        return self._all_labels()[self.rows(ids)].astype(np.int64)

    def _all_labels(self) -> NDArray[np.int32]:
        if self._labels is None:
            shown = printable(str(self.index.path))
            raise ShardError(
                f"{shown} has no labels: pack a source whose images lie in class folders"
            )
        return self._labels

    def rows(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """The samples, counted over all classes, of ids of any shape. Raises IndexError for ids that are not there."""
        ids = np.asarray(ids, np.int64)
        if ids.size and not 0 <= ids.min() <= ids.max() < self.num_samples:
            raise IndexError(
                f"ids {ids.min()} .. {ids.max()} are not all among {self.num_samples} samples"
            )
        return ids if self._subset is None else self._subset[ids]


class _ShardOpener:
    """Maps shard numbers to their images on disk."""

    def __init__(self, index: ShardIndex, files: Files) -> None:
        self._index, self._files = index, files
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        self._too_large = index.num_bytes > memory / 2
        spans = _side_file(index, files, SPANS_FILE, "<i8")
        self._spans = None if spans is None else spans.reshape(-1, 2)
        self._ends = np.cumsum([shard.num_samples for shard in index.shards])

    def __call__(self, shard: int) -> Images:
        record, layout = self._index.shards[shard], self._index.layout
        mapped = _mapped(
            self._files,
            record.file,
            num_bytes=record.num_bytes,
            sha256=record.sha256,
            # what the kernel reads ahead, megabytes for an image, would push out what is needed
            at_random=self._too_large,
        )
        if self._spans is not None:
            spans = self._spans[self._ends[shard] - record.num_samples : self._ends[shard]]
            return EncodedImages(
                mapped, spans, layout.image_shape, shown=f"{self._files.source}/{record.file}"
            )
        samples = mapped[: record.num_samples * layout.stride]
        return layout.pixels(samples.reshape(record.num_samples, layout.stride))


def _side_file(index: ShardIndex, files: Files, file: str, kind: str) -> NDArray[Any] | None:
    """The values of a file beside the tars, flat; None where the dataset has none such."""
    if file not in index.side_files:
        return None
    num_bytes, sha256 = index.side_files[file]
    return _mapped(files, file, num_bytes=num_bytes, sha256=sha256)[NPY_HEADER_BYTES:].view(kind)


def _mapped(
    files: Files, file: str, *, num_bytes: int, sha256: str, at_random: bool = False
) -> NDArray[np.uint8]:
    """The bytes of a file, which stays open as long as they are in use; `at_random`: read none but those."""
    with files.open(file, num_bytes=num_bytes, sha256=sha256) as opened:
        mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    if at_random and hasattr(mmap, "MADV_RANDOM"):
        mapped.madvise(mmap.MADV_RANDOM)
    return np.frombuffer(mapped, np.uint8)


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
