"""Parquet and Arrow files as Hugging Face's libraries write them, and labels from CSV files."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from shards.errors import ShardError
from shards.pack import pack
from shards.sources.registry import open_source
from shards.sources.tables import TableColumns
from tests.shards.images import WRITERS, contents, png, value, write_folder

NAMES = ["cat", "dog", "fox"]
FEATURES = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": NAMES}}


def table(values: range, features: dict[str, Any] | None = FEATURES, **more: Any) -> pyarrow.Table:
    """Return rows of images of one grey value each, and of labels by turns."""
    images = [{"bytes": png(number), "path": f"{number}.png"} for number in values]
    columns = {"image": images, "label": [number % 2 for number in values], **more}
    made = pyarrow.table({name: column for name, column in columns.items() if column is not None})
    if features is None:
        return made
    info = json.dumps({"info": {"features": features}})
    return made.replace_schema_metadata({b"huggingface": info.encode()})


def write_parquet(path: Path, rows: pyarrow.Table) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(rows, path, row_group_size=3)
    return path


def write_arrow(path: Path, rows: pyarrow.Table, *, stream: bool = True) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = pyarrow.ipc.new_stream if stream else pyarrow.ipc.new_file
    with new(str(path), rows.schema) as writer:
        writer.write_table(rows, max_chunksize=3)
    return path


@pytest.mark.parametrize("kind", ["parquet", "stream", "file"])
def test_tables_hold_the_images_and_classes_of_their_rows(tmp_path: Path, kind: str) -> None:
    """The label's names come from the file; classes without images are left out."""
    rows = table(range(8))
    if kind == "parquet":
        path = write_parquet(tmp_path / "a.parquet", rows)
    else:
        path = write_arrow(tmp_path / "a.arrow", rows, stream=kind == "stream")
    source = open_source(path)
    assert list(source.names[:2]) == [f"{path.name}:0", f"{path.name}:1"]
    assert [value(source, item) for item in range(8)] == list(range(8))
    assert source.class_names == ("cat", "dog")
    assert source.labels is not None and source.labels.tolist() == [0, 1] * 4


def test_a_dataset_folder_is_packed_by_split_with_any_number_of_processes(tmp_path: Path) -> None:
    """As a cloned repository: several files of each split, and text beside them."""
    repository = tmp_path / "repository"
    folder = repository / "data"
    write_parquet(folder / "train-00000-of-00002.parquet", table(range(300)))
    write_parquet(folder / "train-00001-of-00002.parquet", table(range(200)))
    write_parquet(folder / "test-00000-of-00001.parquet", table(range(4)))
    (repository / "README.md").write_text("a card")
    index = pack(repository, tmp_path / "out", size=16, workers=1)
    assert (index.num_samples, index.class_counts) == (500, (250, 250))
    assert pack(repository, tmp_path / "test", size=16, split="test", workers=1).num_samples == 4
    pack(folder, tmp_path / "two", size=16, workers=2)
    assert contents(tmp_path / "two").keys() == contents(index.path).keys()
    assert (tmp_path / "two" / "000000.tar").read_bytes() == (
        index.path / "000000.tar"
    ).read_bytes()


def test_columns_are_found_or_named(tmp_path: Path) -> None:
    """Plain bytes and text as labels will do; a choice is asked for in one line."""
    words = ["b", "a", "b"]
    images = [png(number) for number in range(3)]
    rows = pyarrow.table({"jpg": images, "thumbnail": images, "label": words, "class": words})
    path = write_parquet(tmp_path / "a.parquet", rows)
    with pytest.raises(
        ShardError, match=r"a.parquet has 2 columns of labels .* --label-column, its"
    ):
        open_source(path)
    with pytest.raises(ShardError, match=r"has 2 columns of images .* --image-column"):
        open_source(path, with_labels=False)
    source = open_source(path, columns=TableColumns("jpg", "class"))
    assert source.class_names == ("a", "b")
    assert source.labels is not None and source.labels.tolist() == [1, 0, 1]
    assert open_source(path, columns=TableColumns("jpg"), with_labels=False).labels is None
    for columns, message in (
        (
            TableColumns("picture"),
            r"no column picture: its columns are jpg, thumbnail, label, class",
        ),
        (TableColumns("label"), "column label holds no image files"),
    ):
        with pytest.raises(ShardError, match=message):
            open_source(path, columns=columns, with_labels=False)


