"""The images of a run: packed shards in a folder or at a URL; with none given, the digits that scikit-learn ships."""

import fcntl
from pathlib import Path

from distgan.config import Data
from distgan.errors import UserError
from shards.index import ShardIndex
from shards.ordering import Ordering
from shards.reader import ShardReader
from shards.remote import open_shards
from shards.sources import cache_folder


def packed_digits() -> Path:
    """The digits as 32x32 shards in the cache, packed by the first process that asks."""
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ".digits.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (folder / "digits-32" / "index.json").exists():
                from shards.pack import pack

                pack("digits", folder / "digits-32", workers=1)
    except OSError as error:
        raise UserError(
            f"cannot write to the cache {folder}: {error.strerror}; set DISTGAN_CACHE to another folder"
        ) from None
    return folder / "digits-32"


def open_dataset(data: Data) -> tuple[ShardIndex, ShardReader]:
    """Index and reader of the shards; raises UserError or ShardError for what is missing or damaged."""
    max_bytes = None if data.cache_gb is None else int(data.cache_gb * 1e9)
    index, files = open_shards(data.shards or packed_digits(), cache=cache_folder() / "shards", max_bytes=max_bytes)
    ordering = Ordering(data.order, data.lanes, data.window_shards)
    return index, ShardReader(index, classes=data.classes, files=files, ordering=ordering)
