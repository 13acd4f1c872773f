"""Folders of image files."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shards.errors import ShardError, printable
from shards.files import read_regular
from shards.sources.source import (
    Entry,
    Skipped,
    Source,
    check_unchanged,
    is_hidden,
    is_image_name,
    list_images,
    stamp_of,
)
from shards.sources.tables import is_table_name, may_hold_images
from shards.sources.tars import is_tar_name
from shards.sources.texts import Texts
from shards.sources.webdataset_tars import open_webdataset

_STATE_FILE = "state.json"  # of a dataset that was saved by datasets
_CACHE_NAME = re.compile(r"cache-[0-9a-f]{8,}(_\d+_of_\d+)?\.arrow")


@dataclass(kw_only=True)
class FolderSource(Source):
    """The image files in a folder and its subfolders."""

    folder: str
    files: Sequence[str]  # paths relative to the folder, as the system spells them
    file_stamps: NDArray[np.int64]

    def stamps(self, items: NDArray[np.int64]) -> NDArray[np.int64]:
        return self.file_stamps[items]

    def _read(self, item: int) -> bytes:
        with open(os.path.join(self.folder, self.files[item]), "rb") as file:
            data = file.read()
            status = os.fstat(file.fileno())
        check_unchanged(self.names[item], status, int(self.file_stamps[item]))
        return data


class Listing(NamedTuple):
    """The regular files of a folder and its subfolders, and what of it cannot be packed."""

    folder: Path
    entries: list[Entry]  # placed by path and stamp
    skipped: list[Skipped]
    num_hidden: int  # folders, in which nothing was listed


def list_folder(folder: Path) -> Listing:
    """List all regular files under a folder: each folder and each table once.

    Without the tables that the datasets library keeps beside its data: its caches hold the same
    images again.
    """
    entries, skipped, num_hidden = _walk(str(folder))
    tables = _tables_among(entries)
    left_out = _cached_tables(folder, tables)
    left_out |= _linked_tables(folder, [path for path in tables if path not in left_out])
    entries = [entry for entry in entries if entry.path not in left_out]
    skipped += [Skipped(printable(path), reason) for path, reason in left_out.items()]
    return Listing(folder, entries, skipped, num_hidden)


def open_folder(listing: Listing, *, with_labels: bool) -> Source:
    """Open a folder of images, or of the tars that WebDataset tools write."""
    folder, entries, skipped, num_hidden = listing
    paths = [entry.path for entry in entries]
    tars = sorted(path for path in paths if is_tar_name(path) and not is_hidden(path))
    if tars and (images := sorted(filter(is_image_name, paths))):
        raise _two_kinds(folder, images, "tar archives", tars, "give a tar")
    if tars:
        return open_webdataset([folder / path for path in tars], with_labels=with_labels)
    items, places = list_images(entries, skipped=skipped, with_labels=with_labels)
    if num_hidden:
        items.other_files["hidden folder"] = num_hidden
    files = Texts(path for path, _ in places)
    return FolderSource(
        **vars(items),
        folder=str(folder),
        files=files,
        file_stamps=np.array([stamp for _, stamp in places], np.int64),
    )


def tables_of(listing: Listing) -> list[str]:
    """Return the Parquet and Arrow files of a folder, or none if it holds images or tars.

    Raises ShardError for images beside tables of images. Other tables beside images are usual: the
    tools that download images write addresses and captions to them.
    """
    folder = listing.folder
    tables = _tables_among(listing.entries)
    if not tables:  # nearly always, and there may be millions of images
        return []
    paths = sorted(entry.path for entry in listing.entries if not is_hidden(entry.path))
    images = list(filter(is_image_name, paths))
    if images and (found := [path for path in tables if may_hold_images(folder / path)]):
        remedy = "give the table, or the folder of one kind"
        raise _two_kinds(folder, images, "tables of images", found, remedy)
    return [] if images or any(map(is_tar_name, paths)) else tables


def _tables_among(entries: list[Entry]) -> list[str]:
    return sorted(e.path for e in entries if is_table_name(e.path) and not is_hidden(e.path))


def _two_kinds(
    folder: Path, images: list[str], kind: str, others: list[str], remedy: str
) -> ShardError:
    return ShardError(
        f"{printable(folder)} holds images ({len(images):,}, such as {printable(images[0])}) "
        f"beside {kind} ({len(others):,}, such as {printable(others[0])}): "
        f"{remedy}, or move one kind to another folder"
    )


def _linked_tables(folder: Path, tables: list[str]) -> dict[str, str]:
    """Return those that are links to other tables of the folder, each with a reason."""
    first: dict[tuple[int, int], str] = {}  # path of each table by device and inode
    links = {}
    for path in sorted(tables, key=lambda path: (os.path.islink(folder / path), path)):
        status = os.stat(folder / path)
        known = first.setdefault((status.st_dev, status.st_ino), path)
        if known != path:
            links[path] = f"same file as {printable(known)}"
    return links


def _cached_tables(folder: Path, tables: list[str]) -> dict[str, str]:
    """Return those that are no data of a dataset that was saved by datasets, each with a reason."""
    parents = {os.path.dirname(path) for path in tables}
    data_files = {parent: _read_data_files(folder / parent) for parent in parents}
    caches = {}
    for path in tables:
        parent, name = os.path.split(path)
        files = data_files[parent]
        if files is not None and name not in files:
            caches[path] = f"not among the data files in {_STATE_FILE}"
        elif files is None and _CACHE_NAME.fullmatch(name):
            caches[path] = "cache of the datasets library"
    return caches


def _read_data_files(folder: Path) -> set[str] | None:
    """Return the files that a saved dataset consists of; None if this is none."""
    try:
        state = json.loads(read_regular(folder / _STATE_FILE))
        return {str(file["filename"]) for file in state["_data_files"]}
    except (FileNotFoundError, ValueError, LookupError, TypeError, RecursionError):
        return None


def _walk(top: str) -> tuple[list[Entry], list[Skipped], int]:
    """List all regular files under a folder, and count its hidden folders, which are not opened.

    Each folder is listed once, even if links lead to it again. What a hidden folder holds can be
    reached through a link that is not hidden, and then has the name of the link.
    """
    entries, skipped, num_hidden = [], [], 0
    names: dict[tuple[int, int], str] = {}  # path of each folder by device and inode
    folders, links = [""], list[str]()
    while folders or links:
        # Real folders come before links to folders, so that a class keeps its own name.
        links.sort(reverse=True)
        folder = folders.pop() if folders else links.pop()
        status = os.stat(os.path.join(top, folder))
        first = names.setdefault((status.st_dev, status.st_ino), folder)
        if first != folder:
            skipped.append(Skipped(printable(folder), f"same folder as {printable(first or '.')}"))
            continue
        with os.scandir(os.path.join(top, folder)) as found:
            for entry in found:
                path = f"{folder}/{entry.name}" if folder else entry.name
                if _is_loop(entry):
                    if is_image_name(path):
                        skipped.append(Skipped(printable(path), "broken link"))
                elif entry.is_dir():
                    if is_hidden(entry.name):
                        num_hidden += 1
                        continue
                    (links if entry.is_symlink() else folders).append(path)
                elif entry.is_file():
                    status = entry.stat()
                    entries.append(Entry(path, status.st_size, (path, stamp_of(status))))
                elif is_image_name(path):
                    kind = "broken link" if entry.is_symlink() else "not a regular file"
                    skipped.append(Skipped(printable(path), kind))
    return entries, skipped, num_hidden


def _is_loop(entry: os.DirEntry[str]) -> bool:
    """Return whether following a link leads back to it."""
    try:
        entry.is_dir()
    except OSError as error:
        if error.errno == errno.ELOOP:
            return True
        raise
    return False
