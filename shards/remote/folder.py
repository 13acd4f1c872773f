"""The folder of packed shards at a URL: http, https and s3.

Other schemes that fsspec knows are accepted, but not tested. Nothing that arrives is executed or
unpickled: the index is checked JSON, and the rest are bytes whose sha256 is in the index. A URL may
hold a password or a token, so messages and files never contain it, nor the errors of libraries.
"""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from shards.errors import ShardError, printable, without_secrets
from shards.files import DISK_FULL
from shards.format.index import INDEX_FILE, ShardIndex, parse_index

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://\S+")
_EXTRAS = {"http": "http", "https": "http", "s3": "s3"}  # scheme -> extra of this package
_MAX_INDEX_BYTES = 2**28


@dataclass(frozen=True)
class RetryPolicy:
    """How long and how often a remote folder is tried."""

    tries: int = 5
    connect_sec: float = 10.0
    stall_sec: float = 20.0  # without a byte
    backoff_sec: float = 0.5  # before the second try, doubled before each later one
    min_bytes_per_sec: float = 2.0**16  # a slower file, on average, counts as stalled

    def max_seconds(self, num_bytes: int) -> float:
        """Return the limit of one try."""
        return self.connect_sec + self.stall_sec + num_bytes / self.min_bytes_per_sec


DEFAULT_RETRY = RetryPolicy()


class RemoteFolder:
    """The folder at a URL. Raises ShardError for an unusable URL or a missing package."""

    def __init__(self, url: str, *, retry: RetryPolicy = DEFAULT_RETRY) -> None:
        self.name = printable(without_secrets(url))
        self._retry = retry
        match = _URL.fullmatch(url)
        if match is None or "::" in url:
            raise ShardError(
                f"{self.name} is no URL of a folder: write https://host/folder or "
                "s3://bucket/folder"
            )
        self._scheme = match[1].lower()
        self._filesystem, self._path = self._connect(url)

    def fetch(
        self, file: str, into: Path, *, max_bytes: int, find_damage: Callable[[Path], str | None]
    ) -> None:
        """Write `file` to `into`, and try again after errors that may pass.

        `find_damage` says what is wrong with the bytes that arrived. Raises ShardError, and OSError
        if the disk is full.
        """
        reason, tries = "", 0
        for tries in range(1, self._retry.tries + 1):
            if tries > 1:
                time.sleep(self._retry.backoff_sec * 2 ** (tries - 2))
            try:
                self._get(file, into, max_bytes)
                damage = find_damage(into)
                if damage is None:
                    return
                reason, may_pass = damage, True
            except Exception as error:  # as many types as there are file systems
                if isinstance(error, OSError) and error.errno in DISK_FULL:
                    raise
                reason, may_pass = _reason(error)
            if not may_pass:
                break
        times = "once" if tries == 1 else f"{tries} times"
        raise ShardError(
            f"cannot fetch {self.name}/{file}, tried {times}: {reason}; "
            "check it and the network and start again"
        )

    def read_index(self) -> ShardIndex:
        """Fetch and parse the index of the packed shards in this folder."""
        index: ShardIndex | None = None

        def find_damage(path: Path) -> str | None:
            nonlocal index
            try:
                index = parse_index(path.read_bytes(), Path(self.name), place=self.name)
            except ShardError as error:
                return str(error)
            return None

        with tempfile.TemporaryDirectory() as folder:
            part = Path(folder) / INDEX_FILE
            self.fetch(INDEX_FILE, part, max_bytes=_MAX_INDEX_BYTES, find_damage=find_damage)
        assert index is not None, "a fetched index was checked"
        return index

    def _connect(self, url: str) -> tuple[Any, str]:
        import fsspec

        try:
            if not (urlsplit(url).hostname and urlsplit(url).port != 0) and self._scheme in _EXTRAS:
                raise ValueError("no host")
        except ValueError:
            raise ShardError(
                f"{self.name} is no URL of a folder: give its host or bucket "
                "(a password's special characters are written %2F, %40 and so on)"
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
            raise ShardError(f"cannot read {self.name}, a package is missing: {remedy}") from None
        except ValueError:
            raise ShardError(
                f"cannot read {self.name}: use https://, http:// or s3://, or a folder"
            ) from None

    def _options(self) -> dict[str, Any]:
        """Return options that make the tested file systems give up on a silent server."""
        if self._scheme in ("http", "https"):
            import aiohttp

            timeout = aiohttp.ClientTimeout(
                total=None, sock_connect=self._retry.connect_sec, sock_read=self._retry.stall_sec
            )
            return {"client_kwargs": {"timeout": timeout, "trust_env": True}}
        if self._scheme == "s3":
            return {
                "config_kwargs": {
                    "connect_timeout": self._retry.connect_sec,
                    "read_timeout": self._retry.stall_sec,
                }
            }
        return {}

    def _get(self, file: str, into: Path, max_bytes: int) -> None:
        from fsspec.callbacks import Callback

        class Counter(Callback):
            """Stops a file that is too long, so that a broken server cannot fill the disk."""

            def relative_update(self, inc: int = 1) -> None:
                super().relative_update(inc)
                if self.value > max_bytes:
                    raise _TooLong(f"more than {max_bytes:,} bytes arrived")

        options: dict[str, Any] = {"callback": Counter()}
        if self._filesystem.async_impl:
            options["timeout"] = self._retry.max_seconds(max_bytes)
        path, mark, query = self._path, "", ""
        if self._scheme in ("http", "https"):
            path, mark, query = path.partition("?")
        self._filesystem.get_file(f"{path.rstrip('/')}/{file}{mark}{query}", str(into), **options)


class _TooLong(Exception):
    """A file is longer than the index says."""


def _reason(error: Exception) -> tuple[str, bool]:
    """Say why a fetch failed, without secrets, and whether another try may help."""
    status = getattr(error, "status", None)
    if isinstance(error, _TooLong):
        return str(error), True
    if isinstance(error, FileNotFoundError):
        return "there is no such file", False
    is_denied = isinstance(error, PermissionError) or status in (401, 403)
    if is_denied or "Credentials" in type(error).__name__:
        return "access was denied", False
    if isinstance(error, TimeoutError) or "Timeout" in type(error).__name__:
        return "the server stopped answering", True
    if isinstance(status, int) and status >= 400:
        return f"the server answered {status}", status >= 500 or status in (408, 429)
    if isinstance(error, OSError) and error.errno is not None and error.errno > 0:
        return os.strerror(error.errno), True
    return type(error).__name__, not isinstance(error, (ValueError, TypeError))
