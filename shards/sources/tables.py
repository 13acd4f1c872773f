"""Images in the rows of Parquet and Arrow files, as Hugging Face datasets are stored.

Images are packed in a mixed order, but a Parquet file can only be read from front to back. Their
bytes are therefore copied once, to a file without a name that ends with the process.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shards.errors import ShardError, printable
from shards.files import cache_folder, make_folder
from shards.sources.source import Skipped, Source, digest_of, number_classes, stamp_of
from shards.sources.tars import TarSource
from shards.sources.texts import Texts

TABLE_EXTENSIONS = (".parquet", ".arrow")
_LABEL_NAMES = ("label", "labels", "cls", "class", "fine_label", "target", "category")
_SPLIT = re.compile(r"(?:^|[/_.-])(train|test|validation|valid|val|dev)(?=[/_.-])")
_OTHER_NAMES = dict.fromkeys(("valid", "val", "dev"), "validation")
_BATCH_ROWS = 256


class TableColumns(NamedTuple):
    """The columns that the user names; None: found."""

    image: str | None = None
    label: str | None = None


ANY_COLUMNS = TableColumns()


class Columns(NamedTuple):
    """The columns of images and labels, and what the labels' numbers mean, if that is known."""

    image: str
    label: str | None
    class_names: tuple[str, ...] | None


OPEN_FILES = Path("/proc/self/fd")


class _Copy:
    """A file that ends with the last source that refers to it.

    It has no name, so that a killed process leaves nothing behind, unless there is no /proc,
    through which worker processes open it.
    """

    def __init__(self) -> None:
        folder = cache_folder() / "copies"
        make_folder(folder)
        self.is_named = not OPEN_FILES.exists()
        make = tempfile.NamedTemporaryFile if self.is_named else tempfile.TemporaryFile
        self.file: Any = make(dir=folder)

    @property
    def path(self) -> Path:
        """Where this process and its workers can open it."""
        if self.is_named:
            return Path(self.file.name)
        return Path(f"/proc/{os.getpid()}/fd/{self.file.fileno()}")

    def __del__(self) -> None:
        if hasattr(self, "file"):
            self.file.close()


@dataclass(kw_only=True)
class TableSource(TarSource):
    """Images that are byte ranges of a file to which they were copied from tables."""

    copy: _Copy | None  # keeps the file alive; only the process that made it has it
    table_stamps: NDArray[np.int64]
    table_of_item: NDArray[np.int32]

    def stamps(self, items: NDArray[np.int64]) -> NDArray[np.int64]:
        return self.table_stamps[self.table_of_item[items]]

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"copy": None}


def is_table_name(path: str) -> bool:
    """Return whether a file is called like a Parquet or Arrow file."""
    return path.lower().endswith(TABLE_EXTENSIONS)


def may_hold_images(path: Path) -> bool:
    """Return whether a table has a column that may be of images, or cannot be read."""
    try:
        schema, _ = _open_table(path)
    except Exception:  # as many types as there are kinds of damage, or there is no pyarrow
        return True
    return any(map(_is_image, schema.types))


def open_tables(
    paths: Sequence[Path],
    names: Sequence[str],
    *,
    split: str,
    columns: TableColumns,
    with_labels: bool,
    skipped: Iterable[Skipped] = (),
) -> Source:
    """Open the tables at `paths`, which messages call `names`; `skipped` was left out beside them.

    Of several splits, by the names of the files, `split` is taken. Raises ShardError if a package
    is missing, for columns that are not there or not clear, and for damaged files.
    """
    _import_arrow()
    chosen = _of_split(names, split)
    rows, labels, numbers = list[str](), list[Any](), list[int]()
    sizes, stamps = list[int](), list[int]()
    copy = _Copy()
    agreed: Columns | None = None
    for number, which in enumerate(chosen):
        path, name = paths[which], printable(names[which])
        stamps.append(stamp_of(path.stat()))
        with _readable(name):
            schema, batches = _open_table(path)
            found = _columns_of(schema, name, columns, with_labels)
            if agreed is not None and found != agreed:
                raise ShardError(
                    f"{name} has other columns or classes than {printable(names[chosen[0]])}: "
                    "pack them one by one"
                )
            agreed, first = found, len(rows)
            for images, values in batches([found.image, *([found.label] if found.label else [])]):
                for image in images:
                    rows.append(f"{name}:{len(rows) - first}")
                    sizes.append(len(image))
                    copy.file.write(image)
                numbers += [number] * len(images)
                labels += values
    copy.file.flush()
    assert agreed is not None, "there is a table"
    classes, class_names = _classes(rows, labels, agreed) if agreed.label else (None, None)
    lengths = np.array(sizes, np.int64)
    return TableSource(
        names=Texts(rows),
        sizes=lengths,
        labels=classes,
        class_names=class_names,
        digest=digest_of(rows, sizes, classes),
        skipped=sorted(skipped),
        paths=(copy.path,),
        path_stamps=np.array([stamp_of(os.fstat(copy.file.fileno()))], np.int64),
        path_of_item=np.zeros(len(rows), np.int32),
        offsets=np.cumsum(lengths) - lengths,
        copy=copy,
        table_stamps=np.array(stamps, np.int64),
        table_of_item=np.array(numbers, np.int32),
    )


def _import_arrow() -> None:
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise ShardError(
            "reading Parquet and Arrow files needs a package; type: pip install 'distgan[parquet]'"
        ) from None


