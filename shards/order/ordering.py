"""The choice of an order, and what it asks of the cache of a node."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from shards.errors import ShardError
from shards.files import Files
from shards.format.index import ShardIndex
from shards.order.permutation import Order, Permutation
from shards.order.windows import Windows

MAX_LANES = 16  # where their number is not chosen


@dataclass(frozen=True)
class Ordering:
    """Which order, with the settings of `Windows`.

    The order follows from these, the index, the classes, the key and (windows alone) the batch size. It does not know
    where the shards lie, how large a cache is or how many processes read, all of which may change when a run goes on.
    """

    kind: Literal["permutation", "windows"] = "permutation"
    lanes: int | None = None  # None: the greatest common divisor of the batch size and MAX_LANES
    window_shards: int = 4

    def build(self, counts: NDArray[np.int64], *, key: int, batch_size: int) -> Order:
        """The order of shards with `counts` samples each. Raises ShardError where the lanes do not fit the batch."""
        if self.kind == "permutation":
            return Permutation(counts, key=key)
        lanes = self.lanes or math.gcd(batch_size, MAX_LANES)
        if batch_size % lanes:
            below = max(number for number in range(1, lanes) if batch_size % number == 0)
            raise ShardError(
                f"data.lanes={lanes} does not divide a batch of {batch_size}: give {below}, or no number"
            )
        return Windows(
            counts, key=key, batch_size=batch_size, lanes=lanes, window_shards=self.window_shards
        )

    def check_room(
        self, files: Files, index: ShardIndex, *, num_held: int | None, num_reading: int = 1
    ) -> None:
        """Raises ShardError where the cache cannot hold what the processes of this node have in use at a time.

        That is the labels and spans and either all shards, or for each process the `num_held` of its order, one that its
        stream could not hold in time for each of the `num_reading` that read it, and one for whoever asks by id. The
        launcher says how many processes there are (LOCAL_WORLD_SIZE).
        """
        if files.max_bytes is None:
            return
        beside = sum(num_bytes for num_bytes, _ in index.side_files.values())
        needed, remedy = beside + index.num_bytes, "set data.order=windows"
        if num_held is not None:
            num_shards = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) * (num_held + num_reading + 1)
            needed = min(
                needed, beside + num_shards * max(shard.num_bytes for shard in index.shards)
            )
            fewer = (
                "data.lanes or data.window_shards"
                if num_reading == 1
                else "data.workers, data.lanes or data.window_shards"
            )
            remedy = f"choose fewer {fewer}, or pack smaller shards"
        if needed > files.max_bytes:
            gigabytes = math.ceil(needed / 1e6) / 1e3
            raise ShardError(
                f"{files.source}: data.order={self.kind} needs {gigabytes:g} GB in the cache of a node, and "
                f"data.cache_gb={files.max_bytes / 1e9:g}: give it {gigabytes:g}, or {remedy}"
            )
