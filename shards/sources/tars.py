"""Images inside a tar, read in place.

Nothing is extracted, so the name of a member can reach no path. Members are chosen by extension, so
nothing is executed.
"""

from __future__ import annotations

import os
import re
import shlex
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shards.errors import ShardError, printable
from shards.sources.source import (
    Entry,
    Skipped,
    Source,
    check_unchanged,
    is_image_name,
    stamp_of,
)

_UNPACK_COMMANDS = {
    b"\x1f\x8b": "gunzip",
    b"BZh": "bunzip2",
    b"\xfd7zXZ": "unxz",
    b"\x28\xb5\x2f\xfd": "unzstd --rm",
}
_TAR_NAME = re.compile(r"\.(tar|tgz|tar\.(gz|bz2|xz|zst))$", re.IGNORECASE)
_MAX_OPEN_FILES = 64


@dataclass(kw_only=True)
class TarSource(Source):
    """Images that are byte ranges of tar files."""

    paths: tuple[Path, ...]
    path_stamps: NDArray[np.int64]
    path_of_item: NDArray[np.int32]
    offsets: NDArray[np.int64]
    _handles: dict[int, int] = field(default_factory=dict)

    def stamps(self, items: NDArray[np.int64]) -> NDArray[np.int64]:
        return self.path_stamps[self.path_of_item[items]]

    def _read(self, item: int) -> bytes:
        path_number = int(self.path_of_item[item])
        if path_number not in self._handles:
            if len(self._handles) == _MAX_OPEN_FILES:
                self._close()
            self._handles[path_number] = os.open(self.paths[path_number], os.O_RDONLY)
        handle = self._handles[path_number]
        data = os.pread(handle, int(self.sizes[item]), int(self.offsets[item]))
        stamp = int(self.path_stamps[path_number])
        check_unchanged(printable(self.paths[path_number]), os.fstat(handle), stamp)
        return data

    def _close(self) -> None:
        while self._handles:
            os.close(self._handles.popitem()[1])

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_handles": {}}

    def __del__(self) -> None:
        self._close()


class ScannedTar(NamedTuple):
    """The regular files of a tar, placed by offset, and the images that cannot be read."""

    path: Path
    entries: list[Entry]
    skipped: list[Skipped]
    stamp: int


def is_tar_name(path: str) -> bool:
    """Return whether a file is called like a tar, compressed or not."""
    return _TAR_NAME.search(path) is not None


def scan_tar(path: Path) -> ScannedTar:
    """List the members of a tar.

    A hard link counts as the file to which it links. Concatenated archives are all read. Raises
    ShardError for a compressed or damaged tar; `tarfile` itself stops silently at a broken header.
    """
    with open(path, "rb") as file:
        status = os.fstat(file.fileno())
        entries, skipped = scan_members(file, printable(path), num_bytes=status.st_size)
    return ScannedTar(path, entries, skipped, stamp_of(status))


def scan_members(file: BinaryIO, name: str, *, num_bytes: int) -> tuple[list[Entry], list[Skipped]]:
    """List the members of an open tar of `num_bytes`, and the images that cannot be read."""
    entries, skipped = [], []
    by_name: dict[str, Entry] = {}
    _refuse_compressed(name, file.read(6))
    try:
        for member in _members(file):
            entry = by_name.get(member.linkname) if member.islnk() else _entry(member)
            if entry is not None:
                entry = entry._replace(path=member.name)
                entries.append(entry)
                by_name[member.name] = entry
                if entry.place + entry.size > num_bytes:
                    raise tarfile.ReadError(f"it ends inside {member.name}")
            elif is_image_name(member.name):
                skipped.append(Skipped(printable(member.name), _kind(member)))
    except ShardError:
        raise
    except (tarfile.TarError, ValueError, EOFError) as error:
        raise ShardError(
            f"{name} is not a whole tar ({printable(error)}): copy or download it again"
        ) from error
    return entries, skipped


def _entry(member: tarfile.TarInfo) -> Entry | None:
    """Return a member that is one range of bytes, or None."""
    if not member.isreg() or member.issparse():
        return None
    return Entry(member.name, member.size, member.offset_data)


def _kind(member: tarfile.TarInfo) -> str:
    """Say why a member cannot be read in place."""
    if member.islnk():
        return "hard link to a file that is not in the archive"
    if member.issym():
        return "symbolic link"
    return "sparse file" if member.isreg() else "not a regular file"


def _members(file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """Yield the members of all archives in a file. Raises tarfile.ReadError between them."""
    start: int | None = 0
    while start is not None:
        file.seek(start)
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while member := tar.next():
                tar.members.clear()  # type: ignore[attr-defined]  # or memory would grow
                yield member
            end = tar.offset
        file.seek(end)
        if any(file.read(tarfile.BLOCKSIZE)):
            raise tarfile.ReadError(f"no valid header at byte {end:,}")
        start = _next_archive(file)


def _next_archive(file: BinaryIO) -> int | None:
    """Return where another archive begins after the zeros that end one, if there is another."""
    while chunk := file.read(2**20):
        if any(chunk):
            at = file.tell() - len(chunk.lstrip(b"\0"))
            return at - at % tarfile.BLOCKSIZE
    return None


def _refuse_compressed(name: str, magic: bytes) -> None:
    for start, command in _UNPACK_COMMANDS.items():
        if magic.startswith(start):
            advice = f"type `{command} {shlex.quote(name)}` first"
            if "://" in name:
                advice = f"download it, and unpack it with {command}"
            raise ShardError(f"{name} is compressed, but images are read in place: {advice}")
