"""The choice of an order, and how much of a node's cache it needs."""

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

MAX_DEFAULT_LANES = 16


@dataclass(frozen=True)
class OrderSettings:
    """Which order, and the settings of `Windows`.

    The order depends on these, the index, the classes, the key and, with windows, the batch size.
    It does not depend on where the shards are, on the size of the cache or on the number of
    processes, so all of these may change when a run resumes.
    """

    kind: Literal["permutation", "windows"] = "permutation"
    lanes: int | None = None  # None: the largest common divisor of batch size and MAX_DEFAULT_LANES
    window_shards: int = 4

    def build(self, counts: NDArray[np.int64], *, key: int, batch_size: int) -> Order:
        """Return the order of shards with `counts` samples each.

        Raises ShardError if the lanes do not divide the batch.
        """
        if self.kind == "permutation":
            return Permutation(counts, key=key)
        lanes = self.lanes or math.gcd(batch_size, MAX_DEFAULT_LANES)
        if batch_size % lanes:
            below = max(number for number in range(1, lanes) if batch_size % number == 0)
            raise ShardError(
                f"data.lanes={lanes} does not divide a batch of {batch_size}: "
                f"give {below}, or no number"
            )
        return Windows(
            counts, key=key, batch_size=batch_size, lanes=lanes, window_shards=self.window_shards
        )

    def check_cache_size(
        self, files: Files, index: ShardIndex, *, num_needed: int | None, num_readers: int = 1
    ) -> None:
        """Raise ShardError if the cache cannot hold what this node's processes use at a time.

        That is the labels and spans and, if `num_needed` is None, all shards. Otherwise each
        process uses the `num_needed` shards of its order, one more for each of its `num_readers`
        that its stream did not keep in time, and one for reading by id. The launcher sets the
        number of processes (LOCAL_WORLD_SIZE).
        """
        if files.max_bytes is None:
            return
        side_bytes = sum(num_bytes for num_bytes, _ in index.side_files.values())
        needed, remedy = side_bytes + index.num_bytes, "set data.order=windows"
        if num_needed is not None:
            num_processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
            num_shards = num_processes * (num_needed + num_readers + 1)
            largest = max(shard.num_bytes for shard in index.shards)
            needed = min(needed, side_bytes + num_shards * largest)
            settings = "data.lanes or data.window_shards"
            if num_readers > 1:
                settings = f"data.workers, {settings}"
            remedy = f"choose fewer {settings}, or pack smaller shards"
        if needed > files.max_bytes:
            gigabytes = math.ceil(needed / 1e6) / 1e3
            raise ShardError(
                f"{files.source}: data.order={self.kind} needs {gigabytes:g} GB in the cache of "
                f"a node, and data.cache_gb={files.max_bytes / 1e9:g}: "
                f"give it {gigabytes:g}, or {remedy}"
            )


PERMUTATION = OrderSettings()
