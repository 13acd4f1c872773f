"""Reading packed shards: images by id from memory maps, and the endless stream of batches of one rank.

position ──order──> ids ──ShardReader.gather──> uint8 [b, C, H, W] ──queue (thread)──> BatchStream.__next__
"""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from shards.errors import ShardError, printable
from shards.index import LABELS_FILE, ShardIndex, read_index
from shards.layout import NPY_HEADER_BYTES
from shards.order import sample_ids

if TYPE_CHECKING:
    import torch

_BLOCK = 2**14  # ids worked out at a time, since each call costs as much as hundreds of them
_MAX_OPEN_SHARDS = 512  # each holds a file descriptor, of which a process has 1,024 by default


class ShardReader:
    """Random access to the images of packed shards, or of some of their classes.

    Ids run from 0 to `num_samples` - 1; with `classes` (names or numbers) over the images of those classes only. Raises
    ShardError where a file is missing or has the wrong size, and for a class that is not there.
    """

    def __init__(self, index: ShardIndex | str | Path, classes: Sequence[str | int] | None = None) -> None:
        self.index = index if isinstance(index, ShardIndex) else read_index(index)
        for shard in self.index.shards:
            _check_size(self.index, shard.file, shard.num_bytes)
        counts = [shard.num_samples for shard in self.index.shards]
        self._starts = np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.int64)
        self._labels = _open_labels(self.index)
        self._subset: NDArray[np.int64] | None = None
        if classes is not None:
            self._subset = np.flatnonzero(np.isin(self._all_labels(), _class_numbers(self.index, classes)))
            if not len(self._subset):
                raise ShardError(f"no image in classes {list(classes)}: choose others")
        # of this reader alone, and gone with it
        self._images_of_shard = lru_cache(_MAX_OPEN_SHARDS)(_ShardOpener(self.index))

    @property
    def num_samples(self) -> int:
        return self.index.num_samples if self._subset is None else len(self._subset)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.index.image_shape

    def gather(self, ids: NDArray[np.int64], *, out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
        """The images uint8 [n, C, H, W] of ids [n], into `out` where given."""
        rows = self._rows(ids)
        if out is None:
            out = np.empty((len(rows), *self.image_shape), np.uint8)
        shards = np.searchsorted(self._starts, rows, side="right") - 1
        for place, (shard, row) in enumerate(zip(shards.tolist(), (rows - self._starts[shards]).tolist(), strict=True)):
            out[place] = self._images_of_shard(shard)[row]
        return out

    def labels(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """The class numbers [n] of ids [n], counted over all classes of the dataset."""
        return self._all_labels()[self._rows(ids)].astype(np.int64)

    def _all_labels(self) -> NDArray[np.int32]:
        if self._labels is None:
            shown = printable(str(self.index.path))
            raise ShardError(f"{shown} has no labels: pack a source whose images lie in class folders")
        return self._labels

    def _rows(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        ids = np.asarray(ids, np.int64)
        if ids.size and not 0 <= ids.min() <= ids.max() < self.num_samples:
            raise IndexError(f"ids {ids.min()} .. {ids.max()} are not all among {self.num_samples} samples")
        return ids if self._subset is None else self._subset[ids]


class BatchStream(Iterator["torch.Tensor"]):
    """This rank's share, uint8 [batch_size / world, C, H, W], of one global batch after another, without an end.

    The global batch at position p holds positions p .. p + batch_size - 1 of the order under `key`, of which rank r of
    `world` takes the r-th slice: the global order is the same for any world. Its whole state is `position`, of the
    batch that comes next. A thread reads `prefetch` batches ahead, into pinned memory where there is CUDA; what fails
    there is raised here. Close it, or use it as a context manager.
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
    ) -> None:
        if batch_size < 1 or batch_size % world:
            raise ShardError(f"batch size {batch_size} does not divide among {world} processes: give a multiple")
        assert 0 <= rank < world, f"rank {rank} is not in a world of {world}"
        self.position = start
        self._batch_size = batch_size
        self._queue: queue.Queue[torch.Tensor | BaseException] = queue.Queue(maxsize=prefetch)
        self._stop = threading.Event()
        share = batch_size // world
        self._thread = threading.Thread(
            target=_read_ahead,
            args=(reader, key, start + rank * share, share, batch_size, self._queue, self._stop),
            name="shards-batch-stream",
            daemon=True,  # a stream that nobody closed must not keep the process alive
        )
        self._thread.start()
        weakref.finalize(self, self._stop.set)  # the thread knows only the queue: a forgotten stream ends too

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
        self._thread.join()

    def __enter__(self) -> BatchStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _read_ahead(
    reader: ShardReader,
    key: int,
    first: int,
    share: int,
    step: int,
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
        block = step * np.arange(max(1, _BLOCK // share))[:, None] + np.arange(share)
        while not stop.is_set():
            for ids in sample_ids(first + block, num_samples=reader.num_samples, key=key):
                if stop.is_set():
                    return
                batch = torch.empty((share, *reader.image_shape), dtype=torch.uint8, pin_memory=pinned)
                reader.gather(ids, out=batch.numpy())
                put(batch)
            first += step * len(block)
    except BaseException as error:  # whatever it is, the consumer has to hear of it
        put(error)


class _ShardOpener:
    """Maps shard numbers to images uint8 [n, C, H, W] on disk."""

    def __init__(self, index: ShardIndex) -> None:
        self._index = index

    def __call__(self, shard: int) -> NDArray[np.uint8]:
        record, layout = self._index.shards[shard], self._index.layout
        _check_size(self._index, record.file, record.num_bytes)  # reading past a file's end would be a SIGBUS
        mapped = np.memmap(self._index.path / record.file, np.uint8, mode="r")
        samples = np.asarray(mapped)[: record.num_samples * layout.stride]
        return layout.pixels(samples.reshape(record.num_samples, layout.stride))


def _open_labels(index: ShardIndex) -> NDArray[np.int32] | None:
    if index.class_names is None:
        return None
    _check_size(index, LABELS_FILE, NPY_HEADER_BYTES + 4 * index.num_samples)
    mapped = np.memmap(index.path / LABELS_FILE, "<i4", mode="r", offset=NPY_HEADER_BYTES, shape=(index.num_samples,))
    return np.asarray(mapped)


def _check_size(index: ShardIndex, file: str, num_bytes: int) -> None:
    path = index.path / file
    shown = printable(str(path))
    try:
        found = path.stat().st_size
    except OSError as error:
        raise ShardError(f"{shown}: {error.strerror}; run `distgan verify` and restore or pack it again") from None
    if found != num_bytes:
        raise ShardError(f"{shown} has {found:,} bytes, not {num_bytes:,}: run `distgan verify`, then pack again")


def _class_numbers(index: ShardIndex, classes: Sequence[str | int]) -> list[int]:
    names = list(index.class_names or ())
    numbers = []
    for wanted in classes:
        if isinstance(wanted, int) and 0 <= wanted < len(names):
            numbers.append(wanted)
        elif wanted in names:
            numbers.append(names.index(str(wanted)))
        else:
            raise ShardError(f"no class {wanted!r}: the classes are {', '.join(map(printable, names))}")
    return numbers
