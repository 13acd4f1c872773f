"""Packed shards in a folder or at a URL, and their files, fetched when they are opened.

URL/index.json ──> ShardIndex          URL/000000.tar ──NodeCache, checksum──> an open local file
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import BinaryIO

from shards.files import Files, LocalFiles, sha256_of_file
from shards.format.index import ShardIndex, read_index
from shards.remote.cache import NodeCache
from shards.remote.folder import DEFAULT_RETRY, RemoteFolder, RetryPolicy


def is_url(place: str | Path) -> bool:
    """Return whether a place is a URL rather than a folder."""
    return "://" in str(place)


def open_shards(
    place: str | Path,
    *,
    cache: Path,
    max_bytes: int | None = None,
    retry: RetryPolicy = DEFAULT_RETRY,
) -> tuple[ShardIndex, Files]:
    """Return the index and the files of packed shards in a folder or at a URL.

    Remote files are fetched into the folder `cache` when they are opened; it holds at most
    `max_bytes` at a time. Raises ShardError.
    """
    if not is_url(place):
        index = read_index(place)
        return index, LocalFiles(index.path)
    folder = RemoteFolder(str(place), retry=retry)
    return folder.read_index(), RemoteFiles(folder, NodeCache(cache, max_bytes))


class RemoteFiles:
    """The files of a remote dataset. Each is fetched into the node's cache when first opened."""

    remote = True

    def __init__(self, folder: RemoteFolder, cache: NodeCache) -> None:
        self._folder, self._cache = folder, cache
        self.source, self.max_bytes = folder.name, cache.max_bytes
        self._checked: set[tuple[str, int]] = set()  # sha256 and inode of files of the cache

    def open(self, file: str, *, num_bytes: int, sha256: str) -> BinaryIO:
        """Open a file whose checksum has been compared. Raises ShardError if it cannot be fetched.

        Other processes of the node that want the same file wait meanwhile. Each process compares a
        file of the cache once; a damaged one is fetched again.
        """

        def find_damage(path: Path) -> str | None:
            found = path.stat().st_size
            if found != num_bytes:
                return f"{found:,} of {num_bytes:,} bytes arrived"
            if sha256_of_file(path) != sha256:
                return "its checksum is not what the index says"
            return None

        def fetch(part: Path) -> None:
            self._folder.fetch(file, part, max_bytes=num_bytes, find_damage=find_damage)

        while True:
            opened = self._cache.open(sha256, num_bytes=num_bytes, fetch=fetch)
            key = sha256, os.fstat(opened.fileno()).st_ino
            if key in self._checked:
                return opened
            if hashlib.file_digest(opened, "sha256").hexdigest() == sha256:
                self._checked.add(key)
                opened.seek(0)
                return opened
            opened.close()
            self._cache.remove(sha256, why=f"{file} is damaged there")
