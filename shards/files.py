"""Durable writes, checksums and the lock of a folder."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from shards.errors import ShardError, printable


def sync_folder(folder: Path) -> None:
    """Make the renames inside `folder` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` so that `path` holds either what it held before or all of `data`."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(path.parent)


def sha256_of_file(path: Path) -> str:
    """The file's sha256 as hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def locked(lock: Path, *, busy: str) -> Iterator[None]:
    """Hold `lock` (made with its folder where missing); raises ShardError(busy) where another process holds it."""
    while True:
        lock.parent.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:  # the last holder has just removed the folder
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), os.stat(lock)):
                    break
        except BlockingIOError:
            os.close(handle)
            raise ShardError(busy) from None
        except OSError as error:
            os.close(handle)
            where = printable(str(lock.parent.parent))
            raise ShardError(f"no file can be locked in {where} ({error.strerror}): use a local disk") from error
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
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            remedy = "the disk is full: free some space and run the same command again (finished shards are kept)"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            remedy = "no permission to write there: choose another folder or change its permissions"
        elif error.errno in (errno.ENOTDIR, errno.EEXIST):
            remedy = "a file stands where a folder is needed: choose another folder"
        else:
            raise
        raise ShardError(f"{doing} {printable(str(folder))}: {remedy}") from error
