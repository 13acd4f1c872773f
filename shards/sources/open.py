"""Where images come from: a word, a folder, an archive, or the shards of another tool, told apart in one place."""

from __future__ import annotations

import difflib
import os
import re
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shards.errors import ShardError, printable
from shards.images import EXTENSIONS
from shards.sources.archives import open_tar, open_webdataset, open_zip
from shards.sources.listing import (
    Source,
    classes_of_folders,
    digest_of,
    is_hidden,
    warn_unsupported_formats,
)
from shards.sources.official import cache_folder, open_cifar10, open_digits, open_mnist
from shards.sources.stacked import open_stacked_digits, open_stacked_mnist

__all__ = ["WORDS", "FolderSource", "Source", "cache_folder", "open_source"]

_TAR = re.compile(r"\.(tar|tgz|tar\.(gz|bz2|xz|zst))$")
SPLITS = ("train", "test")
WORDS: dict[str, Callable[[str, Path | None], Source]] = {  # word -> (split, root) -> source
    "digits": open_digits,
    "mnist": open_mnist,
    "cifar10": open_cifar10,
    "stacked-mnist": open_stacked_mnist,
    "stacked-digits": open_stacked_digits,
}


@dataclass(kw_only=True)
class FolderSource(Source):
    """The image files under a folder."""

    folder: str
    files: list[str]  # as the system spells them, relative to the folder

    def _read(self, item: int) -> bytes:
        with open(os.path.join(self.folder, self.files[item]), "rb") as file:
            return file.read()


def open_source(source: str | Path, *, split: str = "train", root: Path | None = None) -> Source:
    """The images that `source` names: one of WORDS, an image folder, a .tar or .zip, or a folder of WebDataset tars.

    `split` and `root` (a folder with the official files, in place of a download) belong to the words. Raises ShardError
    for anything that is not there, cannot be read or holds no image.
    """
    if split not in SPLITS:
        raise ShardError(f"no split {split!r}: the splits are {' and '.join(SPLITS)}")
    try:
        opened = (
            WORDS[str(source)](split, root)
            if str(source) in WORDS
            else _open_path(source, split, root)
        )
    except OSError as error:
        raise ShardError(
            f"cannot read {printable(str(error.filename or source))}: {error.strerror or error}"
        ) from error
    if not len(opened):
        ignored = f" ({opened.num_ignored:,} other files)" if opened.num_ignored else ""
        raise ShardError(
            f"no image in {printable(str(source))}{ignored}: images end in {', '.join(sorted(EXTENSIONS))}"
        )
    return opened


def _open_path(source: str | Path, split: str, root: Path | None) -> Source:
    shown, path = printable(str(source)), Path(source).expanduser()
    if split != "train" or root is not None:
        raise ShardError(
            f"--split and --root belong to {', '.join(WORDS)}, not to {shown}: leave them out"
        )
    if not path.exists():
        near = difflib.get_close_matches(str(source), WORDS, n=1)
        hint = (
            f"did you mean {near[0]}?"
            if near
            else f"give a path that exists, or one of {', '.join(WORDS)}"
        )
        raise ShardError(f"no file or folder {shown}: {hint}")
    if path.is_dir():
        return _open_folder(path)
    if path.suffix.lower() in EXTENSIONS or not path.is_file():
        raise ShardError(
            f"{shown} is neither a folder nor an archive: give the folder that holds your images"
        )
    if path.suffix.lower() == ".zip" or zipfile.is_zipfile(path):
        return open_zip(path)
    return open_tar(path)


def _open_folder(folder: Path) -> Source:
    files, others, tars = [], [], []
    for path, size in _walk(str(folder), "", ()):
        extension = os.path.splitext(path)[1].lower()
        if extension in EXTENSIONS and not is_hidden(path):
            files.append((path, size))
        else:
            others.append(path)
            if _TAR.search(path.lower()) and not is_hidden(path):
                tars.append(folder / path)
    if tars and not files:
        return open_webdataset(sorted(tars))
    warn_unsupported_formats(others)
    files.sort()
    names = [printable(path) for path, _ in files]
    sizes = [size for _, size in files]
    labels, class_names = classes_of_folders(names)
    return FolderSource(
        names=names,
        sizes=np.array(sizes, np.int64),
        labels=labels,
        class_names=class_names,
        digest=digest_of(names, sizes, labels),
        num_ignored=len(others),
        folder=str(folder),
        files=[path for path, _ in files],
    )


def _walk(top: str, folder: str, above: tuple[tuple[int, int], ...]) -> Iterator[tuple[str, int]]:
    """Every regular file under `top`/`folder` as (path relative to `top`, bytes); links are followed, loops are not."""
    here = os.stat(os.path.join(top, folder))
    if (here.st_dev, here.st_ino) in above:
        return
    above += ((here.st_dev, here.st_ino),)
    with os.scandir(os.path.join(top, folder)) as entries:
        for entry in entries:
            path = f"{folder}/{entry.name}" if folder else entry.name
            if entry.is_dir():
                yield from _walk(top, path, above)
            elif entry.is_file():
                yield path, entry.stat().st_size
