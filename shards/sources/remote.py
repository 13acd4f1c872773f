"""Images in a tar or zip at a URL, read in place: members are listed once, then read one by one."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from shards.errors import ShardError
from shards.remote.archive import RemoteFile
from shards.remote.folder import DEFAULT_RETRY, RetryPolicy
from shards.sources.source import Source
from shards.sources.tars import ScannedTar, TarSource, is_tar_name, scan_members
from shards.sources.webdataset_tars import open_scanned
from shards.sources.zips import ZipSource, list_zip


@dataclass(kw_only=True)
class RemoteTarSource(TarSource):
    """Images that are byte ranges of a remote tar."""

    file: RemoteFile

    def check(self) -> None:
        _check_remote(self.file, int(self.path_stamps[0]))

    def _read(self, item: int) -> bytes:
        return self.file.read(int(self.offsets[item]), int(self.sizes[item]))


@dataclass(kw_only=True)
class RemoteZipSource(ZipSource):
    """The images of a remote zip."""

    file: RemoteFile

    def check(self) -> None:
        _check_remote(self.file, self.stamp)

    def _open(self) -> zipfile.ZipFile:
        self._file = self.file.open()
        return zipfile.ZipFile(self._file)

    def _check_unchanged(self) -> None:
        """Do nothing, since asking the server for each image would take too long; see `check`."""


def _check_remote(file: RemoteFile, stamp: int) -> None:
    """Raise ShardError if a file is no longer the one that was listed."""
    if file.describe()[1] != stamp:
        raise ShardError(
            f"{file.name} was changed while it was packed: pack again, or, if its server often "
            "says so, download it and pack the file"
        )


def open_remote(url: str, *, with_labels: bool, retry: RetryPolicy = DEFAULT_RETRY) -> Source:
    """Open a tar or zip of images at a URL, or the shards of another tool, a tar of samples.

    Raises ShardError for other files, and if the server does not answer or cannot read ranges.
    """
    file = RemoteFile(url, retry=retry)
    path = urlsplit(url).path
    if not is_tar_name(path) and not path.lower().endswith(".zip"):
        raise ShardError(
            f"{file.name} is neither a .tar nor a .zip: give the URL of an archive, or download "
            "what is there and pack the folder"
        )
    size, stamp = file.describe()
    place = Path(file.name)
    if path.lower().endswith(".zip"):
        with file.open() as opened:
            items, members = list_zip(opened, file.name, with_labels=with_labels)
        return RemoteZipSource(**vars(items), path=place, stamp=stamp, members=members, file=file)
    with file.open() as opened:
        entries, skipped = scan_members(opened, file.name, num_bytes=size)
        tar = ScannedTar(place, entries, skipped, stamp)
        found = open_scanned(tar, lambda _: opened, with_labels=with_labels)
    fields = {name: value for name, value in vars(found).items() if not name.startswith("_")}
    return RemoteTarSource(**fields, file=file)
