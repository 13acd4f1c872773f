"""Labels from a table beside the images: a CSV or TSV file of path and label."""

from __future__ import annotations

import csv
import os
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from shards.errors import ShardError, printable
from shards.sources.source import Source, digest_of, number_classes

_PATH_NAMES = ("path", "file", "file_name", "filename", "image", "image_id", "id", "name")
_LABEL_NAMES = ("label", "labels", "class", "class_name", "cls", "target", "category")


def with_label_file(source: Source, file: Path) -> Source:
    """Return a source with the labels of a CSV or TSV file (path, label).

    Paths are those in the folder or archive, with or without the extension. A first row of known
    names says which columns to take; otherwise there are two. Every image needs one label. Raises
    ShardError, which names the line or the image.
    """
    label_of_path = _read(file)
    labels, used = [], set()
    for name in source.names:
        key = _key(name, label_of_path)
        if key not in label_of_path:
            missing = sum(_key(n, label_of_path) not in label_of_path for n in source.names)
            raise ShardError(
                f"{name} has no label in {printable(file)}, like {missing:,} of "
                f"{len(source):,} images: add it, or move it elsewhere"
            )
        labels.append(label_of_path[key][0])
        used.add(key)
    unused = next((key for key in label_of_path if key not in used), None)
    if unused is not None:
        raise ShardError(
            f"{printable(file)}, line {label_of_path[unused][1]}: there is no image "
            f"{printable(unused)}, or it is not read: remove the line, or add the image"
        )
    numbers, class_names = number_classes(labels)
    digest = digest_of(source.names, source.sizes.tolist(), numbers)
    return replace(source, labels=numbers, class_names=class_names, digest=digest)


def _key(name: str, label_of_path: Collection[str]) -> str:
    """Return a name as the file has it: without `./`, and with or without its extension."""
    name = name.removeprefix("./")
    return name if name in label_of_path else os.path.splitext(name)[0]


def _read(file: Path) -> dict[str, tuple[str, int]]:
    """Return label and line of each path."""
    delimiter = "\t" if file.suffix.lower() == ".tsv" else ","
    found: dict[str, tuple[str, int]] = {}
    try:
        with open(file, newline="", encoding="utf-8-sig") as opened:
            rows = csv.reader(opened, delimiter=delimiter)
            columns: tuple[int, int] | None = None
            for row in rows:
                if not row:
                    continue
                if columns is None:
                    columns, is_header = _columns(file, row)
                    if is_header:
                        continue
                _add(file, rows.line_num, row, columns, found)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ShardError(
            f"{printable(file)} is no table of text ({printable(error)}): give a CSV file of path "
            "and label"
        ) from None
    return found


def _columns(file: Path, row: Sequence[str]) -> tuple[tuple[int, int], bool]:
    """Return the columns of path and label, and whether the row is a header."""
    names = [name.strip().lower() for name in row]
    paths = [names.index(name) for name in _PATH_NAMES if name in names]
    labels = [names.index(name) for name in _LABEL_NAMES if name in names]
    if paths and labels:
        return (paths[0], labels[0]), True
    if len(row) == 2:
        return (0, 1), False
    raise ShardError(
        f"{printable(file)} begins with {printable(','.join(row))[:80]!r}: give two columns, path "
        "and label, or a first row with these names"
    )


def _add(
    file: Path,
    line: int,
    row: Sequence[str],
    columns: tuple[int, int],
    found: dict[str, tuple[str, int]],
) -> None:
    where = f"{printable(file)}, line {line}"
    if len(row) <= max(columns) or not row[columns[1]].strip():
        raise ShardError(f"{where}: there is no label: write path and label")
    path, label = row[columns[0]].strip(), row[columns[1]].strip()
    path = printable(path.removeprefix("./"))
    if found.setdefault(path, (label, line))[0] != label:
        raise ShardError(f"{where}: {path} has another label than in line {found[path][1]}")
