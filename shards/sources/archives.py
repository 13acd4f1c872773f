"""Images inside archives, read in place: a tar or zip of image files, and the tars that other WebDataset tools wrote.

Nothing is ever extracted, so a member's name can reach no path; members are taken by extension, so nothing is executed.
"""

from __future__ import annotations

import os
import tarfile
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shards.errors import ShardError, printable
from shards.images import EXTENSIONS, BadImage
from shards.sources.listing import (
    Source,
    classes_of_folders,
    digest_of,
    is_hidden,
    warn_unsupported_formats,
)

_COMPRESSED = {
    b"\x1f\x8b": "gunzip -k",
    b"BZh": "bunzip2 -k",
    b"\xfd7zXZ": "unxz -k",
    b"\x28\xb5\x2f\xfd": "unzstd -k",
}
_FIELDS = EXTENSIONS | {".npy"}
_MAX_CLS_BYTES = 20
_MAX_OPEN_FILES = 64


class Member(NamedTuple):
    """A regular file inside a tar."""

    name: str
    offset: int
    size: int


@dataclass(kw_only=True)
class TarSource(Source):
    """Items that are byte ranges of tar files."""

    paths: tuple[Path, ...]
    path_of_item: NDArray[np.int32]
    offsets: NDArray[np.int64]
    _handles: dict[int, int] = field(default_factory=dict)

    def _read(self, item: int) -> bytes:
        path_number = int(self.path_of_item[item])
        if path_number not in self._handles:
            if len(self._handles) == _MAX_OPEN_FILES:
                self._close()
            self._handles[path_number] = os.open(self.paths[path_number], os.O_RDONLY)
        return os.pread(self._handles[path_number], int(self.sizes[item]), int(self.offsets[item]))

    def _close(self) -> None:
        while self._handles:
            os.close(self._handles.popitem()[1])

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_handles": {}}

    def __del__(self) -> None:
        self._close()


@dataclass(kw_only=True)
class ZipSource(Source):
    """The images of a zip file."""

    path: Path
    members: Sequence[str]  # as the zip spells them
    _zip: zipfile.ZipFile | None = None

    def _read(self, item: int) -> bytes:
        if self._zip is None:
            self._zip = zipfile.ZipFile(self.path)
        try:
            return self._zip.read(self.members[item])
        except OSError:
            raise
        except Exception as error:  # as many types as there are compressors
            raise BadImage(f"cannot be unzipped: {printable(str(error))}") from error

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_zip": None}

    def __del__(self) -> None:
        if self._zip is not None:
            self._zip.close()


def open_tar(path: Path) -> Source:
    """A tar of image files; where it holds `.cls` or `.npy` members it is read as a WebDataset shard."""
    members, num_other = scan_tar(path)
    if any(member.name.endswith((".cls", ".npy")) for member in members):
        return _webdataset([(path, members)], num_other)
    warn_unsupported_formats(member.name for member in members)
    images = sorted(member for member in members if _is_image(member.name))
    names = [printable(member.name) for member in images]
    labels, class_names = classes_of_folders(names)
    sizes = [member.size for member in images]
    return TarSource(
        names=names,
        sizes=np.array(sizes, np.int64),
        labels=labels,
        class_names=class_names,
        digest=digest_of(names, sizes, labels),
        num_ignored=num_other + len(members) - len(images),
        paths=(path,),
        path_of_item=np.zeros(len(images), np.int32),
        offsets=np.array([member.offset for member in images], np.int64),
    )


def open_zip(path: Path) -> Source:
    """A zip of image files."""
    try:
        with zipfile.ZipFile(path) as archive:
            files = [member for member in archive.infolist() if not member.is_dir()]
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError) as error:
        raise ShardError(
            f"{printable(str(path))} is a damaged zip ({error}): copy or download it again"
        ) from error
    if any(member.flag_bits & 1 for member in files):
        raise ShardError(
            f"{printable(str(path))} is encrypted: unzip it into a folder and pack that folder"
        )
    warn_unsupported_formats(member.filename for member in files)
    images = sorted(
        (member for member in files if _is_image(member.filename)),
        key=lambda member: member.filename,
    )
    names = [printable(member.filename) for member in images]
    labels, class_names = classes_of_folders(names)
    sizes = [member.file_size for member in images]
    return ZipSource(
        names=names,
        sizes=np.array(sizes, np.int64),
        labels=labels,
        class_names=class_names,
        digest=digest_of(names, sizes, labels),
        num_ignored=len(files) - len(images),
        path=path,
        members=[member.filename for member in images],
    )


