"""Sources: folders, archives, foreign WebDataset shards, and the words."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from shards.errors import ShardError
from shards.files import cache_folder
from shards.images import decode_image
from shards.pack import pack
from shards.sources.registry import open_source
from shards.sources.source import Skipped

MakeImages = Callable[..., Path]


def png(value: int = 0, size: int = 8) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (size, size), (value, value, value)).save(file, "PNG")
    return file.getvalue()


def write_tar(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def write_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def write_folder(path: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


WRITERS = {"folder": write_folder, "images.tar": write_tar, "images.zip": write_zip}


def value(source: object, item: int) -> int:
    return int(decode_image(source.read(item), size=8, channels=1)[0, 0, 0])  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", WRITERS)
def test_folders_and_archives_are_alike(kind: str, tmp_path: Path) -> None:
    """A folder, a tar and a zip of the same files give the same names, labels, images and digest."""
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
        "2.TIF": b"x",
        "3.tif": b"x",
        "4.heic": b"x",
        "._3.tif": b"x",
        "readme.txt": b"hello",
    }
    source = open_source(WRITERS[kind](tmp_path / kind, files))
    assert list(source.names) == ["1.png"]
    assert caplog.messages == [
        "left out 3: .tif files are not read (2), .heic files are not read (1); the first is 2.TIF"
    ]
    assert [skipped.name for skipped in source.skipped] == ["2.TIF", "3.tif", "4.heic"]
    assert source.other_files == {".tif": 3, ".heic": 1, ".txt": 1}


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


@pytest.mark.parametrize("kind", ["images.tar", "images.zip"])
def test_hostile_names_are_only_names(kind: str, tmp_path: Path) -> None:
    """Members named to climb out of a folder are read like others and touch no path; control characters are shown."""
    victim = tmp_path / "victim.png"
    names = ["../victim.png", str(victim), "a/../../victim.png", "esc\x1b[2J.png"]
    source = open_source(
        WRITERS[kind](
            tmp_path / "in" / kind if kind == "images.tar" else tmp_path / kind,
            dict.fromkeys(names, png(7)),
        ),
        with_labels=False,
    )
    assert len(source) == 4
    assert all(value(source, item) == 7 for item in range(4))
    assert all(name.isprintable() for name in source.names)
    assert not victim.exists()


def test_links_and_sparse_members_of_tars_are_named(tmp_path: Path) -> None:
    """What is no range of bytes in the tar is skipped with its reason, and nothing is followed."""
    path = write_tar(tmp_path / "x.tar", {"a.png": png()})
    kinds = {
        tarfile.SYMTYPE: "symbolic link",
        tarfile.LNKTYPE: "hard link to a file that is not in the archive",
        tarfile.FIFOTYPE: "not a regular file",
        tarfile.GNUTYPE_SPARSE: "sparse file",
    }
    with tarfile.open(path, "a", format=tarfile.GNU_FORMAT) as tar:
        for number, kind in enumerate(kinds):
            member = tarfile.TarInfo(f"{number}.png")
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
        link = tarfile.TarInfo("readme")
        link.type, link.linkname = tarfile.SYMTYPE, "elsewhere"
        tar.addfile(link)
    source = open_source(path)
    assert len(source) == 1
    skipped = [Skipped(f"{number}.png", reason) for number, reason in enumerate(kinds.values())]
    assert list(source.skipped) == skipped


def test_hard_links_in_tars_are_the_file(tmp_path: Path) -> None:
    """`tar` stores the second name of a file as a link to the first."""
    write_folder(tmp_path, {"a/1.png": png(5)})
    (tmp_path / "b").mkdir()
    os.link(tmp_path / "a" / "1.png", tmp_path / "b" / "2.png")
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name in ("a/1.png", "b/2.png"):
            tar.add(tmp_path / name, name)
        assert tar.getmember("b/2.png").islnk()
    source = open_source(tmp_path / "x.tar")
    assert [value(source, item) for item in range(len(source))] == [5, 5]
    assert source.class_names == ("a", "b")


def test_concatenated_tars_are_read_to_the_last(tmp_path: Path) -> None:
    """`cat a.tar b.tar` leaves zeros between two archives; the second must not be lost."""
    parts = [
        write_tar(tmp_path / f"{number}.tar", {f"{number}.png": png(number)}).read_bytes()
        for number in range(3)
    ]
    path = tmp_path / "all.tar"
    path.write_bytes(b"".join(parts))
    source = open_source(path)
    assert [value(source, item) for item in range(len(source))] == [0, 1, 2]
    path.write_bytes(parts[0] + parts[1][:300])
    with pytest.raises(ShardError, match="not a whole tar"):
        open_source(path)


def test_members_of_one_name_are_all_packed(tmp_path: Path) -> None:
    """Two members of an archive may have one name; neither hides the other."""
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a.png", png(3))
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("a.png", png(4))
    source = open_source(tmp_path / "x.zip")
    assert [value(source, item) for item in range(len(source))] == [3, 4]


def test_a_tar_that_ends_in_a_zip_is_a_tar(tmp_path: Path) -> None:
    """The end of a zip is also the end of a tar whose last member it is."""
    data = write_zip(tmp_path / "x.zip", {"inside.png": png(1)}).read_bytes()
    path = write_tar(tmp_path / "x.tar", {"a.png": png(2), "b.zip": data})
    assert list(open_source(path).names) == ["a.png"]


def test_linked_folders_are_followed_and_loops_are_not(tmp_path: Path) -> None:
    """Class folders may be links; a link to a folder above is not followed."""
    write_folder(tmp_path / "real", {"1.png": png()})
    write_folder(tmp_path / "images", {"b/2.png": png()})
    os.symlink(tmp_path / "real", tmp_path / "images" / "a")
    os.symlink(tmp_path / "images", tmp_path / "images" / "b" / "loop")
    assert list(open_source(tmp_path / "images").names) == ["a/1.png", "b/2.png"]


def test_each_folder_is_packed_once(tmp_path: Path) -> None:
    """A class folder that is a link to another class is skipped, in favour of the real one."""
    write_folder(tmp_path, {"images/b/1.png": png(), "images/c/2.png": png(), "far/3.png": png()})
    for link, target in (("a", "images/b"), ("d", "far"), ("e", "far")):
        os.symlink(tmp_path / target, tmp_path / "images" / link)
    os.symlink("nowhere", tmp_path / "images" / "b" / "x.png")
    source = open_source(tmp_path / "images")
    assert list(source.names) == ["b/1.png", "c/2.png", "d/3.png"]
    expected = [
        Skipped("a", "same folder as b"),
        Skipped("b/x.png", "broken link"),
        Skipped("e", "same folder as d"),
    ]
    assert list(source.skipped) == expected


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_compressed_tars_are_refused_with_a_remedy(mode: str, tmp_path: Path) -> None:
    """A compressed tar cannot be read in place; the message says what to type."""
    path = write_tar(tmp_path / "x.tar", {"a.png": png()}, mode)
    with pytest.raises(ShardError, match=r"compressed.*type `"):
        open_source(path)


def test_truncated_tars_are_refused(tmp_path: Path) -> None:
    """Wherever a tar is cut inside a member or a header, it is refused instead of being read short."""
    whole = write_tar(tmp_path / "x.tar", {f"{i}.png": png(i) for i in range(3)}).read_bytes()
    stride = 512 + -(-len(png()) // 512) * 512
    for cut in (1, 100, 511, 513, stride - 300 + 200, stride + 10, stride + 511, 2 * stride + 513):
        (tmp_path / "cut.tar").write_bytes(whole[:cut])
        with pytest.raises(ShardError, match="not a whole tar"):
            open_source(tmp_path / "cut.tar")
    garbage = whole[:stride] + b"\xff" * 512 + whole[stride + 512 :]
    (tmp_path / "cut.tar").write_bytes(garbage)
    with pytest.raises(ShardError, match="not a whole tar"):
        open_source(tmp_path / "cut.tar")


def test_damaged_and_encrypted_zips_are_refused(tmp_path: Path) -> None:
    """A zip that is none, or that needs a password, is refused."""
    data = bytearray(write_zip(tmp_path / "x.zip", {"a.png": png()}).read_bytes())
    (tmp_path / "cut.zip").write_bytes(data[:-30])
    with pytest.raises(ShardError, match="damaged"):
        open_source(tmp_path / "cut.zip")
    data[data.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "locked.zip").write_bytes(data)
    with pytest.raises(ShardError, match="encrypted"):
        open_source(tmp_path / "locked.zip")


def test_foreign_webdataset_shards(tmp_path: Path) -> None:
    """Samples that webdataset wrote give their image by extension and their label from `.cls`; the rest is ignored."""
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
    """Two images in a sample, a class that is no number, or only fields that would be executed end in one line."""
    with pytest.raises(ShardError, match=message):
        open_source(write_tar(tmp_path / "x.tar", files))


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


def test_splits_and_roots_belong_to_words(make_images: MakeImages, tmp_path: Path) -> None:
    """`split` and `root` are refused where they would mean nothing."""
    for options in ({"split": "test"}, {"root": tmp_path}, {"split": "val"}):
        with pytest.raises(ShardError, match="split"):
            open_source(make_images(2), **options)  # type: ignore[arg-type]
    for options in ({"split": "test"}, {"root": tmp_path}):
        with pytest.raises(ShardError, match="leave out"):
            open_source("digits", **options)  # type: ignore[arg-type]


def test_digits() -> None:
    """The embedded digits are all there, in their ten classes."""
    source = open_source("digits")
    assert len(source) == 1797
    assert (source.default_size, source.default_channels) == (32, 1)
    assert source.labels is not None
    assert len(np.unique(source.labels)) == 10
    assert (
        max(decode_image(source.read(item), size=8, channels=1).max() for item in range(10)) == 255
    )


def idx(array: np.ndarray) -> bytes:
    dimensions = b"".join(side.to_bytes(4, "big") for side in array.shape)
    return gzip.compress(bytes([0, 0, 8, array.ndim]) + dimensions + array.tobytes())


@pytest.mark.parametrize("place", ["", "raw", "MNIST/raw"])
def test_mnist_from_official_files(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MNIST is read from wherever torchvision puts its files, once their md5 has matched."""
    from torchvision.datasets import MNIST

    images = np.arange(2 * 28 * 28).reshape(2, 28, 28).astype(np.uint8)
    files = {
        "t10k-images-idx3-ubyte.gz": idx(images),
        "t10k-labels-idx1-ubyte.gz": idx(np.array([3, 8], np.uint8)),
    }
    monkeypatch.setattr(
        MNIST, "resources", [(name, hashlib.md5(data).hexdigest()) for name, data in files.items()]
    )
    folder = write_folder(tmp_path / place, files)
    source = open_source("mnist", split="test", root=tmp_path)
    assert np.array_equal(decode_image(source.read(1), size=28, channels=1)[0], images[1])
    assert source.labels is not None
    assert source.labels.tolist() == [3, 8]
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(b"damaged")
    with pytest.raises(ShardError, match="not the official file"):
        open_source("mnist", split="test", root=tmp_path)


