"""What every image source offers: a sorted list of named items, their labels, and the bytes of each."""

from __future__ import annotations

import hashlib
import logging
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shards.images import MAX_ENCODED_BYTES, BadImage

UNREAD = frozenset({".avif", ".heic", ".heif", ".jp2", ".jxl", ".tif", ".tiff"})


@dataclass(kw_only=True)
class Source(ABC):
    """Images in a fixed order, cheap to pickle: worker processes open what they read themselves."""

    names: Sequence[str]  # for messages; files never are opened or made by them
    sizes: NDArray[np.int64]  # encoded bytes of each item
    labels: NDArray[np.int32] | None  # index into class_names
    class_names: tuple[str, ...] | None
    digest: str  # of names, sizes and labels: a half-finished pack goes on only with the same items
    num_ignored: int = 0  # files that are no images
    default_size: int = 64
    default_channels: int = 3
    in_memory: bool = False  # nothing to read or decode: worker processes would not pay

    def __len__(self) -> int:
        return len(self.names)

    def read(self, item: int) -> bytes | NDArray[np.uint8]:
        """What `decode_image` takes. Raises BadImage for an absurd size, OSError where it cannot be read."""
        if self.sizes[item] > MAX_ENCODED_BYTES:
            raise BadImage(f"{self.sizes[item]:,} bytes, above the limit of {MAX_ENCODED_BYTES:,}")
        return self._read(item)

    @abstractmethod
    def _read(self, item: int) -> bytes | NDArray[np.uint8]: ...


def is_hidden(path: str) -> bool:
    """Whether any part of a path is a system's own: dot files, and what macOS adds to archives."""
    return any(
        part == "__MACOSX" or (part.startswith(".") and part not in (".", ".."))
        for part in path.split("/")
    )


def warn_unsupported_formats(names: Iterable[str]) -> None:
    """Say how many images were left out because their format is not read; other files need no word."""
    suffixes = (os.path.splitext(name)[1].lower() for name in names if not is_hidden(name))
    kinds = Counter(suffix for suffix in suffixes if suffix in UNREAD)
    if kinds:
        counts = ", ".join(f"{count:,} {suffix}" for suffix, count in sorted(kinds.items()))
        logging.getLogger(__name__).warning(
            "left out images of formats that are not read: %s; convert them", counts
        )


def classes_of_folders(
    names: Sequence[str],
) -> tuple[NDArray[np.int32] | None, tuple[str, ...] | None]:
    """Labels and class names from the first folder in which the paths differ.

    There are labels only if every item lies in such a folder and there are at least two of them.
    """
    folders = [
        [part for part in name.split("/")[:-1] if part not in ("", ".", "..")] for name in names
    ]
    # what the first and the last in order share, all share
    first, last = min(folders, default=[]), max(folders, default=[])
    common = next(
        (depth for depth, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first)
    )
    if len(first) <= common:
        return None, None
    class_names = tuple(sorted({parts[common] for parts in folders}))
    label_of_class = {name: label for label, name in enumerate(class_names)}
    return np.array([label_of_class[parts[common]] for parts in folders], np.int32), class_names


def digest_of(names: Sequence[str], sizes: Sequence[int], labels: NDArray[np.int32] | None) -> str:
    """The identity of a list of items, as hex digits."""
    digest = hashlib.sha256()
    for name, size in zip(names, sizes, strict=True):
        digest.update(f"{name}\0{size}\n".encode())
    digest.update(b"" if labels is None else labels.astype("<i4").tobytes())
    return digest.hexdigest()
