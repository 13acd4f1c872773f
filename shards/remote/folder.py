"""The folder of packed shards at a URL: http, https and s3.

Other schemes that fsspec knows are accepted, but not tested. Nothing that arrives is executed or
unpickled: the index is checked JSON, and the rest are bytes whose sha256 is in the index. A URL may
hold a password or a token, so messages and files never contain it, nor the errors of libraries.
"""

from __future__ import annotations

import logging
import os
import re
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from shards.errors import DISK_FULL, ShardError, printable, without_secrets
from shards.format.index import INDEX_FILE, ShardIndex, parse_index

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://\S+")
_EXTRAS = {"http": "http", "https": "http", "s3": "s3"}  # scheme -> extra of this package
_MAX_INDEX_BYTES = 2**28


@dataclass(frozen=True)
class RetryPolicy:
    """How long and how often a remote folder is tried."""

    tries: int = 5  # at least, and no more if what arrives is damaged
    connect_sec: float = 10.0
    stall_sec: float = 20.0  # without a byte
    backoff_sec: float = 0.5  # before the second try, doubled before each later one
    max_backoff_sec: float = 5.0
    outage_sec: float = 60.0  # for which a server that does not answer is tried at least
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
                f"{self.name} is no URL: write https://host/folder or s3://bucket/folder"
            )
        self._scheme = match[1].lower()
        self.filesystem, self.path = self._connect(url)

    def fetch(
        self, file: str, into: Path, *, max_bytes: int, find_damage: Callable[[Path], str | None]
    ) -> None:
        """Write `file` to `into`, and try again after errors that may pass.

        `find_damage` says what is wrong with the bytes that arrived. Raises ShardError, and OSError
        if the disk is full. The first failure is a warning, so that nobody waits without a reason.
        """
        retry, began, tries = self._retry, time.monotonic(), 0
        while True:
            tries += 1
            failure = self._try(file, into, max_bytes, find_damage)
            if failure is None:
                return
            is_short = not failure.is_damage and time.monotonic() - began < retry.outage_sec
            may_wait = failure.wait_sec <= retry.outage_sec
            if not (failure.may_pass and may_wait and (tries < retry.tries or is_short)):
                break
            if tries == 1:
                logging.getLogger(__name__).warning(
                    "cannot fetch %s/%s (%s); trying again", self.name, file, failure.reason
                )
            backoff = min(retry.backoff_sec * 2 ** (tries - 1), retry.max_backoff_sec)
            time.sleep(max(backoff, failure.wait_sec))
        times = "once" if tries == 1 else f"{tries} times"
        later = "" if may_wait else f" and asks to wait {failure.wait_sec:,.0f} s"
        raise ShardError(
            f"cannot fetch {self.name}/{file}, tried {times}: {failure.reason}{later}; "
            "check it and the network and start again"
        )

    def _try(
        self, file: str, into: Path, max_bytes: int, find_damage: Callable[[Path], str | None]
    ) -> _Failure | None:
        """Fetch a file once. Raises OSError if the disk is full."""
        try:
            self._get(file, into, max_bytes)
        except Exception as error:  # as many types as there are file systems
            if isinstance(error, OSError) and error.errno in DISK_FULL:
                raise
            reason, may_pass = explain_failure(error)
            return _Failure(reason, may_pass, wait_sec=_retry_after(error))
        damage = find_damage(into)
        return None if damage is None else _Failure(damage, may_pass=True, is_damage=True)

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

        try:
            with tempfile.TemporaryDirectory() as folder:
                part = Path(folder) / INDEX_FILE
                self.fetch(INDEX_FILE, part, max_bytes=_MAX_INDEX_BYTES, find_damage=find_damage)
        except OSError as error:
            raise ShardError(
                f"no file can be written to the temporary folder ({error.strerror or error}): "
                "set TMPDIR to another folder"
            ) from error
        assert index is not None, "a fetched index was checked"
        return index

    def _connect(self, url: str) -> tuple[Any, str]:
        import fsspec

        try:
            if not (urlsplit(url).hostname and urlsplit(url).port != 0) and self._scheme in _EXTRAS:
                raise ValueError("no host")
        except ValueError:
            raise ShardError(
                f"{self.name} is no URL: give its host or bucket "
                "(a password's special characters are written %2F, %40 and so on)"
            ) from None
        try:
            filesystem, path = fsspec.url_to_fs(
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
        if self._scheme == "s3":
            filesystem.retries = 1  # `fetch` tries again, and says so
        return filesystem, path

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
                    "retries": {"max_attempts": 0},
                }
            }
        return {}

    def _get(self, file: str, into: Path, max_bytes: int) -> None:
        from fsspec.callbacks import Callback

        began, limit = time.monotonic(), self._retry.max_seconds

        class Counter(Callback):
            """Stops a file that is too long or too slow, which could fill the disk or never end."""

            def relative_update(self, inc: int = 1) -> None:
                super().relative_update(inc)
                if self.value > max_bytes:
                    raise _Unacceptable(f"more than {max_bytes:,} bytes arrived")
                seconds = time.monotonic() - began
                if seconds > limit(self.value):
                    raise _Unacceptable(f"only {self.value:,} bytes arrived in {seconds:.0f} s")

        options: dict[str, Any] = {"callback": Counter()}
        if self.filesystem.async_impl:
            options["timeout"] = self._retry.max_seconds(max_bytes)
        path, mark, query = self.path, "", ""
        if self._scheme in ("http", "https"):
            path, mark, query = path.partition("?")
        self.filesystem.get_file(f"{path.rstrip('/')}/{file}{mark}{query}", str(into), **options)


class _Unacceptable(Exception):
    """A file is longer than the index says, or comes too slowly."""


class _Failure(NamedTuple):
    """Why a file did not arrive, and whether another try may help."""

    reason: str
    may_pass: bool
    is_damage: bool = False  # bytes arrived, but the wrong ones
    wait_sec: float = 0.0  # before the next try, as the server asks


def _retry_after(error: Exception) -> float:
    """Return the seconds that a server asks to wait (RFC 9110, 10.2.3); 0 if it does not."""
    text = str((getattr(error, "headers", None) or {}).get("Retry-After", ""))
    if text.isdecimal() and len(text) < 10:
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return 0.0


def explain_failure(error: Exception) -> tuple[str, bool]:
    """Say why a fetch failed, without secrets, and whether another try may help."""
    status = getattr(error, "status", None)
    if isinstance(error, _Unacceptable):
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
