"""Durable writes, checksums, the lock of a folder, and the cores that may be used."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Protocol

from shards.errors import ShardError, printable

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class Files(Protocol):
    """Where the files of one dataset are opened."""

    @property
    def source(self) -> str:
        """The place in words that may be shown."""

    @property
    def remote(self) -> bool:
        """Whether opening may take long, so that it pays to ask ahead."""

    @property
    def max_bytes(self) -> int | None:
        """What may lie here at a time."""

    def open(self, file: str, *, num_bytes: int, sha256: str) -> BinaryIO:
        """The file, of the right size, for reading. Raises ShardError where it is missing or damaged."""


class LocalFiles:
    """Files in a folder, where they stay."""

    remote = False
    max_bytes = None

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.source = printable(str(folder))

    def open(self, file: str, *, num_bytes: int, sha256: str) -> BinaryIO:
        """Checks the size alone: `verify` is for the rest."""
        self.check_size(file, num_bytes)
        return open(self._folder / file, "rb")

    def check_size(self, file: str, num_bytes: int) -> None:
        """Raises ShardError where the file is missing or has another size: reading past its end would be a SIGBUS."""
        shown = printable(str(self._folder / file))
        try:
            found = (self._folder / file).stat().st_size
        except OSError as error:
            raise ShardError(
                f"{shown}: {error.strerror}; run `distgan verify` and restore or pack it again"
            ) from None
        if found != num_bytes:
            raise ShardError(
                f"{shown} has {found:,} bytes, not {num_bytes:,}: run `distgan verify`, then pack again"
            )


def usable_cores() -> int:
    """The cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def sync_path(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk, so that they survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomic(path: Path, data: str | bytes, *, sync: bool = True, shared: bool = False) -> None:
    """Replace the file `path` in one move: a reader sees all of the old content or all of `data`.

    A failed write leaves no temporary file behind. With `sync` the file survives a power cut once
    this returns. Set `shared` if other processes may write the same file at the same time, so that
    each writes to a temporary file of its own.
    """
    suffix = f".{os.getpid()}.{threading.get_ident()}.tmp" if shared else ".tmp"
    temporary = path.with_name(f".{path.name}{suffix}")
    try:
        with open(temporary, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    if sync:
        sync_path(path.parent)


def sha256_of_file(path: Path) -> str:
    """The file's sha256 as hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def locked(lock: Path, *, busy: str | None) -> Iterator[None]:
    """Hold `lock` (made with its folder where missing), in which another process may be: raises ShardError(busy) then, or
    waits for it where `busy` is None.
    """
    while True:
        lock.parent.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:  # the last holder has just removed the folder
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (fcntl.LOCK_NB if busy is not None else 0))
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), os.stat(lock)):
                    break
        except BlockingIOError:
            os.close(handle)
            raise ShardError(busy) from None
        except OSError as error:
            os.close(handle)
            where = printable(str(lock.parent.parent))
            raise ShardError(
                f"no file can be locked in {where} ({error.strerror}): use a local disk"
            ) from error
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # the last holder removed the file that we locked: lock the new one
    try:
        yield
    finally:
        os.close(handle)


@contextmanager
def explained(folder: Path, *, doing: str) -> Iterator[None]:
    """Turn the system errors that a user can mend (disk full, no permission) into a ShardError about `folder`."""
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FULL:
            remedy = "the disk is full: free some space and run the same command again (finished shards are kept)"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            remedy = "no permission to write there: choose another folder or change its permissions"
        elif error.errno in (errno.ENOTDIR, errno.EEXIST):
            remedy = "a file stands where a folder is needed: choose another folder"
        else:
            raise
        raise ShardError(f"{doing} {printable(str(folder))}: {remedy}") from error
