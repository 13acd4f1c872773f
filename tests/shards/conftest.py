"""Small folders of images, and packed ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards.format.index import ShardIndex
from shards.pack import pack
from tests.shards.encodings import pack_all

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
    """Pack 250 images of 32x32 in two classes and two shards (5,120 bytes per sample)."""
    return pack(make_images(250, size=32), tmp_path / "packed", size=32, shard_size_mb=1)


@pytest.fixture(scope="session")
def indices(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ShardIndex]:
    """Pack the same images in every encoding, to be read only."""
    return pack_all(tmp_path_factory.mktemp("encoded"))


@pytest.fixture
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reach local servers directly, whatever proxy the machine uses."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
