"""The order for datasets larger than a node can keep: lanes of shards, read window by window.

epoch:  shards, permuted ──cut at samples──> lane 0 | lane 1 | ... | lane C-1
lane:   window 0 | window 1 | ...            K shards each; the samples of a window are permuted
batch:  B/C samples from each lane

A rank reads only the lanes of its slice of the batch. With C lanes and W ranks it needs C/W of the
dataset per epoch, and K shards of each of its lanes at a time. The order depends on the shards, the
key, B, C and K, but not on the number of ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shards.order.permutation import Need, order_key, sample_ids


class _Epoch(NamedTuple):
    """One epoch as a row of N slots: the samples of its shards, one shard after another."""

    shards: NDArray[np.int64]  # in the order of this epoch
    ends: NDArray[np.int64]  # slot after the last sample of each of them
    lanes: NDArray[np.int64]  # [C + 1] first slot of each lane, then N
    windows: NDArray[np.int64]  # first slot of each window, over all lanes, then N


class Windows:
    """Samples of `counts[s]` consecutive ids per shard, in windows of `window_shards` shards.

    `lanes` (C) divides `batch_size` (B). Lane l fills places l*B/C .. (l+1)*B/C - 1 of every batch,
    so its length in an epoch is the number of those places among the epoch's positions. Lanes
    differ by about a sample per batch, and an epoch holds each sample exactly once even if neither
    B nor C divides N.
    """

    block = 2**11

    def __init__(
        self,
        counts: NDArray[np.int64],
        *,
        key: int,
        batch_size: int,
        lanes: int,
        window_shards: int,
    ) -> None:
        assert batch_size % lanes == 0, f"{lanes} lanes do not divide a batch of {batch_size}"
        self._shards = np.flatnonzero(counts)  # a choice of classes may leave some shards empty
        self._counts, self._first_ids = counts, np.cumsum(counts) - counts
        self._num_samples = int(counts.sum())
        self._key, self._batch_size = key, batch_size
        self._lanes, self._window_shards = lanes, window_shards
        self._slice = batch_size // lanes  # places of a lane in a batch
        self._epoch = lru_cache(2)(self._lay_out)

    def ids(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the sample at each position, of any shape."""
        flat = np.asarray(positions, np.int64).ravel()
        assert flat.size == 0 or flat.min() >= 0, "positions count from zero"
        epochs, ids = flat // self._num_samples, np.empty(flat.shape, np.int64)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            ids[here] = self._ids_of_epoch(epoch, flat[here])
        return ids.reshape(np.shape(positions))

    def needs(self, first: int, count: int, step: int) -> Iterator[Need]:
        """Yield the shards of the windows of this rank's lanes from `first` on, without an end.

        A window may be fetched once the one before it in its lane begins, so that a lane has two
        windows at a time.
        """
        assert step == self._batch_size, "lanes are laid out for one batch size"
        lanes = self._lanes_of(first, count)
        previous = dict.fromkeys(lanes, 0)  # lane -> position at which its last window began
        for epoch in range(first // self._num_samples, 2**62):
            for begin, end, lane, shards in sorted(self._windows_of_epoch(epoch, lanes)):
                if end > first:
                    yield from (Need(previous[lane], end, shard) for shard in shards)
                    previous[lane] = begin

    def max_needed_shards(self, first: int, count: int) -> int:
        """Return the number of shards in two windows of every lane that the rank reads."""
        return 2 * self._window_shards * len(self._lanes_of(first, count))

    def _windows_of_epoch(
        self, epoch: int, lanes: list[int]
    ) -> Iterator[tuple[int, int, int, list[int]]]:
        """Yield (first position, position after the last, lane, shards) of each window."""
        row = self._epoch(epoch)
        for lane in lanes:
            in_lane = np.searchsorted(row.windows, row.lanes[lane : lane + 2]).tolist()
            for window in range(*in_lane):
                slots = row.windows[window : window + 2]
                begin, end = self._positions_of(epoch, lane, slots - row.lanes[lane]).tolist()
                yield begin, end, lane, self._shards_of(row, slots)

    def _lanes_of(self, first: int, count: int) -> list[int]:
        lanes = np.unique((first + np.arange(count)) % self._batch_size // self._slice)
        return [int(lane) for lane in lanes]

    def _lay_out(self, epoch: int) -> _Epoch:
        numbers = epoch * len(self._shards) + np.arange(len(self._shards))
        key = order_key(f"shards:{self._key}", 0)
        shards = self._shards[sample_ids(numbers, num_samples=len(self._shards), key=key)]
        ends = np.cumsum(self._counts[shards])
        starts = ends - self._counts[shards]
        borders = np.array([epoch, epoch + 1])[:, None] * self._num_samples
        lengths = np.diff(self._num_before(borders, np.arange(self._lanes)), axis=0)[0]
        lanes = np.concatenate([[0], np.cumsum(lengths)])
        windows = [np.empty(0, np.int64)]
        for begin, end in zip(lanes[:-1].tolist(), lanes[1:].tolist(), strict=True):
            if begin < end:
                near, far = np.searchsorted(ends, [begin, end - 1], side="right").tolist()
                later = starts[near + self._window_shards : far + 1 : self._window_shards]
                windows += [np.array([begin]), later]
        return _Epoch(shards, ends, lanes, np.concatenate([*windows, lanes[-1:]]))

    def _num_before(
        self, positions: NDArray[np.int64], lanes: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Return how many samples of each lane come before each position."""
        batches, places = np.divmod(positions, self._batch_size)
        return batches * self._slice + np.clip(places - lanes * self._slice, 0, self._slice)

    def _positions_of(self, epoch: int, lane: int, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the positions of the n-th samples of a lane in an epoch, inverting _num_before."""
        total = samples + self._num_before(np.array(epoch * self._num_samples), np.array(lane))
        batches, places = np.divmod(total, self._slice)
        return batches * self._batch_size + lane * self._slice + places

    def _ids_of_epoch(self, epoch: int, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        row, lanes = self._epoch(epoch), positions % self._batch_size // self._slice
        before_epoch = self._num_before(np.array(epoch * self._num_samples), lanes)
        slots = row.lanes[lanes] + self._num_before(positions, lanes) - before_epoch
        windows = np.searchsorted(row.windows, slots, side="right") - 1
        for window in np.unique(windows).tolist():
            here, (begin, end) = windows == window, row.windows[window : window + 2].tolist()
            key = order_key(f"window {window}:{self._key}", epoch)
            slots[here] = begin + sample_ids(slots[here] - begin, num_samples=end - begin, key=key)
        numbers = np.searchsorted(row.ends, slots, side="right")
        shards = row.shards[numbers]
        in_shard = slots - (row.ends[numbers] - self._counts[shards])
        ids: NDArray[np.int64] = self._first_ids[shards] + in_shard
        return ids

    @staticmethod
    def _shards_of(row: _Epoch, slots: NDArray[np.int64]) -> list[int]:
        near, far = np.searchsorted(row.ends, slots - [0, 1], side="right").tolist()
        return [int(shard) for shard in row.shards[near : far + 1]]
