"""Stacked digits: three random digits as the channels of one image, for counting modes.

The 1,000 modes have known frequencies. Stacked MNIST (128,000 stacks) follows Metz et al. 2017 and
Lin et al. 2018; stacks of scikit-learn's digits need no file.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shards.sources.official import ArraySource, open_digits, open_mnist
from shards.sources.source import Source

STACK_NAMES = tuple(f"{mode:03d}" for mode in range(1000))
NUM_STACKED_MNIST = 128_000
NUM_STACKED_DIGITS = 20_000


@dataclass(kw_only=True)
class StackedSource(Source):
    """Stacks of three images, stacked when they are read."""

    images: NDArray[np.uint8]  # single digits [N, H, W]
    triples: NDArray[np.int64]  # [num stacks, 3]

    def _read(self, item: int) -> NDArray[np.uint8]:
        stack: NDArray[np.uint8] = np.stack(list(self.images[self.triples[item]]), axis=2)
        return stack


def open_stacked_mnist(split: str, root: Path | None) -> Source:
    """Open 128,000 stacks of MNIST digits."""
    return _stack("stacked-mnist", open_mnist(split, root), NUM_STACKED_MNIST)


def open_stacked_digits(split: str, root: Path | None) -> Source:
    """Open 20,000 stacks of scikit-learn's digits."""
    return _stack("stacked-digits", open_digits(split, root), NUM_STACKED_DIGITS)


def _stack(name: str, digits: Source, num: int) -> Source:
    assert isinstance(digits, ArraySource) and digits.labels is not None, "digits have labels"
    triples = np.random.default_rng(0).integers(len(digits), size=(num, 3))
    labels = (digits.labels[triples] @ np.array([100, 10, 1])).astype(np.int32)
    return StackedSource(
        names=[f"{name}/{item:06d}" for item in range(num)],
        sizes=np.full(num, 3 * digits.images[0].size, np.int64),
        labels=labels,
        class_names=STACK_NAMES,
        digest=hashlib.sha256(digits.digest.encode() + triples.astype("<i8").tobytes()).hexdigest(),
        default_size=32,
        default_channels=3,
        in_memory=True,
        images=digits.images,
        triples=triples,
    )
