"""Packed shards at a URL: http, https and s3, and through fsspec whatever else it knows, which is untested.

URL/index.json ──> ShardIndex          URL/000000.tar ──NodeCache, checksum──> an open local file

Nothing that arrives is run or unpickled: the index is checked JSON, the rest are bytes whose sha256 is in the index. URLs
may hold a password or a token: every message and everything stored is without them, and so without what libraries say.
"""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from shards.errors import ShardError, printable, without_secrets
from shards.files import DISK_FULL, Files, LocalFiles, explained, sha256_of_file
from shards.format.index import INDEX_FILE, ShardIndex, parse_index, read_index
from shards.remote.cache import NodeCache

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://\S+")
_EXTRAS = {"http": "http", "https": "http", "s3": "s3"}  # scheme -> extra of this package
_MAX_INDEX_BYTES = 2**28


@dataclass(frozen=True)
class RetryPolicy:
    """How long and how often a remote place is tried."""

    tries: int = 5
    connect_sec: float = 10.0
    stall_sec: float = 20.0  # without a byte
    backoff_sec: float = 0.5  # before the second try, doubled before each later one
    min_bytes_per_sec: float = (
        2.0**16
    )  # a file that comes more slowly than this on average has stalled

    def seconds_for(self, num_bytes: int) -> float:
        """The most that one try may take."""
        return self.connect_sec + self.stall_sec + num_bytes / self.min_bytes_per_sec


def is_url(place: str | Path) -> bool:
    """Whether a place is a URL rather than a folder."""
    return "://" in str(place)


def open_shards(
    place: str | Path,
    *,
    cache: Path,
    max_bytes: int | None = None,
    patience: RetryPolicy = RetryPolicy(),
) -> tuple[ShardIndex, Files]:
    """The index and the files of packed shards in a folder or at a URL.

    Remote files are fetched into the folder `cache` when they are opened, of which at most `max_bytes` lie there at a
    time. Raises ShardError.
    """
    if not is_url(place):
        index = read_index(place)
        return index, LocalFiles(index.path)
    remote = RemoteFolder(str(place), patience=patience)
    return remote.read_index(cache), RemoteFiles(remote, NodeCache(cache, max_bytes))


class RemoteFiles:
    """The files of a remote dataset, each fetched into the cache of the node when it is first opened."""

    remote = True

    def __init__(self, folder: RemoteFolder, cache: NodeCache) -> None:
        self._folder, self._cache = folder, cache
        self.source, self.max_bytes = folder.shown, cache.max_bytes

    def open(self, file: str, *, num_bytes: int, sha256: str) -> BinaryIO:
        """The checked bytes; other processes wait meanwhile. Raises ShardError where they cannot be had."""

        def damage(path: Path) -> str | None:
            if path.stat().st_size != num_bytes:
                return f"{path.stat().st_size:,} of {num_bytes:,} bytes arrived"
            return (
                None
                if sha256_of_file(path) == sha256
                else "its checksum is not what the index says"
            )

        def fetch(part: Path) -> None:
            self._folder.fetch(file, part, max_bytes=num_bytes, damage=damage)

        return self._cache.open(sha256, num_bytes=num_bytes, fetch=fetch)


