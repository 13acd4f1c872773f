"""The official datasets and the folder that they are stored in."""

from __future__ import annotations

import gzip
import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from shards.errors import ShardError
from shards.files import cache_folder
from shards.images import decode_image
from shards.sources.registry import open_source
from tests.shards.images import write_folder, write_tar

MakeImages = Callable[..., Path]


def test_splits_and_roots_belong_to_words(make_images: MakeImages, tmp_path: Path) -> None:
    """`split` and `root` are refused where they would mean nothing."""
    for options in ({"split": "test"}, {"root": tmp_path}, {"split": "val"}):
        with pytest.raises(ShardError, match="split"):
            open_source(make_images(2), **options)  # type: ignore[arg-type]
    for options in ({"split": "test"}, {"root": tmp_path}):
        with pytest.raises(ShardError, match="leave out"):
            open_source("digits", **options)  # type: ignore[arg-type]


def test_digits() -> None:
    """The embedded digits are all there, in their ten classes."""
    source = open_source("digits")
    assert len(source) == 1797
    assert (source.default_size, source.default_channels) == (32, 1)
    assert source.labels is not None
    assert len(np.unique(source.labels)) == 10
    assert (
        max(decode_image(source.read(item), size=8, channels=1).max() for item in range(10)) == 255
    )


def idx(array: np.ndarray) -> bytes:
    dimensions = b"".join(side.to_bytes(4, "big") for side in array.shape)
    return gzip.compress(bytes([0, 0, 8, array.ndim]) + dimensions + array.tobytes())


@pytest.mark.parametrize("place", ["", "raw", "MNIST/raw"])
def test_mnist_from_official_files(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MNIST is read from wherever torchvision puts its files, once their md5 has matched."""
    from torchvision.datasets import MNIST

    images = np.arange(2 * 28 * 28).reshape(2, 28, 28).astype(np.uint8)
    files = {
        "t10k-images-idx3-ubyte.gz": idx(images),
        "t10k-labels-idx1-ubyte.gz": idx(np.array([3, 8], np.uint8)),
    }
    monkeypatch.setattr(
        MNIST, "resources", [(name, hashlib.md5(data).hexdigest()) for name, data in files.items()]
    )
    folder = write_folder(tmp_path / place, files)
    source = open_source("mnist", split="test", root=tmp_path)
    assert np.array_equal(decode_image(source.read(1), size=28, channels=1)[0], images[1])
    assert source.labels is not None
    assert source.labels.tolist() == [3, 8]
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(b"damaged")
    with pytest.raises(ShardError, match="not the official file"):
        open_source("mnist", split="test", root=tmp_path)


class Canary:
    """Unpickling it leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (self.path, "w")


@pytest.mark.parametrize("archived", [False, True])
def test_cifar_is_unpickled_only_after_its_md5(
    archived: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Official batches are read from folder or archive; one with another md5 is not unpickled."""
    from torchvision.datasets import CIFAR10

    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32), dtype=np.uint8)
    files = {
        "test_batch": pickle.dumps({"data": pixels.reshape(2, -1), "labels": [1, 0]}),
        "batches.meta": pickle.dumps({"label_names": ["cat", "dog"]}),
    }
    md5s = {name: hashlib.md5(data).hexdigest() for name, data in files.items()}
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", md5s["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": md5s["batches.meta"]})
    inside = {f"cifar-10-batches-py/{name}": data for name, data in files.items()}
    if archived:
        archive = write_tar(tmp_path / "cifar-10-python.tar.gz", inside, "w:gz")
        monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    else:
        write_folder(tmp_path, inside)
    source = open_source("cifar10", split="test", root=tmp_path)
    assert source.class_names == ("cat", "dog")
    assert np.array_equal(decode_image(source.read(0), size=32, channels=3), pixels[0])
    canary = tmp_path / "canary"
    evil = {name: pickle.dumps(Canary(canary)) for name in inside}
    _ = (
        write_tar(tmp_path / "cifar-10-python.tar.gz", evil, "w:gz")
        if archived
        else write_folder(tmp_path, evil)
    )
    with pytest.raises(ShardError, match="not the official file"):
        open_source("cifar10", split="test", root=tmp_path)
    assert not canary.exists()


def test_a_root_without_the_files_says_so(tmp_path: Path) -> None:
    """With `root` nothing is downloaded."""
    for word in ("mnist", "cifar10"):
        with pytest.raises(ShardError, match="holds no"):
            open_source(word, root=tmp_path)


def test_the_cache_is_where_the_user_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """DISTGAN_CACHE goes before the user's cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("DISTGAN_CACHE", raising=False)
    assert cache_folder() == tmp_path / "distgan"
    monkeypatch.setenv("DISTGAN_CACHE", "/elsewhere")
    assert cache_folder() == Path("/elsewhere")
