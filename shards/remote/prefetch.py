"""Asking ahead: threads that fetch the shards a stream will need while it still reads those it has."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress

from shards.errors import ShardError
from shards.order.permutation import Need

NUM_THREADS = 4
_POLL_SEC = 0.05


class Prefetcher:
    """Fetches what `needs` says, no earlier than it says, until `stop` is set; a context manager.

    `hold` fetches a shard and keeps it, `release` lets go of one that was held. What cannot be fetched is left to whoever
    reads it: there the error will be raised, if it still is one.
    """

    def __init__(
        self,
        needs: Iterator[Need],
        *,
        hold: Callable[[int], None],
        release: Callable[[int], None],
        stop: threading.Event,
        position: int,
    ) -> None:
        self._needs, self._hold, self._release, self._stop = needs, hold, release, stop
        self._position = position
        self._lock, self._needs_lock = threading.Lock(), threading.Lock()
        self._held: list[Need] = []
        self._closed = False
        for number in range(NUM_THREADS):
            threading.Thread(
                target=self._run, name=f"shards-prefetch-{number}", daemon=True
            ).start()

    def reach(self, position: int) -> None:
        """The reader has come to `position`: let go of what it has done with, and allow what comes next."""
        with self._lock:
            done = [need for need in self._held if need.end is not None and need.end <= position]
            self._held = [need for need in self._held if need.end is None or need.end > position]
            for need in done:
                self._release(need.shard)
            self._position = position

    def __enter__(self) -> Prefetcher:
        return self

    def __exit__(self, *_: object) -> None:
        """Let go of everything; a download on its way ends by itself."""
        with self._lock:
            self._closed = True
            for need in self._held:
                self._release(need.shard)
            self._held = []

    def _run(self) -> None:
        while True:
            with self._needs_lock:
                need = next(self._needs, None)
            if need is None:
                return
            while not self._over() and self._position < need.begin:
                self._stop.wait(_POLL_SEC)
            if self._over():
                return
            with suppress(ShardError, OSError):
                self._hold(need.shard)
                with self._lock:
                    if self._closed or need.end is None:
                        self._release(need.shard)
                    else:
                        self._held.append(need)

    def _over(self) -> bool:
        return self._stop.is_set() or self._closed