class RemoteFolder:
    """The folder at a URL. Raises ShardError for a URL that cannot be, and where a package for it is missing."""

    def __init__(self, url: str, *, patience: RetryPolicy = RetryPolicy()) -> None:
        self.shown = printable(without_secrets(url))
        self._patience = patience
        match = _URL.fullmatch(url)
        if match is None or "::" in url:
            raise ShardError(
                f"{self.shown} is no URL of a folder: write https://host/folder or s3://bucket/folder"
            )
        self._scheme = match[1].lower()
        self._filesystem, self._path = self._connect(url)

    def fetch(
        self, file: str, into: Path, *, max_bytes: int, damage: Callable[[Path], str | None]
    ) -> None:
        """Write `file` to `into`, trying again where that may help; `damage` says what is wrong with what has arrived.

        Raises ShardError, and OSError where the disk is full.
        """
        reason, tries = "", 0
        for tries in range(1, self._patience.tries + 1):
            if tries > 1:
                time.sleep(self._patience.backoff_sec * 2 ** (tries - 2))
            try:
                self._get(file, into, max_bytes)
                found = damage(into)
                if found is None:
                    return
                reason, again = found, True
            except Exception as error:  # as many types as there are file systems
                if isinstance(error, OSError) and error.errno in DISK_FULL:
                    raise
                reason, again = _reason(error)
            if not again:
                break
        times = "once" if tries == 1 else f"{tries} times"
        raise ShardError(
            f"cannot fetch {self.shown}/{file}, tried {times}: {reason}; check it and the network and start again"
        )

    def read_index(self, cache: Path) -> ShardIndex:
        """The index of the packed shards in this folder."""
        index: ShardIndex | None = None

        def damage(path: Path) -> str | None:
            nonlocal index
            try:
                index = parse_index(path.read_bytes(), Path(self.shown), shown=self.shown)
            except ShardError as error:
                return str(error)
            return None

        with explained(cache, doing="cannot keep shards in the cache"):
            cache.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory() as folder:
                self.fetch(
                    INDEX_FILE, Path(folder) / INDEX_FILE, max_bytes=_MAX_INDEX_BYTES, damage=damage
                )
        assert index is not None, "a fetched index was checked"
        return index

    def _connect(self, url: str) -> tuple[Any, str]:
        import fsspec

        try:
            if not (urlsplit(url).hostname and urlsplit(url).port != 0) and self._scheme in _EXTRAS:
                raise ValueError("no host")
        except ValueError:
            hint = "a password's special characters are written %2F, %40 and so on"
            raise ShardError(
                f"{self.shown} is no URL of a folder: give its host or bucket ({hint})"
            ) from None
        try:
            return fsspec.url_to_fs(
                url.partition("#")[0], skip_instance_cache=True, **self._options()
            )
        except ImportError:
            extra = _EXTRAS.get(self._scheme)
            remedy = (
                f"pip install 'distgan[{extra}]'"
                if extra
                else f"install what fsspec needs for {self._scheme}://"
            )
            raise ShardError(f"cannot read {self.shown}, a package is missing: {remedy}") from None
        except ValueError:
            raise ShardError(
                f"cannot read {self.shown}: use https://, http:// or s3://, or a folder"
            ) from None

    def _options(self) -> dict[str, Any]:
        """What makes the file systems that are tested give up on a silent server."""
        wait = self._patience
        if self._scheme in ("http", "https"):
            import aiohttp

            timeout = aiohttp.ClientTimeout(
                total=None, sock_connect=wait.connect_sec, sock_read=wait.stall_sec
            )
            return {"client_kwargs": {"timeout": timeout, "trust_env": True}}
        if self._scheme == "s3":
            return {
                "config_kwargs": {
                    "connect_timeout": wait.connect_sec,
                    "read_timeout": wait.stall_sec,
                }
            }
        return {}

    def _get(self, file: str, into: Path, max_bytes: int) -> None:
        from fsspec.callbacks import Callback

        class Counter(Callback):
            """Stops what is longer than it may be: a broken server must not fill the disk."""

            def relative_update(self, inc: int = 1) -> None:
                super().relative_update(inc)
                if self.value > max_bytes:
                    raise _TooLong(f"more than {max_bytes:,} bytes arrived")

        options: dict[str, Any] = {"callback": Counter()}
        if self._filesystem.async_impl:
            options["timeout"] = self._patience.seconds_for(max_bytes)
        path, mark, query = (
            self._path.partition("?") if self._scheme in ("http", "https") else (self._path, "", "")
        )
        self._filesystem.get_file(f"{path.rstrip('/')}/{file}{mark}{query}", str(into), **options)


class _TooLong(Exception):
    """A file is longer than the index says."""


def _reason(error: Exception) -> tuple[str, bool]:
    """Why a fetch failed, in words that can hold no secret, and whether another try may help."""
    status = getattr(error, "status", None)
    if isinstance(error, _TooLong):
        return str(error), True
    if isinstance(error, FileNotFoundError):
        return "there is no such file", False
    if (
        isinstance(error, PermissionError)
        or status in (401, 403)
        or "Credentials" in type(error).__name__
    ):
        return "access was denied", False
    if isinstance(error, TimeoutError) or "Timeout" in type(error).__name__:
        return "the server fell silent", True
    if isinstance(status, int) and status >= 400:
        return f"the server answered {status}", status >= 500 or status in (408, 429)
    if isinstance(error, OSError) and error.errno is not None and error.errno > 0:
        return os.strerror(error.errno), True
    return type(error).__name__, not isinstance(error, (ValueError, TypeError))
