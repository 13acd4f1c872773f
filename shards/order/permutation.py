"""The order of samples: a pure function of (fingerprint, seed, position) that needs no memory and no state."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 6
_MIN_BITS = 6  # fewer would leave too few different permutations of a tiny dataset
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_ROUND_CONSTANTS = tuple(
    np.uint64(number * 0xD1342543DE82EF95 % 2**64) for number in range(1, _ROUNDS + 1)
)


class Need(NamedTuple):
    """A shard that a rank will read, to be fetched once the rank has come to position `begin` of the order."""

    begin: int
    end: int | None  # from this position on it is needed no more; None: it always is
    shard: int


class Order(Protocol):
    """Which sample comes at which position of the endless concatenation of epochs of N samples.

    Positions e*N .. e*N + N-1 are epoch e and hold each sample once.
    """

    block: int  # positions best asked for at a time, since a call costs as much as hundreds of them

    def ids(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """The samples at positions of any shape."""

    def needs(self, first: int, share: int, step: int) -> Iterator[Need]:
        """The shards of positions `first` .. `first` + `share` - 1, these plus `step`, ... in the order of need."""

    def num_held(self, first: int, share: int) -> int | None:
        """How many shards such a rank has needed and not yet done with, at most; None: all of them."""


class Permutation:
    """All samples in one permutation an epoch: `sample_ids` under `key`; shard s holds `counts[s]` consecutive ids."""

    block = 2**14

    def __init__(self, counts: NDArray[np.int64], *, key: int) -> None:
        self._ends, self._key = np.cumsum(counts), key
        self._num_samples, self._num_used = int(self._ends[-1]), int(np.count_nonzero(counts))

    def ids(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        return sample_ids(positions, num_samples=self._num_samples, key=self._key)

    def needs(self, first: int, share: int, step: int) -> Iterator[Need]:
        """Each shard once. Its place is that of its first sample, so that reading can begin with the first few."""
        seen: set[int] = set()
        block = step * np.arange(max(1, 2**12 // share))[:, None] + np.arange(share)
        while len(seen) < self._num_used:
            for shard in np.searchsorted(
                self._ends, self.ids(first + block).ravel(), side="right"
            ).tolist():
                if shard not in seen:
                    seen.add(shard)
                    yield Need(0, None, shard)
            first += step * len(block)

    def num_held(self, first: int, share: int) -> int | None:
        return None


def order_key(fingerprint: str, seed: int) -> int:
    """The 64-bit key of the order of one dataset under one seed."""
    return int.from_bytes(hashlib.sha256(f"{fingerprint}:{seed}".encode()).digest()[:8], "little")


def sample_ids(positions: NDArray[np.int64], *, num_samples: int, key: int) -> NDArray[np.int64]:
    """The sample at each position of the endless concatenation of epochs.

    Positions e*N .. e*N + N-1 (N = `num_samples`) are epoch e: a permutation of 0 .. N-1, another one for each epoch
    and key. It is a Feistel network on the smallest power of two that holds N, repeated for those results that fall
    outside (cycle walking; Black and Rogaway 2002), hence a bijection. Best asked for thousands of positions at a time.
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
    """A keyed bijection of the numbers of `bits` bits."""
    right_bits = np.uint64(bits // 2)
    left_mask, right_mask = (
        np.uint64((1 << (bits - bits // 2)) - 1),
        np.uint64((1 << bits // 2) - 1),
    )
    left, right = values >> right_bits, values & right_mask
    for constant in (
        _ROUND_CONSTANTS
    ):  # an even number: the halves, which may differ by a bit, end where they began
        left, right = right, left ^ (_mix(right * _GOLDEN + (keys ^ constant)) & left_mask)
        left_mask, right_mask = right_mask, left_mask
    return left << right_bits | right


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele et al. 2014): every bit of the input moves every bit of the output."""
    values = (values ^ values >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ values >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return values ^ values >> np.uint64(31)
