"""What packing and decoding share about worker processes."""

from __future__ import annotations

import multiprocessing
import os
from multiprocessing.connection import wait

# Spawned rather than forked: a fork would copy the locks of the caller's threads.
SPAWN = multiprocessing.get_context("spawn")


def num_usable_cores() -> int:
    """Return how many cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def exit_with_parent() -> None:
    """Wait until the parent of this worker has ended, even by SIGKILL, and then exit."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker has a parent"
    wait([parent.sentinel])
    os._exit(1)
