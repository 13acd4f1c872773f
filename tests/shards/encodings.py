"""Images that compress as photographs do, packed in every encoding."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from shards.format.index import ShardIndex
from shards.pack import pack
from shards.reader import ShardReader
from shards.sources.official import ArraySource
from shards.stream import BatchStream

NUM = 250  # in two shards


ENCODINGS = ("raw", "png", "jpeg")


def smooth_source(channels: int = 3) -> ArraySource:
    """Images of 32x32 that compress as photographs do, in two classes."""
    draw = np.random.default_rng(0)
    coarse = [Image.fromarray(draw.integers(0, 256, (5, 5, 3), np.uint8)) for _ in range(NUM)]
    images = np.stack(
        [np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC)) for image in coarse]
    )
    return ArraySource(
        names=[str(number) for number in range(NUM)],
        sizes=np.full(NUM, images[0].size, np.int64),
        labels=np.arange(NUM, dtype=np.int32) % 2,
        class_names=("even", "odd"),
        digest="0" * 64,
        default_size=32,
        in_memory=True,
        images=images if channels == 3 else images[..., 0],
    )


def pack_all(folder: Path, channels: int = 3) -> dict[str, ShardIndex]:
    """The same images in every encoding."""
    source = smooth_source(channels)
    options: dict[str, Any] = {"channels": channels, "shard_size_mb": 1}
    return {
        encoding: pack(source, folder / encoding, encoding=encoding, **options)
        for encoding in ENCODINGS
    }


def take(reader: ShardReader, num_batches: int, **options: int) -> torch.Tensor:
    """The first batches of a stream, [num_batches, b, C, H, W]."""
    with BatchStream(reader, **{"key": 7, "start": 0, "batch_size": 12} | options) as stream:
        return torch.stack(list(islice(stream, num_batches)))
