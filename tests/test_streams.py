"""Every way of loading gives the same batches in the same order."""

from pathlib import Path

import numpy as np
import pytest
import torch

from distgan import data as streams
from distgan.config.load import with_overrides
from distgan.config.schema import Config
from distgan.data import CopiedAhead, ResidentStream, TrainingBatches, open_stream
from shards.pack import pack
from shards.reader import ShardReader
from shards.stream import BatchStream

PLACE = {"key": 5, "batch_size": 8}


def taken(stream: streams.ImageStream, num: int = 12) -> list[torch.Tensor]:
    """Return the first batches, three epochs of them, and close the stream."""
    batches = [next(stream).cpu() for _ in range(num)]
    stream.close()
    return batches


def test_training_on_a_cpu_does_not_touch_the_gpu(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pinned memory would open a context on it, in every process."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    options = {"start": 0, "rank": 0, "world_size": 1, "device": torch.device("cpu")}
    stream = open_stream(ShardReader(shards), resident_share=0.0, **options, **PLACE)
    assert len(taken(stream)) == 12


@pytest.mark.parametrize("classes", [None, ["odd"]])
@pytest.mark.parametrize("rank", [0, 1])
def test_resident_images_come_in_the_order_of_the_shards(
    shards: Path, rank: int, classes: list[str] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches equal those of the shards, from the middle of an epoch, on each rank and class."""
    reader = ShardReader(shards, classes)
    expected = taken(BatchStream(reader, start=20, rank=rank, world_size=2, **PLACE))
    monkeypatch.setattr(streams, "CHUNK", 7)
    monkeypatch.setattr(streams, "free_bytes", lambda device: 10**9)
    options = {"start": 20, "rank": rank, "world_size": 2, "device": torch.device("cpu")}
    stream = open_stream(reader, resident_share=0.5, **options, **PLACE)
    assert isinstance(stream, ResidentStream)
    assert stream.images.is_contiguous(memory_format=torch.channels_last)
    assert all(torch.equal(*pair) for pair in zip(taken(stream), expected, strict=True))


def test_images_become_resident_only_if_they_fit(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One byte too many, a share of zero, or no GPU: a thread reads ahead instead."""
    reader = ShardReader(shards)
    num_bytes = reader.num_samples * int(np.prod(reader.image_shape))
    options = {"start": 0, "rank": 0, "world_size": 1, "device": torch.device("cpu")}
    for free, share, expected in (
        (num_bytes, 0.5, BatchStream),
        (2 * num_bytes, 0.5, ResidentStream),
    ):
        monkeypatch.setattr(streams, "free_bytes", lambda device, free=free: free)
        for wanted, kind in ((share, expected), (0.0, BatchStream)):
            stream = open_stream(reader, resident_share=wanted, **options, **PLACE)
            stream.close()
            assert isinstance(stream, kind)
    monkeypatch.undo()
    assert streams.free_bytes(torch.device("cpu")) == 0


def test_images_that_are_slow_to_load_stay_in_their_shards(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Remote ones, and many compressed ones, would keep other ranks waiting at the start."""
    monkeypatch.setattr(streams, "free_bytes", lambda device: 10**9)
    monkeypatch.setattr(streams, "MAX_DECODED", 29)
    pack("digits", tmp_path / "png", encoding="png", workers=1)
    remote = ShardReader(shards)
    monkeypatch.setattr(remote.files, "remote", True)
    options = {"start": 0, "rank": 0, "world_size": 1, "device": torch.device("cpu")}
    for reader in (remote, ShardReader(tmp_path / "png")):
        stream = open_stream(reader, resident_share=0.5, workers=0, **options, **PLACE)
        stream.close()
        assert isinstance(stream, BatchStream)


def test_batches_are_on_a_device_that_is_neither_cpu_nor_cuda(shards: Path) -> None:
    """Images, latents and positions alike, as on the GPU of a Mac; `meta` has no data at all."""
    config = with_overrides(Config(), ["train.batch_size=8", "data.flip=true"])
    options = {"start": 0, "rank": 0, "world_size": 1, "device": torch.device("meta")}
    with TrainingBatches(ShardReader(shards), config, **options) as batches:
        (batch,) = batches.next(0, rollbacks=0)
    devices = {batch.reals.device.type, batch.latents.device.type, batch.positions.device.type}
    assert devices == {"meta"}


def test_micro_batches_do_not_depend_on_where_images_are(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Resident or read ahead, the normalised and mirrored images are the same."""
    config = with_overrides(Config(), ["train.batch_size=8", "data.flip=true"])
    seen = []
    for free in (0, 10**9):
        monkeypatch.setattr(streams, "free_bytes", lambda device, free=free: free)
        options = {"start": 0, "rank": 0, "world_size": 1, "device": torch.device("cpu")}
        with TrainingBatches(ShardReader(shards), config, **options) as batches:
            seen.append([batches.next(start, rollbacks=0)[0].reals for start in range(0, 64, 8)])
    assert all(torch.equal(*pair) for pair in zip(*seen, strict=True))


@pytest.mark.gpu
def test_copying_ahead_does_not_overwrite_batches(shards: Path) -> None:
    """Batches copied on a side stream, while the one before is in use, equal those read."""
    device, reader = torch.device("cuda"), ShardReader(shards)
    expected = taken(BatchStream(reader, start=0, **PLACE))
    stream = CopiedAhead(BatchStream(reader, start=0, **PLACE), device)
    assert all(torch.equal(*pair) for pair in zip(taken(stream), expected, strict=True))
