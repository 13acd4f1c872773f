"""The order of windows: a function of the position, equal for every world, with few shards."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from shards.errors import ShardError
from shards.format.index import ShardIndex
from shards.order.permutation import Permutation
from shards.order.settings import OrderSettings
from shards.order.windows import Windows
from shards.reader import ShardReader
from tests.shards.test_reader import take

COUNTS = np.array([40] * 30 + [0, 7], np.int64)


def windows(
    counts: NDArray[np.int64] = COUNTS,
    *,
    key: int = 1,
    batch_size: int = 24,
    lanes: int = 4,
    window_shards: int = 3,
) -> Windows:
    return Windows(counts, key=key, batch_size=batch_size, lanes=lanes, window_shards=window_shards)


@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=40).filter(any),
    st.integers(1, 6),
    st.integers(1, 8),
    st.integers(1, 5),
    st.integers(0, 10**9),
)
@settings(max_examples=60, deadline=None)
def test_each_sample_once_an_epoch(
    counts: list[int], share: int, lanes: int, window_shards: int, epoch: int
) -> None:
    """Each sample comes exactly once, even if neither batch nor lanes divide the epoch."""
    order = windows(
        np.array(counts, np.int64),
        batch_size=share * lanes,
        lanes=lanes,
        window_shards=window_shards,
    )
    total = sum(counts)
    for number in (0, 1, epoch):
        ids = order.ids(number * total + np.arange(total))
        assert np.array_equal(np.sort(ids), np.arange(total))


@given(st.integers(0, 10**12), st.integers(1, 400))
@settings(max_examples=40, deadline=None)
def test_a_position_has_one_sample(start: int, length: int) -> None:
    """Asked alone or among others, in any shape: a run can go on at any position."""
    positions = start + np.arange(2 * length)
    ids = windows().ids(positions)
    assert np.array_equal(windows().ids(positions.reshape(2, -1)), ids.reshape(2, -1))
    assert windows().ids(positions[length:][:1])[0] == ids[length]


def test_epochs_and_keys_differ() -> None:
    """Another epoch or key is another order, of the shards too."""
    epoch = np.arange(COUNTS.sum())
    orders = [windows().ids(epoch), windows().ids(epoch + len(epoch)), windows(key=2).ids(epoch)]
    for i, one in enumerate(orders):
        for other in orders[:i]:
            assert np.mean(one == other) < 0.05
            assert np.mean(one[:24] // 40 == other[:24] // 40) < 0.5


def test_the_order_never_changes() -> None:
    """The order is part of what a checkpoint means: these numbers must stay."""
    ids = windows().ids(np.array([0, 1, 6, 12, 23, 24, 1206, 1207, 5000]))
    assert ids.tolist() == [855, 403, 66, 580, 526, 246, 1, 706, 908]


@pytest.mark.parametrize("world", [1, 2, 4, 3])
@pytest.mark.parametrize("start", [0, 24 * 17, 1207 - 5])
def test_a_rank_needs_what_it_is_told(world: int, start: int) -> None:
    """In two epochs every shard is requested before it is read, and no more are held than said."""
    order, share = windows(), 24 // world
    shard_of_id = np.repeat(np.arange(len(COUNTS)), COUNTS)
    for rank in range(world):
        first = start + rank * share
        needs = list(islice(order.needs(first, share, 24), 400))
        for batch in range(first, first + 2 * 1207, 24):
            asked = {
                need.shard
                for need in needs
                if need.begin <= batch + share and (need.end or 0) > batch
            }
            assert set(shard_of_id[order.ids(batch + np.arange(share))]) <= asked
            held = {need.shard for need in needs if need.begin <= batch and (need.end or 0) > batch}
            assert len(held) <= order.max_needed_shards(first, share)


def test_lanes_spare_a_rank_the_others_shards() -> None:
    """With as many lanes as ranks, a rank reads its part of the shards per epoch, few at a time."""
    order = windows(np.full(400, 30), batch_size=64, lanes=8, window_shards=4)
    positions = 64 * np.arange(400 * 30 // 64)[:, None] + np.arange(8)
    assert len(np.unique(order.ids(positions) // 30)) <= 400 // 8 + 2
    assert order.max_needed_shards(0, 8) == 8
    assert order.max_needed_shards(0, 64) == 64
    assert (
        len({need.shard for need in islice(Permutation(np.full(9, 5), key=1).needs(0, 4, 8), 9)})
        == 9
    )


@pytest.mark.parametrize("world", [2, 3, 4])
def test_the_global_order_is_the_same_for_any_world(packed: ShardIndex, world: int) -> None:
    """The slices of all ranks form the batches of one process; a stream resumes anywhere."""
    reader = ShardReader(packed, order_settings=OrderSettings("windows", window_shards=1))
    whole = take(reader, 30)
    ranks = [take(reader, 30, rank=rank, world_size=world) for rank in range(world)]
    assert np.array_equal(np.concatenate(ranks, axis=1), whole)
    assert np.array_equal(take(reader, 10, start=12 * 20), whole[20:])


def test_classes_have_windows_too(packed: ShardIndex) -> None:
    """Some classes, once an epoch."""
    reader = ShardReader(packed, classes=["b"], order_settings=OrderSettings("windows", lanes=2))
    ids = reader.make_order(3, batch_size=10).ids(np.arange(125))
    assert np.array_equal(np.sort(ids), np.arange(125))


def test_lanes_must_divide_the_batch(packed: ShardIndex) -> None:
    """A number of lanes that does not fit says which does."""
    with pytest.raises(ShardError, match=r"data\.lanes=6 does not divide a batch of 16: give 4"):
        take(
            ShardReader(packed, order_settings=OrderSettings("windows", lanes=6)), 1, batch_size=16
        )
