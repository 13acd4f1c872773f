"""Images inside a zip, read in place."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from shards.errors import ShardError, printable
from shards.images import BadImage
from shards.sources.source import Entry, Items, Source, check_unchanged, list_images, stamp_of


@dataclass(kw_only=True)
class ZipSource(Source):
    """The images of a zip file."""

    path: Path
    stamp: int
    members: Sequence[int]  # numbers in the zip's directory: two members may have one name
    _file: BinaryIO | None = None
    _zip: zipfile.ZipFile | None = None

    def stamps(self, items: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.full(len(items), self.stamp, np.int64)

    def _read(self, item: int) -> bytes:
        if self._zip is None:
            self._zip = self._open()
        try:
            data = self._zip.read(self._zip.infolist()[self.members[item]])
        except (OSError, ShardError):
            raise
        except Exception as error:  # as many types as there are compressors
            self._check_unchanged()
            raise BadImage(f"cannot be unzipped: {printable(error)}") from error
        self._check_unchanged()
        return data

    def _open(self) -> zipfile.ZipFile:
        self._file = open(self.path, "rb")  # noqa: SIM115
        self._check_unchanged()
        return zipfile.ZipFile(self._file)

    def _check_unchanged(self) -> None:
        assert self._file is not None, "the zip is open"
        check_unchanged(printable(self.path), os.fstat(self._file.fileno()), self.stamp)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_file": None, "_zip": None}

    def __del__(self) -> None:
        for opened in (self._zip, self._file):
            if opened is not None:
                opened.close()


def open_zip(path: Path, *, with_labels: bool) -> Source:
    """Open a zip of image files."""
    with open(path, "rb") as file:
        stamp = stamp_of(os.fstat(file.fileno()))
        items, places = list_zip(file, printable(path), with_labels=with_labels)
    return ZipSource(**vars(items), path=path, stamp=stamp, members=places)


def list_zip(file: BinaryIO, name: str, *, with_labels: bool) -> tuple[Items, list[int]]:
    """List the images of an open zip, and their numbers in its directory."""
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
    except ShardError:
        raise
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError) as error:
        raise ShardError(f"{name} is a damaged zip ({error}): copy or download it again") from error
    if any(member.flag_bits & 1 for member in members):
        raise ShardError(f"{name} is encrypted: unzip it into a folder and pack that folder")
    entries = [
        Entry(member.filename, member.file_size, number)
        for number, member in enumerate(members)
        if not member.is_dir()
    ]
    return list_images(entries, with_labels=with_labels)