class _readable:
    """Turns the errors of pyarrow into ShardError with the name of the file."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        import pyarrow

        if isinstance(error, pyarrow.ArrowException):
            reason = printable(str(error).splitlines()[0])[:160]
            raise ShardError(
                f"{self.name} is damaged or no such table ({reason}): copy or download it again"
            ) from error


def _of_split(names: Sequence[str], split: str) -> list[int]:
    """Return which files belong to a split: all of them if none names one.

    Raises ShardError if only some do. A file that names none beside `test.parquet` is rather of
    another split than of every one, and would bring images of training into those for testing.
    """
    found = [_SPLIT.findall(name.lower()) for name in names]
    named = [_OTHER_NAMES.get(words[-1], words[-1]) if words else "" for words in found]
    splits = set(named) - {""}
    if splits and "" in named:
        lost, other = (names[named.index(word)] for word in ("", max(splits)))
        raise ShardError(
            f"{printable(lost)} names no split, like {named.count('')} of {len(names)} tables, but "
            f"{printable(other)} does: name one in every file, such as train-1.parquet, or move "
            "what is of none elsewhere"
        )
    if splits and split not in splits:
        raise ShardError(
            f"no split {split} among these tables, which name {', '.join(sorted(splits))}: "
            "choose one of them with --split"
        )
    return [number for number, name in enumerate(named) if name == (split if splits else "")]


def _open_table(path: Path) -> tuple[Any, Any]:
    """Return the schema of a file, and a function from columns to batches of their values."""
    import pyarrow
    import pyarrow.parquet

    if path.suffix.lower() == ".parquet":
        file = pyarrow.parquet.ParquetFile(path)
        return file.schema_arrow, lambda columns: _values(
            file.iter_batches(_BATCH_ROWS, columns=columns), columns
        )
    mapped = pyarrow.memory_map(str(path))
    try:
        reader = pyarrow.ipc.open_stream(mapped)
        return reader.schema, lambda columns: _values(reader, columns)
    except pyarrow.ArrowInvalid:
        opened = pyarrow.ipc.open_file(mapped)
        batches = (opened.get_batch(number) for number in range(opened.num_record_batches))
        return opened.schema, lambda columns: _values(batches, columns)


def _values(batches: Any, columns: list[str]) -> Iterator[tuple[list[bytes], list[Any]]]:
    """Yield image files and labels of each batch of rows. A missing image is no bytes."""
    import pyarrow

    for batch in batches:
        images = batch.column(columns[0])
        if pyarrow.types.is_struct(images.type):
            images = images.field("bytes")
        labels = batch.column(columns[1]).to_pylist() if len(columns) > 1 else []
        yield [image or b"" for image in images.to_pylist()], labels


def _columns_of(schema: Any, name: str, wanted: TableColumns, with_labels: bool) -> Columns:
    features = _features(schema)
    images = [column for column in schema.names if _is_image(schema.field(column).type)]
    labels = [column for column in schema.names if features.get(column) == "ClassLabel"]
    labels = labels or [column for column in schema.names if column in _LABEL_NAMES]
    label = None
    if with_labels:
        label = _choose(name, "label", wanted.label, labels, schema.names, is_needed=False)
    image = _choose(name, "image", wanted.image, images, schema.names, is_needed=True)
    assert image is not None, "an image column is needed"
    if image not in images:
        raise ShardError(
            f"{name}: column {image} holds no image files: give another --image-column"
        )
    class_names = _class_names(schema).get(label) if label is not None else None
    return Columns(image, label, class_names)


def _choose(
    name: str,
    kind: str,
    wanted: str | None,
    candidates: list[str],
    columns: list[str],
    *,
    is_needed: bool,
) -> str | None:
    listed = ", ".join(map(printable, columns))
    if wanted is not None:
        if wanted not in columns:
            raise ShardError(f"{name} has no column {printable(wanted)}: its columns are {listed}")
        return wanted
    if len(candidates) > 1 or (is_needed and not candidates):
        what = f"{len(candidates)} columns" if candidates else "no column"
        raise ShardError(
            f"{name} has {what} of {kind}s that can be recognised: "
            f"name it with --{kind}-column, its columns are {listed}"
        )
    return candidates[0] if candidates else None


def _is_image(kind: Any) -> bool:
    """Return whether a column may hold image files: bytes, or a struct with bytes."""
    import pyarrow.types as types

    if types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _is_image(kind.field("bytes").type)
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _metadata(schema: Any) -> dict[str, Any]:
    """Return what Hugging Face's libraries record about the columns."""
    try:
        recorded = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return {}
    return {k: v for k, v in recorded.items() if isinstance(v, dict)}


def _features(schema: Any) -> dict[str, str]:
    return {name: str(feature.get("_type")) for name, feature in _metadata(schema).items()}


def _class_names(schema: Any) -> dict[str, tuple[str, ...]]:
    return {
        name: tuple(map(printable, feature["names"]))
        for name, feature in _metadata(schema).items()
        if isinstance(feature.get("names"), list)
    }


def _classes(
    rows: Sequence[str], labels: Sequence[Any], columns: Columns
) -> tuple[NDArray[np.int32] | None, tuple[str, ...] | None]:
    """Return labels and class names, or none if there are fewer than two classes."""
    for row, label in zip(rows, labels, strict=True):
        if not isinstance(label, (int, str)) or (isinstance(label, int) and label < 0):
            raise ShardError(
                f"{row} has {printable(label)} in column {columns.label}, and a class is needed: "
                "choose another --label-column, or pack without labels with --labels ignore"
            )
    return number_classes(labels, columns.class_names)
