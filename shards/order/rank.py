"""The positions of one rank: its slice of one global batch after another."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shards.errors import ShardError
from shards.order.permutation import Order


@dataclass(frozen=True)
class RankSlice:
    """Positions `first` .. `first` + `count` - 1 of the order, these plus `step`, and so on.

    The global batch at position p holds positions p .. p + batch_size - 1, of which rank r takes
    the r-th slice. The global order is therefore the same for any number of ranks.
    """

    first: int
    count: int
    step: int

    @classmethod
    def of_rank(cls, rank: int, world_size: int, *, start: int, batch_size: int) -> RankSlice:
        """Return the slice of a rank from the batch at position `start` on. Raises ShardError."""
        if batch_size < 1 or batch_size % world_size:
            raise ShardError(
                f"batch size {batch_size} does not divide among {world_size} processes: "
                "give a multiple"
            )
        assert 0 <= rank < world_size, f"rank {rank} is not in a world of {world_size}"
        count = batch_size // world_size
        return cls(start + rank * count, count, batch_size)

    def every(self, n: int, *, skip: int) -> RankSlice:
        """Return the slice that skips `skip` batches and then takes every n-th."""
        return RankSlice(self.first + skip * self.step, self.count, n * self.step)

    def batches(self, order: Order) -> Iterator[NDArray[np.int64]]:
        """Yield the ids [count] of one batch after another, without an end."""
        first = self.first
        num_batches = max(1, order.block // self.count)
        block = self.step * np.arange(num_batches)[:, None] + np.arange(self.count)
        while True:
            yield from order.ids(first + block)
            first += self.step * num_batches
