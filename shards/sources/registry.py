"""Open what a user names: a dataset, a folder, an archive, or the shards of another tool."""

from __future__ import annotations

import difflib
import logging
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from shards.errors import ShardError, describe_system_error, printable, without_secrets
from shards.files import expand_user
from shards.format.index import INDEX_FILE
from shards.images import EXTENSIONS
from shards.remote.files import is_url
from shards.sources.folders import list_folder, open_folder, tables_of
from shards.sources.label_files import with_label_file
from shards.sources.official import open_cifar10, open_digits, open_mnist
from shards.sources.remote import open_remote
from shards.sources.source import Skipped, Source
from shards.sources.stacked import open_stacked_digits, open_stacked_mnist
from shards.sources.tables import ANY_COLUMNS, TableColumns, is_table_name, open_tables
from shards.sources.tars import is_tar_name
from shards.sources.webdataset_tars import open_tar
from shards.sources.zips import open_zip

SPLITS = ("train", "test", "validation")
NAMED_SOURCES: dict[str, Callable[[str, Path | None], Source]] = {  # (split, root) -> source
    "digits": open_digits,
    "mnist": open_mnist,
    "cifar10": open_cifar10,
    "stacked-mnist": open_stacked_mnist,
    "stacked-digits": open_stacked_digits,
}


def open_source(
    source: str | Path,
    *,
    split: str = "train",
    root: Path | None = None,
    with_labels: bool = True,
    label_file: Path | None = None,
    columns: TableColumns = ANY_COLUMNS,
) -> Source:
    """Open one of NAMED_SOURCES, an image folder, a .tar or .zip, or a folder of WebDataset tars.

    Or Parquet and Arrow files, or a folder of them, or the URL of a .tar or .zip. `label_file` is a
    CSV file of path and label, `columns` are those of tables. `split` belongs to named sources and
    tables, `root` (a folder with the official files, instead of a download) to named ones.

    Raises ShardError for what does not exist, cannot be read or holds no image, and, if
    `with_labels`, for images of which only some have a label. Warns of images that are left out.
    """
    if split not in SPLITS:
        raise ShardError(f"no split {split!r}: the splits are {', '.join(SPLITS)}")
    try:
        if str(source) in NAMED_SOURCES:
            if split == "validation":
                raise ShardError(f"{source} has no split {split!r}: leave out --split")
            _check_columns(str(source), columns)
            if Path(source).is_dir() and not (Path(source) / INDEX_FILE).exists():
                logging.getLogger(__name__).warning(
                    "packing the dataset %s, not the folder of that name, which is ./%s",
                    source,
                    source,
                )
            opened = NAMED_SOURCES[str(source)](split, root)
            if not with_labels:
                opened = replace(opened, labels=None, class_names=None)
        else:
            with_folders = with_labels and label_file is None
            opened = _open_path(source, split, root, with_folders, columns)
        if label_file is not None:
            opened = with_label_file(opened, expand_user(label_file))
    except OSError as error:
        error.filename = error.filename or str(source)
        raise ShardError(f"cannot read {describe_system_error(error)}") from error
    if opened.skipped:
        logging.getLogger(__name__).warning("%s", describe_skipped(opened.skipped))
    if not len(opened):
        num_others = opened.other_files.total()
        others = f" ({num_others:,} other files)" if num_others else ""
        raise ShardError(
            f"no image in {printable(without_secrets(str(source)))}{others}: "
            f"images end in {', '.join(sorted(EXTENSIONS))}"
        )
    return opened


def describe_skipped(skipped: Sequence[Skipped]) -> str:
    """Say in one line how many images are left out for which reasons."""
    reasons = Counter(image.reason for image in skipped).most_common(4)
    counts = ", ".join(f"{reason} ({count:,})" for reason, count in reasons)
    more = ", ..." if sum(count for _, count in reasons) < len(skipped) else ""
    return f"left out {len(skipped):,}: {counts}{more}; the first is {skipped[0].name}"


def _open_path(
    source: str | Path, split: str, root: Path | None, with_labels: bool, columns: TableColumns
) -> Source:
    if is_url(source):
        _check_options(without_secrets(str(source)), split, root, columns)
        return open_remote(str(source), with_labels=with_labels)
    name, path = printable(source), expand_user(source)
    if is_table_name(path.name) and path.is_file():
        _check_options(name, "train", root, ANY_COLUMNS)
        return open_tables(
            [path], [path.name], split=split, columns=columns, with_labels=with_labels
        )
    listing = list_folder(path) if path.is_dir() else None
    if listing is not None and (tables := tables_of(listing)):
        _check_options(name, "train", root, ANY_COLUMNS)
        files = [path / table for table in tables]
        return open_tables(
            files, tables, split=split, columns=columns, with_labels=with_labels,
            skipped=listing.skipped,
        )  # fmt: skip
    _check_options(name, split, root, columns)
    if not path.exists():
        near = difflib.get_close_matches(str(source), NAMED_SOURCES, n=1)
        remedy = (
            f"did you mean {near[0]}?"
            if near
            else f"give a path that exists, or one of {', '.join(NAMED_SOURCES)}"
        )
        raise ShardError(f"no file or folder {name}: {remedy}")
    if listing is not None:
        return open_folder(listing, with_labels=with_labels)
    if path.suffix.lower() in EXTENSIONS or not path.is_file():
        raise ShardError(
            f"{name} is neither a folder nor an archive: give the folder that holds your images"
        )
    # A tar whose last member is a zip also looks like a zip.
    if path.suffix.lower() == ".zip" or (not is_tar_name(path.name) and zipfile.is_zipfile(path)):
        return open_zip(path, with_labels=with_labels)
    return open_tar(path, with_labels=with_labels)


def _check_options(name: str, split: str, root: Path | None, columns: TableColumns) -> None:
    """Raise ShardError for options that belong to other sources."""
    if split != "train" or root is not None:
        raise ShardError(
            f"--split and --root belong to {', '.join(NAMED_SOURCES)}, not to {name}: "
            "leave them out"
        )
    _check_columns(name, columns)


def _check_columns(name: str, columns: TableColumns) -> None:
    """Raise ShardError for columns of what is no table."""
    if columns != ANY_COLUMNS:
        raise ShardError(
            f"--image-column and --label-column belong to Parquet and Arrow files, not to {name}: "
            "leave them out"
        )
