"""WebDataset shards that others wrote."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import webdataset

from shards.errors import ShardError
from shards.sources.registry import open_source
from tests.shards.images import png, value, write_tar


def test_foreign_webdataset_shards(tmp_path: Path) -> None:
    """Images are found by extension, labels in `.cls`; other fields are counted."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for shard in range(2):
        with webdataset.TarWriter(str(folder / f"train-{shard}.tar")) as writer:
            for i in range(3):
                number = 3 * shard + i
                sample = {
                    "__key__": f"s{number}",
                    "png": png(number),
                    "cls": 7 - number % 2,
                    "json": {"x": 1},
                    "txt": "t",
                }
                writer.write(sample)
            writer.write({"__key__": "note", "txt": "no image here"})
    source = open_source(folder)
    assert [value(source, item) for item in range(6)] == list(range(6))
    assert source.class_names == ("6", "7")
    assert source.labels is not None
    assert source.labels.tolist() == [1, 0, 1, 0, 1, 0]
    assert source.other_files.total() == 6 * 2 + 2  # json and txt, and the two notes


def test_images_beside_webdataset_tars_are_an_error(tmp_path: Path) -> None:
    """A preview.png must not hide the dataset."""
    write_tar(tmp_path / "s" / "train-0.tar", {"a.png": png(), "a.cls": b"0"})
    (tmp_path / "s" / "preview.png").write_bytes(png())
    with pytest.raises(ShardError, match=r"preview\.png.*beside tar archives \(1, .*train-0"):
        open_source(tmp_path / "s")
    (tmp_path / "s" / "preview.png").rename(tmp_path / "s" / ".preview.png")
    assert list(open_source(tmp_path / "s").names) == ["train-0.tar/a.png"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.cls": b"0", "b.cls": b"1", "c.txt": b"2"}, r"x\.tar/c\.png has no \.cls.*1 of 3"),
        ({"a.json": b'{"label": 3}', "b.json": b"{}"}, r"a\.json holds a label \(label\)"),
        ({"a.cls": b"cat", "b.cls": b"1", "c.cls": b"1"}, "class number"),
    ],
)
def test_lost_labels_are_an_error(files: dict[str, bytes], message: str, tmp_path: Path) -> None:
    """Labels that are missing or cannot be read; without labels all images are packed."""
    images = {f"{key}.png": png() for key in "abc"}
    path = write_tar(tmp_path / "x" / "x.tar", images | files)
    with pytest.raises(ShardError, match=rf"{message}.*--labels ignore"):
        open_source(path.parent)
    source = open_source(path.parent, with_labels=False)
    assert (len(source), source.labels) == (3, None)


def test_further_images_of_a_sample_are_named(tmp_path: Path) -> None:
    """`a.left.jpg` beside `a.jpg` is skipped, and hidden members are no fields."""
    files = {"a.jpg": png(1), "a.left.jpg": png(2), "a.cls": b"0", "._a.jpg": b"x", "a.txt": b"x"}
    source = open_source(write_tar(tmp_path / "x.tar", files))
    assert list(source.names) == ["x.tar/a.jpg"]
    assert [skipped.name for skipped in source.skipped] == ["x.tar/a.left.jpg"]
    assert source.other_files == {".jpg": 1, ".txt": 1}


def test_arrays_in_class_folders_have_the_classes_of_a_folder(tmp_path: Path) -> None:
    """Only arrays in no folder are samples, whose labels are in `.cls`."""
    array = io.BytesIO()
    np.save(array, np.full((3, 8, 8), 9, np.uint8))
    files = {"./cat/1.npy": array.getvalue(), "./dog/1.npy": array.getvalue()}
    assert open_source(write_tar(tmp_path / "x.tar", files)).class_names == ("cat", "dog")


def test_an_array_beside_images_is_something_else(tmp_path: Path) -> None:
    """Such as their mean: the images have the classes of their folders."""
    files = {"cat/1.png": png(), "dog/1.png": png(), "mean.npy": b"an array"}
    source = open_source(write_tar(tmp_path / "x.tar", files))
    assert (source.class_names, source.other_files) == (("cat", "dog"), {".npy": 1})


def test_names_in_a_tar_may_begin_with_a_dot(tmp_path: Path) -> None:
    """As `tar cf x.tar -C folder .` writes them; a file of labels names them with it or without."""
    (tmp_path / "labels.csv").write_text("1.png,red\n./2.png,blue\n")
    tar = write_tar(tmp_path / "x.tar", {"./1.png": png(), "./2.png": png()})
    source = open_source(tar, label_file=tmp_path / "labels.csv")
    assert source.class_names == ("blue", "red")


def test_webdataset_samples_need_not_be_adjacent(tmp_path: Path) -> None:
    """The members of a sample find each other by key; npy in either layout is an image."""
    chw = io.BytesIO()
    np.save(chw, np.full((3, 8, 8), 9, np.uint8))
    files = {
        "a.cls": b"0",
        "b.cls": b"1",
        "a.left.jpg": b"x",
        "b.npy": chw.getvalue(),
        "a.jpg": png(3),
    }
    source = open_source(write_tar(tmp_path / "x.tar", files))
    assert [value(source, item) for item in range(2)] == [3, 9]
    assert source.labels is not None
    assert source.labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.jpg": b"", "a.png": b"", "a.cls": b"0"}, "images of a sample"),
        ({"a.jpg": b"", "a.cls": b"cat"}, "class number"),
        ({"a.jpg": b"", "a.cls": b"9" * 30}, "class number"),
        ({"a.pyd": b"cbuiltins\neval\n(S'1/0'\ntR.", "a.cls": b"0"}, "no image"),
    ],
)
def test_webdataset_samples_that_will_not_do(
    files: dict[str, bytes], message: str, tmp_path: Path
) -> None:
    """Two images per sample, a class that is no number, or pickled fields alone are refused."""
    with pytest.raises(ShardError, match=message):
        open_source(write_tar(tmp_path / "x.tar", files))
