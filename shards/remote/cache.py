"""The node's cache of remote files: bounded, and shared by all processes and runs of a node.

open ──exists──> the file, under a shared lock for as long as it is open or mapped
  └──missing──> lock `<name>.lock`, make room, fetch to `<name>.<bytes>.part`, sync, rename, open

A file is named by its sha256: no URL is stored, and datasets cannot be confused. The kernel drops
the locks of a killed process, so only files that no living process reads are evicted, and parts
that a dead process left behind are removed.
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

from shards.errors import DISK_FULL, ShardError, printable
from shards.files import locked, readable_errors, sync_path

_POLL_SEC = 0.1


@dataclass(frozen=True)
class NodeCache:
    """Files in `folder`, of at most `max_bytes` including those being fetched, if there is a limit.

    Each file is fetched once, even if several processes want it at the same time.
    """

    folder: Path
    max_bytes: int | None = None
    wait_sec: float = 60.0  # for files in use to be closed, if nothing else makes room

    def open(self, name: str, *, num_bytes: int, fetch: Callable[[Path], object]) -> BufferedReader:
        """Open the file `name` of `num_bytes`. It is not evicted while it is open or mapped.

        If it is missing, `fetch` writes it to the path it is given, or raises, and then nothing of
        it is left. Nothing is written if the file is there, so that caches of other users and
        read-only ones can be read. Raises ShardError if there is no room.
        """
        path = self.folder / name
        with readable_errors(self.folder, doing="cannot keep shards in the cache"):
            while (file := _open_shared(path, num_bytes)) is None:
                lock, part = self._lock(name), self.folder / f"{name}.{num_bytes}.part"
                with locked(lock, busy=None):
                    try:
                        if not path.exists():  # otherwise the previous holder has fetched it
                            self._fetch(part, num_bytes, fetch)
                            os.replace(part, path)
                            sync_path(self.folder)
                    finally:
                        part.unlink(missing_ok=True)
                        lock.unlink(missing_ok=True)
            return file

    def remove(self, name: str, *, why: str) -> None:
        """Remove a damaged file, so that it is fetched again. Raises ShardError if it cannot be."""
        path = self.folder / name
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise ShardError(
                f"the cache {printable(self.folder)}: {why}, and it cannot be removed "
                f"({error.strerror}): delete {printable(path)}, or set DISTGAN_CACHE"
            ) from None
        logging.getLogger(__name__).warning(
            "the cache %s: %s; it is fetched again", printable(self.folder), why
        )

    def _fetch(self, part: Path, num_bytes: int, fetch: Callable[[Path], object]) -> None:
        self._make_room(part, num_bytes)
        while True:
            try:
                fetch(part)
                with open(part, "rb") as file:
                    os.fsync(file.fileno())
                return
            except OSError as error:
                if error.errno not in DISK_FULL:
                    raise
                part.write_bytes(b"")
                with locked(self.folder / "lock", busy=None):
                    # Others may have filled the disk, but files of the cache go first.
                    if not self._evict(num_bytes):
                        raise

    def _make_room(self, part: Path, num_bytes: int) -> None:
        """Create the empty `part`, whose name reserves its bytes, once there is room for it."""
        part.unlink(missing_ok=True)  # a killed process left it: this one holds its lock now
        deadline = time.monotonic() + self.wait_sec
        while True:
            with locked(self.folder / "lock", busy=None):
                self._remove_orphans()
                if self.max_bytes is None or self._room_for(num_bytes, self.max_bytes):
                    part.touch()
                    return
            if time.monotonic() > deadline:
                raise ShardError(
                    f"the cache {printable(self.folder)} of {self.max_bytes / 1e9:g} GB is full of "
                    f"shards in use, with no room for one of {num_bytes / 1e9:.3g} GB: "
                    "raise data.cache_gb, or wait for the other runs"
                )
            time.sleep(_POLL_SEC)

    def _room_for(self, num_bytes: int, max_bytes: int) -> bool:
        used = sum(_reserved_bytes(part) for part in self.folder.glob("*.part"))
        used += sum(size for _, size, _ in self._files())
        excess = used + num_bytes - max_bytes
        return excess <= 0 or self._evict(excess) >= excess

    def _evict(self, num_bytes: int) -> int:
        """Remove files that nobody reads, the least recently used first; return the bytes freed."""
        freed = 0
        for _, size, path in sorted(self._files()):
            if freed >= num_bytes:
                break
            # Other users' files may be unreadable, or in a folder where only they may remove them.
            with suppress(OSError), open(path, "rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
                freed += size
        return freed

    def _files(self) -> list[tuple[int, int, Path]]:
        """Return (time of last use in ns, bytes, path) of all complete files."""
        found = []
        for path in self.folder.iterdir():
            if not path.suffix and path.name != "lock":
                with suppress(FileNotFoundError):
                    status = path.stat()
                    found.append((status.st_mtime_ns, status.st_size, path))
        return found

    def _remove_orphans(self) -> None:
        """Remove what killed processes were fetching, and their locks."""
        for leftover in [*self.folder.glob("*.part"), *self.folder.glob("*.lock")]:
            lock = self._lock(leftover.name.split(".")[0])
            with suppress(ShardError, OSError), locked(lock, busy="being fetched"):
                leftover.unlink(missing_ok=True)
                lock.unlink(missing_ok=True)

    def _lock(self, name: str) -> Path:
        return self.folder / f"{name}.lock"


def _reserved_bytes(part: Path) -> int:
    """Return the size that a file being fetched will have."""
    return int(part.name.split(".")[1])


def _open_shared(path: Path, num_bytes: int) -> BufferedReader | None:
    """Open the file under a shared lock, which a memory map keeps; return None if it is missing."""
    try:
        file = open(path, "rb")  # noqa: SIM115
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_SH)
        with suppress(FileNotFoundError):  # evicted before the lock was taken
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                if os.fstat(file.fileno()).st_size == num_bytes:
                    with suppress(OSError):  # only the owner may, and nobody if it is read-only
                        os.utime(file.fileno())
                    return file
                path.unlink()  # cut short by hand or by a broken disk
    except BaseException:
        file.close()
        raise
    file.close()
    return None