class Canary:
    """Unpickling it leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (self.path, "w")


@pytest.mark.parametrize("archived", [False, True])
def test_cifar_is_unpickled_only_after_its_md5(
    archived: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The official batches are read from a folder or the archive; a file with another md5 is never unpickled."""
    from torchvision.datasets import CIFAR10

    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32), dtype=np.uint8)
    files = {
        "test_batch": pickle.dumps({"data": pixels.reshape(2, -1), "labels": [1, 0]}),
        "batches.meta": pickle.dumps({"label_names": ["cat", "dog"]}),
    }
    md5s = {name: hashlib.md5(data).hexdigest() for name, data in files.items()}
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", md5s["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": md5s["batches.meta"]})
    inside = {f"cifar-10-batches-py/{name}": data for name, data in files.items()}
    if archived:
        archive = write_tar(tmp_path / "cifar-10-python.tar.gz", inside, "w:gz")
        monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    else:
        write_folder(tmp_path, inside)
    source = open_source("cifar10", split="test", root=tmp_path)
    assert source.class_names == ("cat", "dog")
    assert np.array_equal(decode_image(source.read(0), size=32, channels=3), pixels[0])
    canary = tmp_path / "canary"
    evil = {name: pickle.dumps(Canary(canary)) for name in inside}
    _ = (
        write_tar(tmp_path / "cifar-10-python.tar.gz", evil, "w:gz")
        if archived
        else write_folder(tmp_path, evil)
    )
    with pytest.raises(ShardError, match="not the official file"):
        open_source("cifar10", split="test", root=tmp_path)
    assert not canary.exists()


def test_a_root_without_the_files_says_so(tmp_path: Path) -> None:
    """With `root` nothing is downloaded."""
    for word in ("mnist", "cifar10"):
        with pytest.raises(ShardError, match="holds no"):
            open_source(word, root=tmp_path)


def test_the_cache_is_where_the_user_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """DISTGAN_CACHE goes before the user's cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("DISTGAN_CACHE", raising=False)
    assert cache_folder() == tmp_path / "distgan"
    monkeypatch.setenv("DISTGAN_CACHE", "/elsewhere")
    assert cache_folder() == Path("/elsewhere")