def open_webdataset(paths: Iterable[Path]) -> Source:
    """Tars that hold samples: members with one key are one sample, its image told by extension, its label in `.cls`."""
    scanned, num_other = [], 0
    for path in paths:
        members, others = scan_tar(path)
        scanned.append((path, members))
        num_other += others
    return _webdataset(scanned, num_other)


def scan_tar(path: Path) -> tuple[list[Member], int]:
    """Every regular file of a tar, and how many members are none (links, devices; folders do not count).

    Raises ShardError for a compressed or damaged tar: unlike `tarfile`, which ends in silence at a broken header.
    """
    with open(path, "rb") as file:
        magic, num_bytes = file.read(6), os.fstat(file.fileno()).st_size
    for start, command in _COMPRESSED.items():
        if magic.startswith(start):
            name = printable(str(path))
            raise ShardError(
                f"{name} is compressed, but images are read in place: type `{command} {name}` first"
            )
    members, num_other = [], 0
    try:
        with tarfile.open(path, "r:") as tar:
            while member := tar.next():
                tar.members.clear()  # type: ignore[attr-defined]  # or the memory would grow with the archive
                if member.isreg() and not member.issparse():
                    members.append(Member(member.name, member.offset_data, member.size))
                    if member.offset_data + member.size > num_bytes:
                        raise tarfile.ReadError(f"it ends inside {member.name}")
                else:
                    num_other += not member.isdir()
            end = tar.offset
        with open(path, "rb") as file:
            file.seek(end)
            if any(file.read(tarfile.BLOCKSIZE)):
                raise tarfile.ReadError(f"no valid header at byte {end:,}")
    except (tarfile.TarError, ValueError, EOFError) as error:
        reason = printable(str(error))
        raise ShardError(
            f"{printable(str(path))} is not a whole tar ({reason}): copy or download it again"
        ) from error
    return members, num_other


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in EXTENSIONS and not is_hidden(name)


def _webdataset(scanned: Sequence[tuple[Path, list[Member]]], num_other: int) -> Source:
    paths = tuple(path for path, _ in scanned)
    images: list[tuple[int, Member]] = []
    classes: list[int | None] = []
    num_ignored = num_other
    for path_number, (path, members) in enumerate(scanned):
        samples: dict[str, dict[str, Member]] = {}
        for member in members:
            folder, _, file_name = member.name.rpartition("/")
            key, _, extension = file_name.partition(".")
            fields = samples.setdefault(f"{folder}/{key}", {})
            if fields.setdefault(extension, member) is not member:
                raise ShardError(f"{_where(path, member)} is there twice: write each sample once")
        with open(path, "rb") as file:
            for key in sorted(samples):
                fields = samples[key]
                label = fields.pop("cls", None)
                image = _image_field(path, fields)
                num_ignored += len(fields) - (image is not None)
                if image is not None:
                    images.append((path_number, image))
                    classes.append(None if label is None else _class_number(file, path, label))
    names = [_where(paths[path_number], member) for path_number, member in images]
    labels, class_names = None, None
    known = [number for number in classes if number is not None]
    if known and len(known) == len(classes) and len(set(known)) > 1:
        numbers, inverse = np.unique(known, return_inverse=True)
        labels, class_names = inverse.astype(np.int32), tuple(str(number) for number in numbers)
    sizes = [member.size for _, member in images]
    return TarSource(
        names=names,
        sizes=np.array(sizes, np.int64),
        labels=labels,
        class_names=class_names,
        digest=digest_of(names, sizes, labels),
        num_ignored=num_ignored,
        paths=paths,
        path_of_item=np.array([path_number for path_number, _ in images], np.int32),
        offsets=np.array([member.offset for _, member in images], np.int64),
    )


def _image_field(path: Path, fields: dict[str, Member]) -> Member | None:
    """The one image of a sample: `jpg` before `left.jpg`; None where there is none."""
    images = [name for name in fields if os.path.splitext("x." + name)[1].lower() in _FIELDS]
    plain = [name for name in images if "." not in name]
    candidates = plain or images
    if len(candidates) > 1:
        where = _where(path, fields[candidates[0]])
        raise ShardError(
            f"{where} is one of {len(candidates)} images of a sample ({', '.join(candidates)}): keep one"
        )
    return fields[candidates[0]] if candidates else None


def _class_number(file: Any, path: Path, member: Member) -> int:
    file.seek(member.offset)
    text = file.read(min(member.size, _MAX_CLS_BYTES + 1)).strip()
    if len(text) > _MAX_CLS_BYTES or not text.isdigit():
        raise ShardError(
            f"{_where(path, member)} holds {text[:20]!r}, where a class number (0, 1, ...) is needed"
        )
    return int(text)


def _where(path: Path, member: Member) -> str:
    return printable(f"{path.name}/{member.name}")