def test_datasets_without_tables_refuse_columns() -> None:
    """As folders of images do."""
    with pytest.raises(ShardError, match="belong to Parquet and Arrow files, not to digits"):
        open_source("digits", columns=TableColumns("nope"))


def test_what_is_wrong_with_a_table_is_one_line(tmp_path: Path) -> None:
    """Damage, other classes, missing labels and images, and options for other sources."""
    path = write_parquet(tmp_path / "a" / "x.parquet", table(range(4)))
    other = FEATURES | {"label": {"_type": "ClassLabel", "names": ["x", "y"]}}
    write_parquet(tmp_path / "a" / "y.parquet", table(range(4), other))
    damaged = tmp_path / "damaged.parquet"
    damaged.write_bytes(path.read_bytes()[:-20])
    missing = write_parquet(tmp_path / "missing.parquet", table(range(2), label=[0, None]))
    empty = table(range(2), image=[None, {"bytes": png(), "path": ""}])
    hole = write_parquet(tmp_path / "hole.parquet", empty)
    write_folder(tmp_path / "folder", {"1.png": png()})
    for source, options, message in (
        (path.parent, {}, "y.parquet has other columns or classes than x.parquet"),
        (damaged, {}, "damaged.parquet is damaged or no such table"),
        (missing, {}, "missing.parquet:1 has None in column label, and a class is needed"),
        (path, {"split": "test", "root": tmp_path}, "--split and --root belong to"),
        (tmp_path / "folder", {"columns": TableColumns("x")}, "belong to Parquet and Arrow"),
    ):
        with pytest.raises(ShardError, match=message) as caught:
            open_source(source, **options)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)
    with pytest.raises(ShardError, match=r"broken image hole\.parquet:0"):
        pack(hole, tmp_path / "out", size=8, workers=1)


def test_a_split_that_is_not_there_is_named(tmp_path: Path) -> None:
    """With those that are."""
    write_parquet(tmp_path / "validation-00000-of-00001.parquet", table(range(4)))
    with pytest.raises(
        ShardError, match="no split train among these tables, which name validation"
    ):
        open_source(tmp_path)
    assert len(open_source(tmp_path, split="validation")) == 4
    (tmp_path / "validation-00000-of-00001.parquet").rename(tmp_path / "val.parquet")
    assert len(open_source(tmp_path, split="validation")) == 4
    with pytest.raises(ShardError, match="cifar10 has no split 'validation'"):
        open_source("cifar10", split="validation")


@pytest.mark.parametrize(
    ("link", "target"),
    [("data/current", "v1"), ("data/loop", "."), ("data/all.parquet", "v1/all.parquet")],
)
def test_a_table_that_a_link_shows_again_is_packed_once(
    link: str, target: str, tmp_path: Path
) -> None:
    """Whether the link leads to its folder, to one above or to itself; the link is named."""
    write_parquet(tmp_path / "data" / "v1" / "all.parquet", table(range(4)))
    (tmp_path / link).symlink_to(target)
    source = open_source(tmp_path / "data")
    assert list(source.names) == [f"v1/all.parquet:{row}" for row in range(4)]
    assert [skipped.name for skipped in source.skipped] == [Path(link).name]


def test_a_table_that_names_no_split_beside_one_that_does_is_an_error(tmp_path: Path) -> None:
    """It is named, rather than left out in silence or packed with every split."""
    for name in ("train-0.parquet", "more.parquet"):
        write_parquet(tmp_path / name, table(range(4)))
    with pytest.raises(ShardError, match=r"more\.parquet names no split, .* name one in every"):
        open_source(tmp_path)


def test_images_beside_tables_of_images_are_an_error(tmp_path: Path) -> None:
    """The dataset of a cloned repository is not a picture of its card; each kind can be packed."""
    write_parquet(tmp_path / "data" / "train-0.parquet", table(range(4)))
    write_folder(tmp_path, {"assets/preview.png": png()})
    with pytest.raises(
        ShardError,
        match=r"1, such as assets/preview.png\) beside tables of images \(1, such as data",
    ):
        open_source(tmp_path)
    assert len(open_source(tmp_path / "data")) == 4
    assert len(open_source(tmp_path / "assets")) == 1


def test_a_table_without_images_beside_images_is_another_file(tmp_path: Path) -> None:
    """Such as the addresses and captions that tools for downloads write."""
    write_parquet(tmp_path / "0.parquet", pyarrow.table({"url": ["a"], "caption": ["b"]}))
    source = open_source(write_folder(tmp_path, {"0/1.png": png()}))
    assert (list(source.names), source.other_files) == (["0/1.png"], {".parquet": 1})


