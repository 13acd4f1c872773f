"""Reading: images by id, and streams that agree on one global order."""

from __future__ import annotations

import gc
import threading
import time
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch

from shards.errors import ShardError
from shards.format.index import ShardIndex
from shards.order.permutation import order_key, sample_ids
from shards.reader import ShardReader
from shards.stream import BatchStream


def take(
    reader: ShardReader, num_batches: int, *, start: int = 0, batch_size: int = 12, **options: int
) -> torch.Tensor:
    """The first batches of a stream, [num_batches, b, C, H, W]."""
    with BatchStream(reader, key=KEY, start=start, batch_size=batch_size, **options) as stream:
        return torch.stack(list(islice(stream, num_batches)))


KEY = order_key("any", 3)


def test_gather_is_the_image_of_each_id(packed: ShardIndex) -> None:
    """Images come in the order asked for, over shard borders, repeated where asked twice."""
    reader = ShardReader(packed)
    everything = reader.gather(np.arange(250))
    assert len(np.unique(everything.reshape(250, -1), axis=0)) == 250
    ids = np.array([249, 0, 204, 203, 204, 5])
    assert np.array_equal(reader.gather(ids), everything[ids])
    with pytest.raises(IndexError):
        reader.gather(np.array([250]))


def test_classes_restrict_the_ids(packed: ShardIndex) -> None:
    """With some classes, by name or number, ids run over their images only."""
    whole, labels = ShardReader(packed), ShardReader(packed).labels(np.arange(250))
    for classes in (["b"], [1]):
        reader = ShardReader(packed, classes=classes)
        assert reader.num_samples == 125
        ids = np.arange(reader.num_samples)
        assert set(reader.labels(ids)) == {1}
        assert np.array_equal(reader.gather(ids), whole.gather(np.flatnonzero(labels == 1)))
    for wrong in ("c", 2, -1):
        with pytest.raises(ShardError, match="the classes are a, b"):
            ShardReader(packed, classes=[wrong])
    with pytest.raises(ShardError, match="no labels"):
        ShardReader(replace(packed, class_names=None), classes=["a"])


def test_many_shards_need_few_descriptors(
    packed: ShardIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shards beyond the limit of open ones are closed and opened again."""
    monkeypatch.setattr("shards.reader._MAX_OPEN_SHARDS", 1)
    reader = ShardReader(packed)
    ids = np.array([0, 249, 1, 248])
    assert np.array_equal(reader.gather(ids), ShardReader(packed).gather(np.arange(250))[ids])


def test_the_stream_follows_the_order(packed: ShardIndex) -> None:
    """Batches are the samples at consecutive positions, over epoch borders, each once an epoch."""
    reader = ShardReader(packed)
    batches = take(reader, 50, batch_size=10)
    ids = sample_ids(np.arange(500), num_samples=250, key=KEY)
    assert np.array_equal(batches.flatten(0, 1).numpy(), reader.gather(ids))
    assert batches.dtype == torch.uint8


@pytest.mark.parametrize("world", [1, 2, 3, 4, 6, 12])
def test_the_global_order_is_the_same_for_any_world(packed: ShardIndex, world: int) -> None:
    """The ranks' slices, put side by side, are the batches of one process."""
    reader = ShardReader(packed)
    ranks = [take(reader, 25, rank=rank, world_size=world) for rank in range(world)]
    assert torch.equal(torch.cat(ranks, dim=1), take(reader, 25))


def test_resuming_is_one_integer(packed: ShardIndex) -> None:
    """A stream that starts at another's position continues it, even with another batch size."""
    reader = ShardReader(packed)
    with BatchStream(reader, key=KEY, start=0, batch_size=12) as stream:
        for _ in range(30):
            next(stream)
        assert stream.position == 360
        after = torch.cat([next(stream) for _ in range(5)])
    assert torch.equal(take(reader, 6, start=360, batch_size=10).flatten(0, 1), after)


def test_blocks_of_ids_leave_no_seam(packed: ShardIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids are worked out in blocks; their length does not show."""
    expected = take(ShardReader(packed), 40, rank=1, world_size=2)
    monkeypatch.setattr("shards.order.permutation.Permutation.block", 18)
    assert torch.equal(take(ShardReader(packed), 40, rank=1, world_size=2), expected)


def test_batches_must_divide(packed: ShardIndex) -> None:
    """A batch size that the world does not divide is refused."""
    for batch_size, world in ((10, 3), (0, 1)):
        with pytest.raises(ShardError, match="batch size"):
            BatchStream(
                ShardReader(packed), key=KEY, start=0, batch_size=batch_size, world_size=world
            )


def test_errors_of_the_thread_arrive(packed: ShardIndex) -> None:
    """What fails while reading ahead is raised by next(), after the batches before it."""
    reader = ShardReader(packed)
    (packed.path / packed.shards[1].file).unlink()
    with (
        BatchStream(reader, key=KEY, start=0, batch_size=250) as stream,
        pytest.raises(ShardError, match=r"000001\.tar"),
    ):
        next(stream)
    assert list(stream) == []


def test_no_thread_is_left(packed: ShardIndex) -> None:
    """Closed in the middle, left by an exception, or forgotten, a stream takes its thread along."""
    reader = ShardReader(packed)
    stream = BatchStream(reader, key=KEY, start=0, batch_size=4)
    next(stream)
    stream.close()
    stream.close()
    assert list(stream) == []
    with (
        pytest.raises(ZeroDivisionError),
        BatchStream(reader, key=KEY, start=0, batch_size=4) as stream,
    ):
        raise ZeroDivisionError
    assert not _threads()
    stream = BatchStream(reader, key=KEY, start=0, batch_size=4)
    del stream
    gc.collect()
    deadline = time.monotonic() + 5
    while _threads():
        assert time.monotonic() < deadline, "a forgotten stream reads on"
        time.sleep(0.01)


def _threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("shards-")]
