"""The order of samples: a pure function of fingerprint, seed and position."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

_NUM_ROUNDS = 6  # even, so that the halves of a number, which may differ in length, swap back
_MIN_BITS = 6  # fewer would allow too few different permutations of a tiny dataset
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_ROUND_CONSTANTS = tuple(
    np.uint64(number * 0xD1342543DE82EF95 % 2**64) for number in range(1, _NUM_ROUNDS + 1)
)


class Need(NamedTuple):
    """A shard that a rank will read between two positions of the order."""

    begin: int  # it is not fetched before the rank has reached this position
    end: int | None  # from here on it is no longer needed; None: it always will be
    shard: int


class Order(Protocol):
    """Which sample comes at which position of the endless concatenation of epochs.

    With N samples, positions e*N .. e*N + N-1 are epoch e and hold each sample once.
    """

    block: int  # positions per call that make good use of it: one call costs as much as hundreds

    def ids(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the samples at positions of any shape."""

    def needs(self, first: int, count: int, step: int) -> Iterator[Need]:
        """Yield the shards that a rank needs, in the order of need.

        The rank reads `count` positions from `first` on, then `count` from `first` + `step` on, ...
        """

    def max_needed_shards(self, first: int, count: int) -> int | None:
        """Return how many shards such a rank needs at a time, or None for all of them."""


class Permutation:
    """All samples in a new permutation each epoch. Shard s holds `counts[s]` consecutive ids."""

    block = 2**14

    def __init__(self, counts: NDArray[np.int64], *, key: int) -> None:
        self._ends, self._key = np.cumsum(counts), key
        self._num_samples, self._num_used = int(self._ends[-1]), int(np.count_nonzero(counts))

    def ids(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        return sample_ids(positions, num_samples=self._num_samples, key=self._key)

    def needs(self, first: int, count: int, step: int) -> Iterator[Need]:
        """Yield each shard once, sorted by its first sample, so that reading can start early."""
        seen: set[int] = set()
        block = step * np.arange(max(1, 2**12 // count))[:, None] + np.arange(count)
        while len(seen) < self._num_used:
            ids = self.ids(first + block).ravel()
            for shard in np.searchsorted(self._ends, ids, side="right").tolist():
                if shard not in seen:
                    seen.add(shard)
                    yield Need(0, None, shard)
            first += step * len(block)

    def max_needed_shards(self, first: int, count: int) -> int | None:
        return None


def order_key(fingerprint: str, seed: int) -> int:
    """Return the 64-bit key of the order of one dataset under one seed."""
    return int.from_bytes(hashlib.sha256(f"{fingerprint}:{seed}".encode()).digest()[:8], "little")


def sample_ids(positions: NDArray[np.int64], *, num_samples: int, key: int) -> NDArray[np.int64]:
    """Return the sample at each position of the endless concatenation of epochs.

    With N = `num_samples`, positions e*N .. e*N + N-1 are epoch e: a permutation of 0 .. N-1 that
    differs between epochs and keys. It is a Feistel network on the smallest power of two that holds
    N, applied again to results outside of 0 .. N-1 (cycle walking; Black and Rogaway 2002), and
    therefore a bijection. Call it for thousands of positions at a time.
    """
    assert num_samples > 0, "an order needs samples"
    positions = np.asarray(positions, np.int64)
    assert positions.size == 0 or positions.min() >= 0, "positions count from zero"
    epochs, ids = np.divmod(positions.ravel(), num_samples)
    keys = _mix(epochs.astype(np.uint64) * _GOLDEN + np.uint64(key))
    bits = max(_MIN_BITS, (num_samples - 1).bit_length())
    walked = _feistel(ids.astype(np.uint64), keys, bits)
    outside = np.flatnonzero(walked >= num_samples)
    while outside.size:
        again = _feistel(walked[outside], keys[outside], bits)
        walked[outside] = again
        outside = outside[again >= num_samples]
    return walked.astype(np.int64).reshape(positions.shape)


def _feistel(values: NDArray[np.uint64], keys: NDArray[np.uint64], bits: int) -> NDArray[np.uint64]:
    """Apply a keyed bijection to numbers of `bits` bits."""
    right_bits = np.uint64(bits // 2)
    left_mask = np.uint64((1 << (bits - bits // 2)) - 1)
    right_mask = np.uint64((1 << bits // 2) - 1)
    left, right = values >> right_bits, values & right_mask
    for constant in _ROUND_CONSTANTS:
        left, right = right, left ^ (_mix(right * _GOLDEN + (keys ^ constant)) & left_mask)
        left_mask, right_mask = right_mask, left_mask
    return left << right_bits | right


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Apply the finaliser of SplitMix64 (Steele et al. 2014).

    Every bit of the input affects every bit of the output.
    """
    values = (values ^ values >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ values >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return values ^ values >> np.uint64(31)