@pytest.mark.parametrize("state", [True, False])
def test_caches_beside_a_saved_dataset_are_left_out_and_named(tmp_path: Path, state: bool) -> None:
    """Those of datasets, whose data files are in state.json; the data are packed once."""
    data, cache = "data-00000-of-00001.arrow", "cache-0123456789abcdef_00000_of_00002.arrow"
    for name in (data, cache):
        write_arrow(tmp_path / name, table(range(4)))
    if state:
        files = json.dumps({"_data_files": [{"filename": data}], "_split": None})
        (tmp_path / "state.json").write_text(files)
    source = open_source(tmp_path)
    assert list(source.names) == [f"{data}:{row}" for row in range(4)]
    assert [skipped.name for skipped in source.skipped] == [cache]


FILES = {"x/1.png": png(1), "y/2.png": png(2), "z/3.png": png(3)}


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize(
    "text",
    [
        "x/1.png,red\ny/2.png,blue\nz/3.png,red\n",
        "label,rest,file_name\nred,,./x/1.png\nblue,,y/2.png\nred,,z/3.png\n",
        "id,label\nx/1,red\ny/2,blue\nz/3,red\n",
    ],
)
def test_labels_of_a_table_replace_those_of_folders(tmp_path: Path, kind: str, text: str) -> None:
    """With and without names of columns and extensions, for folders and archives."""
    (tmp_path / "labels.csv").write_text(text)
    index = pack(
        WRITERS[kind](tmp_path / kind, FILES), tmp_path / "out", size=8, workers=1,
        labels=str(tmp_path / "labels.csv"),
    )  # fmt: skip
    assert (index.class_names, index.class_counts) == (("blue", "red"), (1, 2))


def test_numbers_as_labels_are_sorted_by_value(tmp_path: Path) -> None:
    """10 comes after 9."""
    (tmp_path / "labels.tsv").write_text("x/1.png\t10\ny/2.png\t9\nz/3.png\t10\n")
    source = open_source(
        write_folder(tmp_path / "folder", FILES), label_file=tmp_path / "labels.tsv"
    )
    assert source.class_names == ("9", "10")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x/1.png,red\n", r"y/2.png has no label in .*labels.csv, like 2 of 3 images: add it"),
        (
            "x/1.png,a\ny/2.png,b\nz/3.png,a\ngone.png,b\n",
            r"labels.csv, line 4: there is no image gone.png",
        ),
        ("x/1.png,a\nx/1.png,b\n", r"labels.csv, line 2: x/1.png has another label than in line 1"),
        ("x/1.png,a\ny/2.png\n", r"labels.csv, line 2: there is no label"),
        ("one,two,three\n", r"labels.csv begins with 'one,two,three': give two columns"),
        ("\udcff\udcfe", r"labels.csv is no table of text"),
    ],
)
def test_labels_that_do_not_fit_are_one_line(tmp_path: Path, text: str, message: str) -> None:
    """The file, the line or the image, and what to do."""
    file = tmp_path / "labels.csv"
    file.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ShardError, match=message) as caught:
        open_source(write_folder(tmp_path / "folder", FILES), label_file=file)
    assert "\n" not in str(caught.value)
    with pytest.raises(ShardError, match="No such file"):
        open_source(tmp_path / "folder", label_file=tmp_path / "gone.csv")


def test_a_table_is_packed_without_proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on macOS, where the copy of the images has a name; it is removed at the end."""
    monkeypatch.setattr("shards.sources.tables.OPEN_FILES", tmp_path / "nothing")
    monkeypatch.setenv("DISTGAN_CACHE", str(tmp_path / "cache"))
    source = open_source(write_parquet(tmp_path / "a.parquet", table(range(4))))
    assert value(source, 3) == 3
    pack(tmp_path / "a.parquet", tmp_path / "shards", size=8, workers=2)
    del source
    gc.collect()
    assert contents(tmp_path / "cache") == {}


def test_a_table_leaves_no_copy_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy of the images has no name, so that it ends with the process."""
    monkeypatch.setenv("DISTGAN_CACHE", str(tmp_path / "cache"))
    source = open_source(write_parquet(tmp_path / "a.parquet", table(range(4))))
    assert value(source, 3) == 3
    assert contents(tmp_path / "cache") == {}
