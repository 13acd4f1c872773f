"""Small folders of images, and packed ones."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards.format.index import ShardIndex, read_index
from shards.pack import pack
from tests.shards.encodings import pack_all

MakeImages = Callable[..., Path]


def write_images(folder: Path, num: int, *, classes: tuple[str, ...], size: int) -> Path:
    """Write PNGs of noise, one class after another; return the folder."""
    rng = np.random.default_rng(num)
    for i in range(num):
        path = folder / (classes[i % len(classes)] if classes else "") / f"{i:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(path)
    return folder


@pytest.fixture
def make_images(tmp_path: Path) -> MakeImages:
    """make_images(num, classes=("a", "b"), size=16, name="images") -> a folder of PNGs of noise."""

    def make(
        num: int, *, classes: tuple[str, ...] = ("a", "b"), size: int = 16, name: str = "images"
    ) -> Path:
        return write_images(tmp_path / name, num, classes=classes, size=size)

    return make


@pytest.fixture(scope="session")
def packed_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pack 250 images of 32x32 in two classes and two shards (5,120 bytes per sample)."""
    folder = tmp_path_factory.mktemp("packed")
    images = write_images(folder / "images", 250, classes=("a", "b"), size=32)
    return pack(images, folder / "packed", size=32, shard_size_mb=1).path


@pytest.fixture
def packed(packed_once: Path, tmp_path: Path) -> ShardIndex:
    """Copy the 250 packed images, for a test that may change them."""
    return read_index(shutil.copytree(packed_once, tmp_path / "packed"))


@pytest.fixture(scope="session")
def indices(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ShardIndex]:
    """Pack the same images in every encoding, to be read only."""
    return pack_all(tmp_path_factory.mktemp("encoded"))


@pytest.fixture
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reach local servers directly, whatever proxy the machine uses."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
