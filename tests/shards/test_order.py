"""The order of samples."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.order.permutation import order_key, sample_ids

KEY = order_key("fingerprint", 0)


def epoch(num_samples: int, number: int, key: int = KEY) -> np.ndarray:
    return sample_ids(
        number * num_samples + np.arange(num_samples), num_samples=num_samples, key=key
    )


@pytest.mark.parametrize(
    "num_samples", [1, 2, 3, 4, 5, 7, 8, 9, 63, 64, 65, 1797, 2**14, 2**14 + 1, 50_000]
)
def test_every_epoch_is_a_permutation(num_samples: int) -> None:
    """Each sample comes exactly once an epoch."""
    for number in (0, 1, 2, 1000):
        assert np.array_equal(np.sort(epoch(num_samples, number)), np.arange(num_samples))


@given(st.integers(1, 10**6), st.integers(0, 10**15), st.integers(0, 2**64 - 1))
@settings(max_examples=40, deadline=None)
def test_a_position_has_one_sample(num_samples: int, start: int, key: int) -> None:
    """Asked alone or among others, in any shape, a position gives the same sample, in range."""
    positions = start + np.arange(20)
    ids = sample_ids(positions, num_samples=num_samples, key=key)
    assert ids.min() >= 0
    assert ids.max() < num_samples
    assert np.array_equal(
        sample_ids(positions.reshape(4, 5), num_samples=num_samples, key=key).ravel(), ids
    )
    assert sample_ids(positions[7:8], num_samples=num_samples, key=key)[0] == ids[7]


def test_epochs_seeds_and_datasets_differ() -> None:
    """Another epoch, seed or fingerprint is another permutation."""
    keys = [KEY, order_key("fingerprint", 1), order_key("other", 0)]
    orders = [epoch(1000, 0), epoch(1000, 1), *(epoch(1000, 0, key) for key in keys[1:])]
    for i, one in enumerate(orders):
        for other in orders[:i]:
            assert np.mean(one == other) < 0.01


def test_the_order_never_changes() -> None:
    """The order is part of what a checkpoint means: these numbers must stay."""
    assert order_key("fingerprint", 0) == 0x69994EDE1277224D
    assert sample_ids(np.arange(8), num_samples=10, key=5).tolist() == [9, 7, 8, 1, 3, 4, 2, 5]


@pytest.mark.parametrize("num_samples", [1000, 1797, 50_000, 2**16])
def test_neighbours_are_unrelated(num_samples: int) -> None:
    """Serial correlation is small, and samples move by a third of the dataset on average."""
    bound = 5 / np.sqrt(num_samples)
    for number in range(3):
        ids = epoch(num_samples, number)
        assert abs(np.corrcoef(ids[:-1], ids[1:])[0, 1]) < bound
        assert abs(np.corrcoef(ids, epoch(num_samples, number + 1))[0, 1]) < bound
        assert abs(np.abs(ids - np.arange(num_samples)).mean() / num_samples - 1 / 3) < bound


@pytest.mark.parametrize("num_samples", [2, 3, 5, 10])
def test_small_datasets_are_fair(num_samples: int) -> None:
    """Over many epochs every sample comes first about equally often."""
    num_epochs = 2000
    firsts = sample_ids(np.arange(num_epochs) * num_samples, num_samples=num_samples, key=KEY)
    expected = num_epochs / num_samples
    assert np.abs(np.bincount(firsts, minlength=num_samples) - expected).max() < 5 * np.sqrt(
        expected
    )
