"""Threads that fetch the shards a stream will need, while it still reads those it has."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress

from shards.errors import ShardError
from shards.order.permutation import Need

NUM_THREADS = 4
_POLL_SEC = 0.05


class Prefetcher:
    """Fetches the shards of `needs` as soon as they are allowed, until `stop` is set.

    `keep` fetches a shard and keeps it open, and `release` lets go of it. A shard that cannot be
    fetched is left to the reader, where the error is raised if it persists.
    """

    def __init__(
        self,
        needs: Iterator[Need],
        *,
        keep: Callable[[int], None],
        release: Callable[[int], None],
        stop: threading.Event,
        position: int,
    ) -> None:
        self._needs, self._keep, self._release, self._stop = needs, keep, release, stop
        self._position = position
        self._lock, self._needs_lock = threading.Lock(), threading.Lock()
        self._kept: list[Need] = []
        self._closed = False
        for number in range(NUM_THREADS):
            threading.Thread(
                target=self._run, name=f"shards-prefetch-{number}", daemon=True
            ).start()

    def advance(self, position: int) -> None:
        """Release what the reader no longer needs at `position`, and allow what comes next."""
        with self._lock:
            done = [need for need in self._kept if need.end is not None and need.end <= position]
            self._kept = [need for need in self._kept if need.end is None or need.end > position]
            for need in done:
                self._release(need.shard)
            self._position = position

    def __enter__(self) -> Prefetcher:
        return self

    def __exit__(self, *_: object) -> None:
        """Release everything. A download in progress ends by itself."""
        with self._lock:
            self._closed = True
            for need in self._kept:
                self._release(need.shard)
            self._kept = []

    def _run(self) -> None:
        while True:
            with self._needs_lock:
                need = next(self._needs, None)
            if need is None:
                return
            while not self._is_over() and self._position < need.begin:
                self._stop.wait(_POLL_SEC)
            if self._is_over():
                return
            with suppress(ShardError, OSError):
                self._keep(need.shard)
                with self._lock:
                    if self._closed or need.end is None:
                        self._release(need.shard)
                    else:
                        self._kept.append(need)

    def _is_over(self) -> bool:
        return self._stop.is_set() or self._closed
