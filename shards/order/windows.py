"""The order for datasets larger than a node can keep: lanes that are read side by side, each through a window of shards.

epoch e:  shards, permuted ──cut at samples──> lane 0 | lane 1 | ... | lane C-1     a batch takes B/C from each
lane:     window 0 | window 1 | ...            K shards each, the samples of a window permuted

A rank reads the lanes of its slice of the batch only, so with C lanes in W ranks it needs C/W of the dataset an epoch and
K shards of each lane at a time. The order depends on the shards, key, B, C and K, never on the number of ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shards.order.permutation import Need, order_key, sample_ids


class _Epoch(NamedTuple):
    """One epoch as a line of N places: the samples of its shards, one shard after another."""

    shards: NDArray[np.int64]  # in their order in this epoch
    ends: NDArray[np.int64]  # place after the last sample of each of them
    lanes: NDArray[np.int64]  # [C + 1] place where each lane begins, then N
    windows: NDArray[np.int64]  # place where each window begins, over all lanes, then N


class Windows:
    """Samples of `counts[s]` consecutive ids a shard, in windows of `window_shards` shards of `lanes` lanes.

    `lanes` (C) divides `batch_size` (B). Lane l gets places l*B/C .. (l+1)*B/C - 1 of every batch, so its length in an
    epoch is the number of those among the epoch's positions: lanes differ by a sample or so of a batch, and an epoch
    holds each sample exactly once whether or not B or C divide N.
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
        self._shards = np.flatnonzero(
            counts
        )  # with a choice of classes some shards may hold no sample
        self._counts, self._first_ids = counts, np.cumsum(counts) - counts
        self._num_samples = int(counts.sum())
        self._key, self._batch_size, self._lanes, self._window_shards = (
            key,
            batch_size,
            lanes,
            window_shards,
        )
        self._slice = batch_size // lanes
        self._epoch = lru_cache(2)(self._lay_out)

    def ids(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """The sample at each position, of any shape."""
        flat = np.asarray(positions, np.int64).ravel()
        assert flat.size == 0 or flat.min() >= 0, "positions count from zero"
        epochs, ids = flat // self._num_samples, np.empty(flat.shape, np.int64)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            ids[here] = self._ids_of_epoch(epoch, flat[here])
        return ids.reshape(np.shape(positions))

    def needs(self, first: int, share: int, step: int) -> Iterator[Need]:
        """The windows of this rank's lanes from `first` on, without an end; each may be fetched when the one before it
        in its lane begins, so that a lane has two windows at a time."""
        assert step == self._batch_size, "lanes are laid out for one batch size"
        lanes = self._lanes_of(first, share)
        before = dict.fromkeys(lanes, 0)  # where the window before begins, lane by lane
        for epoch in range(first // self._num_samples, 2**62):
            line, found = self._epoch(epoch), []
            for lane in lanes:
                for window in range(
                    *np.searchsorted(line.windows, line.lanes[lane : lane + 2]).tolist()
                ):
                    places = line.windows[window : window + 2]
                    begin, end = self._positions_of(epoch, lane, places - line.lanes[lane]).tolist()
                    found.append((begin, end, lane, self._shards_of(line, places)))
            for begin, end, lane, shards in sorted(found):
                if end > first:
                    yield from (Need(before[lane], end, shard) for shard in shards)
                    before[lane] = begin

    def num_held(self, first: int, share: int) -> int:
        """The shards of two windows of every lane that the rank reads."""
        return 2 * self._window_shards * len(self._lanes_of(first, share))

    def _lanes_of(self, first: int, share: int) -> list[int]:
        lanes = np.unique((first + np.arange(share)) % self._batch_size // self._slice)
        return [int(lane) for lane in lanes]

    def _lay_out(self, epoch: int) -> _Epoch:
        numbers = epoch * len(self._shards) + np.arange(len(self._shards))
        key = order_key(f"shards:{self._key}", 0)
        shards = self._shards[sample_ids(numbers, num_samples=len(self._shards), key=key)]
        ends = np.cumsum(self._counts[shards])
        starts = ends - self._counts[shards]
        all_lanes = np.arange(self._lanes)
        borders = np.array([epoch, epoch + 1])[:, None] * self._num_samples
        lengths = np.diff(self._taken(borders, all_lanes), axis=0)[0]
        lanes = np.concatenate([[0], np.cumsum(lengths)])
        windows = [np.empty(0, np.int64)]
        for begin, end in zip(lanes[:-1].tolist(), lanes[1:].tolist(), strict=True):
            if begin < end:
                near, far = np.searchsorted(ends, [begin, end - 1], side="right").tolist()
                windows += [
                    np.array([begin]),
                    starts[near + self._window_shards : far + 1 : self._window_shards],
                ]
        return _Epoch(shards, ends, lanes, np.concatenate([*windows, lanes[-1:]]))

    def _taken(self, positions: NDArray[np.int64], lanes: NDArray[np.int64]) -> NDArray[np.int64]:
        """How many samples of each lane come before each position."""
        batches, places = np.divmod(positions, self._batch_size)
        return batches * self._slice + np.clip(places - lanes * self._slice, 0, self._slice)

    def _positions_of(self, epoch: int, lane: int, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        """The positions of the n-th samples of a lane in an epoch: what `_taken` counts, the other way round."""
        taken = samples + self._taken(np.array(epoch * self._num_samples), np.array(lane))
        batches, places = np.divmod(taken, self._slice)
        return batches * self._batch_size + lane * self._slice + places

    def _ids_of_epoch(self, epoch: int, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        line, lanes = self._epoch(epoch), positions % self._batch_size // self._slice
        begun = self._taken(np.array(epoch * self._num_samples), lanes)
        places = line.lanes[lanes] + self._taken(positions, lanes) - begun
        windows = np.searchsorted(line.windows, places, side="right") - 1
        for window in np.unique(windows).tolist():
            here, (begin, end) = windows == window, line.windows[window : window + 2].tolist()
            key = order_key(f"window {window}:{self._key}", epoch)
            places[here] = begin + sample_ids(
                places[here] - begin, num_samples=end - begin, key=key
            )
        numbers = np.searchsorted(line.ends, places, side="right")
        shards = line.shards[numbers]
        ids: NDArray[np.int64] = (
            self._first_ids[shards] + places - (line.ends[numbers] - self._counts[shards])
        )
        return ids

    @staticmethod
    def _shards_of(line: _Epoch, places: NDArray[np.int64]) -> list[int]:
        near, far = np.searchsorted(line.ends, places - [0, 1], side="right").tolist()
        return [int(shard) for shard in line.shards[near : far + 1]]
