"""Images inside a zip, read in place."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards.errors import ShardError, printable
from shards.images import BadImage
from shards.sources.source import Entry, Source, list_images


@dataclass(kw_only=True)
class ZipSource(Source):
    """The images of a zip file."""

    path: Path
    members: Sequence[int]  # numbers in the zip's directory: two members may have one name
    _zip: zipfile.ZipFile | None = None

    def _read(self, item: int) -> bytes:
        if self._zip is None:
            self._zip = zipfile.ZipFile(self.path)
        try:
            return self._zip.read(self._zip.infolist()[self.members[item]])
        except OSError:
            raise
        except Exception as error:  # as many types as there are compressors
            raise BadImage(f"cannot be unzipped: {printable(error)}") from error

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_zip": None}

    def __del__(self) -> None:
        if self._zip is not None:
            self._zip.close()


def open_zip(path: Path, *, with_labels: bool) -> Source:
    """Open a zip of image files."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError) as error:
        raise ShardError(
            f"{printable(path)} is a damaged zip ({error}): copy or download it again"
        ) from error
    if any(member.flag_bits & 1 for member in members):
        raise ShardError(
            f"{printable(path)} is encrypted: unzip it into a folder and pack that folder"
        )
    entries = [
        Entry(member.filename, member.file_size, number)
        for number, member in enumerate(members)
        if not member.is_dir()
    ]
    items, places = list_images(entries, with_labels=with_labels)
    return ZipSource(**vars(items), path=path, members=places)
