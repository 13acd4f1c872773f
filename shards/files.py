"""Atomic writes, checksums, locks, readable errors, and where the files of a dataset are opened."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Protocol

from shards.errors import DISK_FULL, ShardError, describe_system_error, printable

_URL = re.compile(r"([A-Za-z][\w+.-]+):/")  # a path has one slash only
# What file systems answer that have no sync of folders, such as some shared with a virtual machine.
CANNOT_SYNC = (errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EISDIR)


class Files(Protocol):
    """The place from which the files of one dataset are opened."""

    @property
    def source(self) -> str:
        """The place as messages name it, without secrets."""

    @property
    def remote(self) -> bool:
        """Whether opening a file may take long, so that fetching ahead pays."""

    @property
    def max_bytes(self) -> int | None:
        """Limit on the bytes kept on this node at a time, if any."""

    def open(self, file: str, *, num_bytes: int, sha256: str) -> BinaryIO:
        """Open a file of exactly `num_bytes` for reading. Raises ShardError."""


class LocalFiles:
    """The files in a folder of this machine."""

    remote = False
    max_bytes = None

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.source = printable(folder)

    def open(self, file: str, *, num_bytes: int, sha256: str) -> BinaryIO:
        """Open a file after checking its size. Only `distgan verify` checks the sha256."""
        self.check_size(file, num_bytes)
        return open(self._folder / file, "rb")

    def check_size(self, file: str, num_bytes: int) -> None:
        """Raise ShardError if a file is missing or has another size.

        A memory map that is read beyond the end of its file ends the process with SIGBUS.
        """
        name = printable(self._folder / file)
        try:
            found = (self._folder / file).stat().st_size
        except OSError as error:
            raise ShardError(
                f"{name}: {error.strerror}; run `distgan verify` and restore or pack it again"
            ) from None
        if found != num_bytes:
            raise ShardError(
                f"{name} has {found:,} bytes, not {num_bytes:,}: run `distgan verify`, "
                "then pack again"
            )


def cache_folder() -> Path:
    """Return the folder for downloads, fetched shards, probes and the embedded dataset.

    It is `DISTGAN_CACHE`, or `distgan` in the user's cache folder. Raises ShardError if this user
    has no home folder.
    """
    chosen = os.environ.get("DISTGAN_CACHE")
    if chosen:
        return expand_user(chosen)
    try:
        return expand_user(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "distgan"
    except ShardError:
        raise ShardError(
            "this user has no home folder for a cache: set DISTGAN_CACHE to a folder"
        ) from None


def expand_user(path: str | Path) -> Path:
    """Return a path on this machine, with its `~` or `~user` replaced.

    Raises ShardError if there is no such home, and for a URL, which would be a folder here.
    """
    if url := _URL.match(str(path)):
        raise ShardError(
            f"{url[1]}://... is a URL, and a file or folder on this machine is needed here"
        )
    try:
        return Path(path).expanduser()
    except RuntimeError:
        user = printable(Path(path).parts[0])
        raise ShardError(f"{printable(path)}: no home folder of {user}: write the path") from None


def read_regular(path: Path) -> bytes:
    """Return the content of a regular file. Raises OSError for anything else.

    A named pipe would otherwise be waited for until someone writes to it.
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    with open(handle, "rb") as file:
        return file.read()


def make_folder(path: Path) -> None:
    """Create a folder and those above it, unless they exist, so that they survive a power cut."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        sync_path(folder.parent)


def sync_path(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk, so that they survive a power cut.

    Some file systems cannot flush folders, and some folders cannot be opened but written to. Then
    this does nothing.
    """
    is_folder = path.is_dir()
    try:
        handle = os.open(path, os.O_RDONLY)
    except PermissionError:
        if is_folder:
            return
        raise
    try:
        os.fsync(handle)
    except OSError as error:
        if not is_folder or error.errno not in CANNOT_SYNC:
            raise
    finally:
        os.close(handle)


def write_atomic(path: Path, data: str | bytes, *, shared: bool = False) -> None:
    """Replace the file `path` in one move: a reader sees all of the old content or all of `data`.

    A failed write leaves no temporary file behind. The file survives a power cut once this
    returns. Set `shared` if other processes may write the same file at the same time, so that
    each writes to a temporary file of its own.
    """
    suffix = f".{os.getpid()}.{threading.get_ident()}.tmp" if shared else ".tmp"
    temporary = path.with_name(f".{path.name}{suffix}")
    try:
        with open(temporary, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    sync_path(path.parent)


def sha256_of_file(path: Path) -> str:
    """Return the sha256 of a file as hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def locked(lock: Path, *, busy: str | None, shared: bool = False) -> Iterator[None]:
    """Hold the file `lock`, which is created together with its folder if it does not exist.

    If another process holds it, raises ShardError(busy), or waits if `busy` is None. Several
    processes may hold it at a time if all of them set `shared`.
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    while True:
        make_folder(lock.parent)
        try:
            handle = _open_lock(lock)
        except FileNotFoundError:  # the previous holder has just removed the folder
            continue
        try:
            fcntl.flock(handle, kind | (fcntl.LOCK_NB if busy is not None else 0))
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), os.stat(lock)):
                    break
        except BlockingIOError:
            os.close(handle)
            raise ShardError(busy) from None
        except OSError as error:
            os.close(handle)
            folder = printable(lock.parent.parent)
            raise ShardError(
                f"no file can be locked in {folder} ({error.strerror}): use a local disk"
            ) from error
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # the previous holder removed the file that was locked here: try again
    try:
        yield
    finally:
        os.close(handle)


def _open_lock(lock: Path) -> int:
    try:
        return os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
    except PermissionError as error:
        try:
            return os.open(lock, os.O_RDONLY)  # another user's, which can be locked all the same
        except OSError:
            raise error from None


@contextmanager
def readable_errors(folder: Path, *, doing: str) -> Iterator[None]:
    """Turn system errors, such as a full disk, into a ShardError."""
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FULL:
            remedy = (
                "the disk is full: free some space and run the same command again "
                "(finished shards are kept)"
            )
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            remedy = "no permission to write there: choose another folder or change its permissions"
        elif error.errno in (errno.ENOTDIR, errno.EEXIST):
            remedy = "a file stands where a folder is needed: choose another folder"
        else:
            remedy = describe_system_error(error)
        raise ShardError(f"{doing} {printable(folder)}: {remedy}") from error
