"""Sources: folders and archives with and without classes."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from shards.errors import ShardError
from shards.pack import pack
from shards.sources.registry import open_source
from tests.shards.images import WRITERS, png, value, write_folder


@pytest.mark.parametrize("kind", WRITERS)
def test_folders_and_archives_are_alike(kind: str, tmp_path: Path) -> None:
    """Folder, tar and zip of the same files give the same names, labels, images and digest."""
    files = {
        "top/b/2.PNG": png(2),
        "top/a/deep/1.png": png(1),
        "top/b/0.webp": png(0),
        "top/readme.txt": b"hello",
    }
    files |= {"top/b/._0.webp": b"junk", "__MACOSX/top/x.png": b"junk"}
    source = open_source(WRITERS[kind](tmp_path / kind, files))
    assert list(source.names) == ["top/a/deep/1.png", "top/b/0.webp", "top/b/2.PNG"]
    assert source.class_names == ("a", "b")
    assert source.labels is not None
    assert source.labels.tolist() == [0, 1, 1]
    assert [value(source, item) for item in range(3)] == [1, 0, 2]
    assert source.other_files.total() == 3
    again = pickle.loads(pickle.dumps(source))
    assert [value(again, item) for item in range(3)] == [1, 0, 2]
    assert source.digest == open_source(write_folder(tmp_path / "same", files)).digest


@pytest.mark.parametrize("kind", WRITERS)
def test_images_of_other_formats_are_not_left_out_in_silence(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A warning counts them by format; they are listed, and other files are only counted."""
    files = {
        "1.png": png(),
        "2.HEIF": b"x",
        "3.heif": b"x",
        "4.heic": b"x",
        "._3.heif": b"x",
        "readme.txt": b"hello",
    }
    source = open_source(WRITERS[kind](tmp_path / kind, files))
    assert list(source.names) == ["1.png"]
    assert caplog.messages == [
        "left out 3: .heif files are not read (2), .heic files are not read (1); "
        "the first is 2.HEIF"
    ]
    assert [skipped.name for skipped in source.skipped] == ["2.HEIF", "3.heif", "4.heic"]
    assert source.other_files == {".heif": 3, ".heic": 1, ".txt": 1}


@pytest.mark.parametrize(
    "names",
    [["1.png", "2.png"], ["a/1.png", "a/2.png"], ["a/1.png", "2.png"], ["a/1.png"]],
)
def test_labels_need_classes(names: list[str], tmp_path: Path) -> None:
    """There are labels only if there are at least two class folders."""
    source = open_source(write_folder(tmp_path / "images", dict.fromkeys(names, png())))
    assert source.labels is None
    assert source.class_names is None


@pytest.mark.parametrize("kind", WRITERS)
def test_images_beside_class_folders_are_an_error(kind: str, tmp_path: Path) -> None:
    """Their classes are unknown; without labels all images are packed."""
    files = {name: png(number) for number, name in enumerate(("a/1.png", "b/2.png", "3.png"))}
    path = WRITERS[kind](tmp_path / kind, files)
    with pytest.raises(ShardError, match=r"3\.png is in no class folder.*--labels ignore"):
        open_source(path)
    source = open_source(path, with_labels=False)
    assert len(source) == 3
    assert source.labels is None
    index = pack(path, tmp_path / "out", size=8, labels="ignore")
    assert index.num_samples == 3
    assert index.class_names is None


@pytest.mark.parametrize("kind", WRITERS)
def test_backslashes_separate_folders(kind: str, tmp_path: Path) -> None:
    """Archives made on Windows, and what is unpacked from them, keep their classes."""
    names = ["top\\b\\2.png", "top\\a\\1.png", "top\\a\\._1.png"]
    source = open_source(WRITERS[kind](tmp_path / kind, dict.fromkeys(names, png())))
    assert source.class_names == ("a", "b")
    assert source.labels is not None
    assert source.labels.tolist() == [0, 1]


def test_other_names_or_sizes_are_another_digest(tmp_path: Path) -> None:
    """A file that comes, goes, changes its name or its size changes the digest."""
    variants = [
        {"a.png": png()},
        {"b.png": png()},
        {"a.png": png(), "b.png": png()},
        {"a.png": png(size=99)},
    ]
    digests = [
        open_source(write_folder(tmp_path / str(i), files)).digest
        for i, files in enumerate(variants)
    ]
    assert len(set(digests)) == len(variants)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("no/such/folder", "no file or folder"),
        ("digit", "did you mean digits"),
        ("empty", "no image in empty"),
        ("texts", r"no image in texts \(1 other"),
        ("one.png", "neither a folder nor an archive"),
        ("/dev/null", "neither a folder nor an archive"),
        ("random.tar", "not a whole tar"),
    ],
)
def test_what_is_no_source(
    source: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What holds no image says so, and what to give instead."""
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    write_folder(Path("texts"), {"a.txt": b"hello"})
    Path("one.png").write_bytes(png())
    Path("random.tar").write_bytes(np.random.default_rng(0).bytes(3000))
    with pytest.raises(ShardError, match=message):
        open_source(source)
