"""One file at a URL, read in place: a range of bytes at a time."""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Callable
from typing import Any, BinaryIO, TypeVar

from shards.errors import ShardError
from shards.remote.folder import DEFAULT_RETRY, RemoteFolder, RetryPolicy, explain_failure

_BLOCK_BYTES = 2**20  # read at a time while members are listed
Result = TypeVar("Result")


class RemoteFile:
    """A file behind http, https, s3 or another scheme of fsspec. Connects when it is first read.

    Raises ShardError for an unusable URL, a missing package and a server that does not answer.
    """

    def __init__(self, url: str, *, retry: RetryPolicy = DEFAULT_RETRY) -> None:
        self._url, self._retry = url, retry
        self._opened: RemoteFolder | None = None
        self.name = self._place.name

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": None}

    @property
    def _place(self) -> RemoteFolder:
        if self._opened is None:
            self._opened = RemoteFolder(self._url, retry=self._retry)
        return self._opened

    def describe(self) -> tuple[int, int]:
        """Return the size in bytes, and a number that differs once the file was replaced.

        The server is asked each time. Of some servers the size is all that tells.
        """
        place = self._place
        place.filesystem.invalidate_cache()
        found = self._try(lambda: place.filesystem.info(place.path))
        size = found.get("size")
        if not isinstance(size, int) or found.get("partial") is False:
            problem = "sends no parts of it" if isinstance(size, int) else "does not say its length"
            raise ShardError(
                f"{self.name}: the server {problem}, so it cannot be read in place: download it, "
                "and pack the file"
            )
        names = ("ETag", "etag", "LastModified", "Last-Modified", "mtime")
        marks = [str(found.get(name)) for name in names]
        digest = hashlib.sha256(repr([size, *marks]).encode()).digest()
        return size, int.from_bytes(digest[:7])

    def open(self) -> BinaryIO:
        """Open it for reading from front to back, with jumps; each read is tried as `read` is."""
        size, _ = self.describe()
        return io.BufferedReader(_Ranges(self, size), _BLOCK_BYTES)

    def read(self, offset: int, size: int) -> bytes:
        """Return `size` bytes from `offset` on."""
        place = self._place

        def fetch() -> bytes:
            data: bytes = place.filesystem.cat_file(place.path, start=offset, end=offset + size)
            if len(data) != size:
                raise OSError(f"{len(data):,} of {size:,} bytes arrived")
            return data

        return self._try(fetch) if size else b""

    def _try(self, action: Callable[[], Result]) -> Result:
        """Return the result of an action, which is repeated after errors that may pass."""
        for number in range(1, self._retry.tries + 1):
            try:
                return action()
            except Exception as error:  # as many types as there are file systems
                reason, may_pass = explain_failure(error)
                if not may_pass or number == self._retry.tries:
                    raise ShardError(
                        f"cannot read {self.name}, tried {number} time{'s'[: number - 1]}: "
                        f"{reason}; check it and the network and start again"
                    ) from None
                wait = self._retry.backoff_sec * 2 ** (number - 1)
                time.sleep(min(wait, self._retry.max_backoff_sec))
        raise AssertionError("the last try returns or raises")


class _Ranges(io.RawIOBase):
    """A remote file of `size` bytes, read in ranges."""

    def __init__(self, file: RemoteFile, size: int) -> None:
        self._file, self._size, self._position = file, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        num = max(0, min(len(buffer), self._size - self._position))
        buffer[:num] = self._file.read(self._position, num)
        self._position += num
        return num
