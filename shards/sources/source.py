"""What every image source offers: a sorted list of named items, their labels, and their bytes."""

from __future__ import annotations

import hashlib
import os
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shards.errors import ShardError, printable
from shards.images import EXTENSIONS, MAX_ENCODED_BYTES, BadImage
from shards.sources.texts import Texts

UNSUPPORTED = frozenset({".avif", ".heic", ".heif", ".jp2", ".jxl"})
_SEPARATOR = re.compile(r"[/\\]")  # archives made on Windows may hold backslashes
_HIDDEN = re.compile(r"(?:\A|[/\\])(?:__MACOSX(?=[/\\]|\Z)|\.(?!\.?(?:[/\\]|\Z)))")


class Entry(NamedTuple):
    """A file in a folder or an archive."""

    path: str
    size: int
    place: Any  # what its source needs to read it


class Skipped(NamedTuple):
    """An image, or a folder of images, that cannot be packed, and why."""

    name: str
    reason: str


@dataclass(kw_only=True)
class Items:
    """The images of a source in a fixed order, and what else was found beside them."""

    names: Sequence[str]  # for messages only: no file is opened or created by these names
    sizes: NDArray[np.int64]  # bytes of each image file
    labels: NDArray[np.int32] | None  # indices into class_names
    class_names: tuple[str, ...] | None
    digest: str  # identity of names, sizes and labels: only the same items continue a pack
    skipped: Sequence[Skipped] = ()
    other_files: Counter[str] = field(default_factory=Counter)  # by extension


@dataclass(kw_only=True)
class Source(Items, ABC):
    """Images in a fixed order. Cheap to pickle: each worker process opens the files itself."""

    default_size: int = 64
    default_channels: int = 3
    in_memory: bool = False  # nothing to read or decode, so worker processes do not pay

    def __len__(self) -> int:
        return len(self.names)

    def read(self, item: int) -> bytes | NDArray[np.uint8]:
        """Return what `decode_image` takes.

        Raises BadImage for a file that is far too large, ShardError if it has changed since it was
        listed, and OSError if it cannot be read.
        """
        if self.sizes[item] > MAX_ENCODED_BYTES:
            raise BadImage(f"{self.sizes[item]:,} bytes, above the limit of {MAX_ENCODED_BYTES:,}")
        return self._read(item)

    def stamps(self, items: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the stamps [n] (see `stamp_of`) that the files of items [n] had when listed."""
        return np.zeros(len(items), np.int64)

    def check(self) -> None:
        """Raise ShardError if what was listed has been replaced, where `read` does not notice."""

    @abstractmethod
    def _read(self, item: int) -> bytes | NDArray[np.uint8]: ...


def stamp_of(status: os.stat_result) -> int:
    """Return a number that differs once a file was written, replaced or restored.

    A file that is overwritten with as many bytes keeps its size, and a tool may reset the time of
    modification. No tool can reset the time of the last change, which the kernel keeps.
    """
    return hash((status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino))


def check_unchanged(name: str, status: os.stat_result, stamp: int) -> None:
    """Raise ShardError if a file is no longer the one that was listed."""
    if stamp_of(status) != stamp:
        raise ShardError(f"{name} was changed while it was packed: pack again")


def list_images(
    entries: Iterable[Entry], *, skipped: Iterable[Skipped] = (), with_labels: bool
) -> tuple[Items, list[Any]]:
    """Sort the images among the files of a folder or archive by path; npy if there are no others.

    Their labels are the names of their folders. Returns the items and their places.
    """
    images, arrays, others, left_out = [], [], Counter[str](), list(skipped)
    for entry in entries:
        extension = extension_of(entry.path)
        if extension in EXTENSIONS and not is_hidden(entry.path):
            images.append(entry)
            continue
        if extension == ".npy" and not is_hidden(entry.path):
            arrays.append(entry)
        others[extension] += 1
        if extension in UNSUPPORTED and not is_hidden(entry.path):
            left_out.append(Skipped(printable(entry.path), f"{extension} files are not read"))
    if arrays and not images:  # arrays beside images are something else, such as features
        images, others[".npy"] = arrays, others[".npy"] - len(arrays)
        others = +others
    images.sort(key=lambda entry: entry.path)
    names = Texts(printable(entry.path) for entry in images)
    sizes = [entry.size for entry in images]
    labels, class_names = None, None
    if with_labels:
        labels, class_names = classes_of_folders([entry.path for entry in images])
    items = Items(
        names=names,
        sizes=np.array(sizes, np.int64),
        labels=labels,
        class_names=class_names,
        digest=digest_of(names, sizes, labels),
        skipped=sorted(left_out),
        other_files=others,
    )
    return items, [entry.place for entry in images]


def extension_of(path: str) -> str:
    """Return the extension of a path in lower case and safe to print, or an empty string."""
    return printable(os.path.splitext(path)[1].lower())


def is_image_name(path: str) -> bool:
    """Return whether a path has the extension of an image and is not hidden."""
    return extension_of(path) in EXTENSIONS and not is_hidden(path)


def is_hidden(path: str) -> bool:
    """Return whether a path contains a dot file or what macOS adds to archives."""
    return _HIDDEN.search(path) is not None


def classes_of_folders(
    paths: Sequence[str],
) -> tuple[NDArray[np.int32] | None, tuple[str, ...] | None]:
    """Return labels and class names from the first folder in which the paths differ.

    There are none if there are fewer than two such folders. Raises ShardError if some images are
    in class folders and others beside them.
    """
    folders = [
        [printable(part) for part in _SEPARATOR.split(path)[:-1] if part not in ("", ".", "..")]
        for path in paths
    ]
    # What the first and the last in sorted order have in common, all have in common.
    first, last = min(folders, default=[]), max(folders, default=[])
    depth = next(
        (depth for depth, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first)
    )
    class_names = tuple(sorted({parts[depth] for parts in folders if len(parts) > depth}))
    if len(class_names) < 2:
        return None, None
    for path, parts in zip(paths, folders, strict=True):
        if len(parts) <= depth:
            raise ShardError(
                f"{printable(path)} is in no class folder, but others are "
                f"({', '.join(class_names[:3])}): "
                "move it into one, or pack without labels with --labels ignore"
            )
    label_of_class = {name: label for label, name in enumerate(class_names)}
    return np.array([label_of_class[parts[depth]] for parts in folders], np.int32), class_names


def number_classes(
    labels: Sequence[int | str], names: tuple[str, ...] | None = None
) -> tuple[NDArray[np.int32] | None, tuple[str, ...] | None]:
    """Return labels and class names of classes given by number or name, if there are several.

    Without `names` classes are sorted, by value if all are numbers. Classes that do not occur are
    left out.
    """
    texts = [str(label) for label in labels]
    is_number = all(text.isdecimal() for text in texts)
    present = sorted(set(texts), key=(lambda text: (int(text), text)) if is_number else str)
    if len(present) < 2:
        return None, None
    number_of = {text: number for number, text in enumerate(present)}
    named = is_number and names is not None and int(present[-1]) < len(names)
    class_names = [names[int(t)] if named and names is not None else printable(t) for t in present]
    return np.array([number_of[text] for text in texts], np.int32), tuple(class_names)


def digest_of(names: Sequence[str], sizes: Sequence[int], labels: NDArray[np.int32] | None) -> str:
    """Return the identity of a list of items as hex digits."""
    digest = hashlib.sha256()
    for name, size in zip(names, sizes, strict=True):
        digest.update(f"{name}\0{size}\n".encode())
    digest.update(b"" if labels is None else labels.astype("<i4").tobytes())
    return digest.hexdigest()
