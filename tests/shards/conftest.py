"""Small image folders, made afresh."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards.format.index import ShardIndex
from shards.pack import pack

MakeImages = Callable[..., Path]


@pytest.fixture
def make_images(tmp_path: Path) -> MakeImages:
    """make_images(num, classes=("a", "b"), size=16, name="images") -> a folder of PNGs of noise."""

    def make(
        num: int, *, classes: tuple[str, ...] = ("a", "b"), size: int = 16, name: str = "images"
    ) -> Path:
        rng = np.random.default_rng(num)
        folder = tmp_path / name
        for i in range(num):
            path = folder / (classes[i % len(classes)] if classes else "") / f"{i:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(path)
        return folder

    return make


@pytest.fixture
def packed(make_images: MakeImages, tmp_path: Path) -> ShardIndex:
    """250 images of 32x32 in two classes, in two shards (4,096 bytes a sample and a label of 1,024)."""
    return pack(make_images(250, size=32), tmp_path / "packed", size=32, shard_size_mb=1)
