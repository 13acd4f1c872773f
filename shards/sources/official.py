"""Named datasets: scikit-learn's digits, and MNIST and CIFAR-10 from their official files.

The checksum of an official file is compared before anything reads it.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import pickle
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.errors import ShardError, printable
from shards.files import cache_folder
from shards.sources.source import Source

DIGIT_NAMES = tuple(str(digit) for digit in range(10))


@dataclass(kw_only=True)
class ArraySource(Source):
    """Images in memory, as uint8 [N, H, W] or [N, H, W, 3]."""

    images: NDArray[np.uint8]

    def _read(self, item: int) -> NDArray[np.uint8]:
        image: NDArray[np.uint8] = self.images[item]
        return image


def open_digits(split: str, root: Path | None) -> Source:
    """Open the 1,797 handwritten digits of scikit-learn (8x8, 17 grey levels)."""
    if split != "train":
        raise ShardError(f"digits has no split {split!r}: leave out --split")
    if root is not None:
        raise ShardError("digits ships with scikit-learn: leave out --root")
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    return _array_source("digits", images, digits.target, DIGIT_NAMES, channels=1)


def open_mnist(split: str, root: Path | None) -> Source:
    """Open MNIST (LeCun et al. 1998): 60,000 or 10,000 digits of 28x28."""
    from torchvision.datasets import MNIST

    prefix = {"train": "train", "test": "t10k"}[split]
    md5_of = dict(MNIST.resources)
    data = {}
    for part in ("images-idx3", "labels-idx1"):
        name = f"{prefix}-{part}-ubyte.gz"
        urls = [mirror + name for mirror in MNIST.mirrors]
        folders = () if root is None else (root, root / "raw", root / "MNIST" / "raw")
        data[part] = gzip.decompress(_official_bytes(name, md5_of[name], urls, root, folders))
    images = np.frombuffer(data["images-idx3"], np.uint8, offset=16).reshape(-1, 28, 28)
    labels = np.frombuffer(data["labels-idx1"], np.uint8, offset=8)
    return _array_source(f"mnist/{split}", images, labels, DIGIT_NAMES, channels=1)


def open_cifar10(split: str, root: Path | None) -> Source:
    """Open CIFAR-10 (Krizhevsky 2009): 50,000 or 10,000 colour images of 32x32 in ten classes.

    The official files are pickles, and are unpickled only after their md5 has matched.
    """
    from torchvision.datasets import CIFAR10

    batches = CIFAR10.train_list if split == "train" else CIFAR10.test_list
    md5_of = dict([*batches, [CIFAR10.meta["filename"], CIFAR10.meta["md5"]]])
    files = _cifar_files(
        md5_of, root, CIFAR10.filename, CIFAR10.tgz_md5, CIFAR10.url, CIFAR10.base_folder
    )
    parts: dict[str, Any] = {
        name: pickle.loads(data, encoding="latin1") for name, data in files.items()
    }
    pixels = np.concatenate([parts[name]["data"] for name, _ in batches])
    labels = np.concatenate([parts[name]["labels"] for name, _ in batches])
    class_names = tuple(parts[CIFAR10.meta["filename"]][CIFAR10.meta["key"]])
    images = np.ascontiguousarray(pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    return _array_source(f"cifar10/{split}", images, labels, class_names, channels=3)


def _cifar_files(
    md5_of: dict[str, str],
    root: Path | None,
    archive: str,
    archive_md5: str,
    url: str,
    base_folder: str,
) -> dict[str, bytes]:
    """Return the checked bytes of the batch files, from a folder or from the archive."""
    for folder in () if root is None else (root, root / base_folder):
        if all((folder / name).is_file() for name in md5_of):
            return {name: _checked(folder / name, md5) for name, md5 in md5_of.items()}
    data = _official_bytes(archive, archive_md5, [url], root, () if root is None else (root,))
    files = {}
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as tar:
        for member in tar:
            name = os.path.basename(member.name)
            content = tar.extractfile(member) if name in md5_of else None
            if content is not None:
                files[name] = content.read()
    return files


def _official_bytes(
    name: str, md5: str, urls: list[str], root: Path | None, folders: tuple[Path, ...]
) -> bytes:
    """Return an official file from the first of `folders` that has it.

    Without a root it is downloaded to the cache.
    """
    for folder in folders:
        if (folder / name).is_file():
            return _checked(folder / name, md5)
    if root is not None:
        raise ShardError(
            f"--root {printable(root)} holds no {name}: "
            "put the official file there, or leave out --root"
        )
    path = cache_folder() / "downloads" / name
    if not path.is_file():
        _download(path, md5, urls)
    return _checked(path, md5)


def _download(path: Path, md5: str, urls: list[str]) -> None:
    from torchvision.datasets.utils import download_url

    unfinished = f"{path.name}.{os.getpid()}"
    reasons = []
    for url in urls:
        try:
            download_url(url, path.parent, unfinished, md5)
            os.replace(path.with_name(unfinished), path)
            return
        except (OSError, RuntimeError) as error:
            path.with_name(unfinished).unlink(missing_ok=True)
            reasons.append(printable(f"{url}: {error}"))
    raise ShardError(
        f"cannot download {path.name} ({'; '.join(reasons)}): "
        "fetch it on a machine with a network and give its folder with --root"
    )


def _checked(path: Path, md5: str) -> bytes:
    data = path.read_bytes()
    found = hashlib.md5(data, usedforsecurity=False).hexdigest()
    if found != md5:
        raise ShardError(
            f"{printable(path)} is not the official file (md5 {found}, not {md5}): "
            "delete it and fetch it again"
        )
    return data


def _array_source(
    name: str,
    images: NDArray[np.uint8],
    labels: NDArray[Any],
    class_names: tuple[str, ...],
    *,
    channels: int,
) -> Source:
    labels = labels.astype(np.int32)
    return ArraySource(
        names=[f"{name}/{item:05d}" for item in range(len(images))],
        sizes=np.full(len(images), images[0].size, np.int64),
        labels=labels,
        class_names=class_names,
        digest=hashlib.sha256(images.tobytes() + labels.astype("<i4").tobytes()).hexdigest(),
        default_size=32,
        default_channels=channels,
        in_memory=True,
        images=images,
    )
