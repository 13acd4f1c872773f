"""Packing: the same bytes always, nothing lost, nothing overwritten."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from shards import output
from shards.errors import ShardError
from shards.format.index import read_index
from shards.format.raw import RawLayout
from shards.pack import pack
from shards.reader import ShardReader
from shards.sources.registry import open_source
from shards.verify import verify

MakeImages = Callable[..., Path]

ROOT = Path(__file__).parents[2]
from tests.shards.images import contents


@pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)  # of its own
@pytest.mark.parametrize("cls", [True, False])
def test_stock_webdataset_reads_it(make_images: MakeImages, tmp_path: Path, cls: bool) -> None:
    """`webdataset` decodes images and labels of our shards, which are those of the files."""
    images = make_images(30, size=32)
    index = pack(images, tmp_path / "out", size=32, cls=cls)
    urls = [str(index.path / shard.file) for shard in index.shards]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
    found = sorted((sample["npy"].tobytes(), sample.get("cls")) for sample in samples)
    files = sorted(images.rglob("*.png"))
    expected = [np.asarray(Image.open(file)).transpose(2, 0, 1).tobytes() for file in files]
    labels = [ord(file.parent.name) - ord("a") if cls else None for file in files]
    assert found == sorted(zip(expected, labels, strict=True))
    assert all(sample["npy"].shape == (3, 32, 32) for sample in samples)


def test_headers_are_those_of_tarfile() -> None:
    """Our vectorised headers equal what the standard library writes."""
    layout = RawLayout((1, 4, 4), cls=True)
    keys = np.array([0, 7, 123_456_789, 999_999_999])
    rows = layout.blank(keys, np.array([0, 9, 10, 12_345], np.int32))
    for row, key, label in zip(rows, keys, (b"0", b"9", b"10", b"12345"), strict=True):
        for offset, extension, size in ((0, "npy", 144), (1024, "cls", len(label))):
            member = tarfile.TarInfo(f"{key:09d}.{extension}")
            member.size = size
            assert row[offset : offset + 512].tobytes() == member.tobuf(tarfile.USTAR_FORMAT)
        assert row[1536:].tobytes().rstrip(b"\0") == label


def test_the_same_bytes_from_any_number_of_workers(make_images: MakeImages, tmp_path: Path) -> None:
    """One process, three processes, another folder and another day give the same files."""
    images = make_images(300, size=24)
    pack(images, tmp_path / "one", size=32, shard_size_mb=1, workers=1)
    shutil.move(images, tmp_path / "moved")
    for file in (tmp_path / "moved").rglob("*.png"):
        os.utime(file, (0, 0))
    pack(tmp_path / "moved", tmp_path / "three", size=32, shard_size_mb=1, workers=3)
    assert contents(tmp_path / "one") == contents(tmp_path / "three")
    assert str(tmp_path) not in (tmp_path / "one" / "index.json").read_text()


def test_sorted_sources_are_mixed(make_images: MakeImages, tmp_path: Path) -> None:
    """Classes that lie one after another in the source are spread over the shards."""
    index = pack(make_images(400, size=32), tmp_path / "out", size=32, shard_size_mb=1, workers=1)
    labels = ShardReader(index).labels(np.arange(index.num_samples))
    assert len(index.shards) == 2
    for half in np.split(labels[:400], 4):
        assert 0.3 < half.mean() < 0.7
    assert index.class_counts == (200, 200)


def test_a_broken_image_stops_the_pack(make_images: MakeImages, tmp_path: Path) -> None:
    """The message names the image and both remedies; the first remedy goes on from there."""
    images, out = make_images(300, size=32), tmp_path / "out"
    (images / "a" / "0100.png").write_bytes(b"broken")
    (images / "b" / "0299.png").write_bytes((images / "b" / "0299.png").read_bytes()[:300])
    with pytest.raises(ShardError, match=r"broken image ./0\d+.png.*--bad-images skip.*repair"):
        pack(images, out, size=32, shard_size_mb=1)
    index = pack(images, out, size=32, shard_size_mb=1, bad_images="skip")
    assert (index.num_samples, index.num_rejected) == (298, 2)
    assert index.class_counts == (149, 149)
    rejected = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    assert {line["name"] for line in rejected} == {"a/0100.png", "b/0299.png"}
    assert all(line["reason"] for line in rejected)
    assert verify(out) == []
    reader = ShardReader(index)
    found = sorted(image.tobytes() for image in reader.gather(np.arange(298)))
    whole = [file for file in images.rglob("*.png") if file.name not in ("0100.png", "0299.png")]
    assert found == sorted(
        np.asarray(Image.open(file)).transpose(2, 0, 1).tobytes() for file in whole
    )
    assert pack(images, out, size=32, shard_size_mb=1, bad_images="skip") == index
    with pytest.raises(ShardError, match="without 2 broken"):
        pack(images, out, size=32, shard_size_mb=1)
    again = pack(images, tmp_path / "again", size=32, shard_size_mb=1, bad_images="skip", workers=2)
    assert contents(again.path) == contents(out)


def test_only_broken_images_are_no_dataset(tmp_path: Path) -> None:
    """When every image is broken there is nothing to pack."""
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"broken")
    with pytest.raises(ShardError, match="all 1 images are broken"):
        pack(tmp_path / "images", tmp_path / "out", bad_images="skip")


def test_nothing_is_overwritten(make_images: MakeImages, tmp_path: Path) -> None:
    """Only the same dataset is returned; other datasets, unfinished packs and files are kept."""
    images, others, out = make_images(20), make_images(30, name="others"), tmp_path / "out"
    index = pack(images, out, size=16)
    before = contents(out)
    assert pack(images, out, size=16) == index
    for source, options in (
        (others, {"size": 16}),
        (images, {"size": 8}),
        (images, {"size": 16, "cls": False}),
    ):
        with pytest.raises(ShardError, match="holds another dataset"):
            pack(source, out, **options)  # type: ignore[arg-type]
    assert contents(out) == before
    (images / "a" / "0000.png").write_bytes(b"broken")
    with pytest.raises(ShardError, match="broken image"):
        pack(images, tmp_path / "unfinished", size=16)
    with pytest.raises(ShardError, match="unfinished pack of other images"):
        pack(others, tmp_path / "unfinished", size=16)
    with pytest.raises(ShardError, match="not empty"):
        pack(others, images)


def test_a_folder_that_cannot_be_written(
    make_images: MakeImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No permission, or a file in the way, is one line."""
    images = make_images(4)
    (tmp_path / "file").write_text("in the way")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ShardError, match="a file stands"):
            pack(images, out)

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(output, "write_atomic", denied)
    with pytest.raises(ShardError, match="no permission"):
        pack(images, tmp_path / "out")


@pytest.mark.parametrize(
    "options",
    [
        {"size": 0},
        {"channels": 17},
        {"bits": 12},
        {"shard_size_mb": 0},
        {"workers": 0},
        {"bad_images": "x"},
    ],
)
def test_settings_that_cannot_be(
    make_images: MakeImages, tmp_path: Path, options: dict[str, int]
) -> None:
    """A setting out of range is named with its value and touches nothing."""
    with pytest.raises(ShardError, match="is not possible: give"):
        pack(make_images(2), tmp_path / "out", **options)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_an_unreadable_image_names_itself(make_images: MakeImages, tmp_path: Path) -> None:
    """A file that vanishes while packing stops the pack, even if broken images are skipped."""
    images = make_images(4)
    gone = images / "a" / "gone.png"
    gone.write_bytes(b"x")
    source = open_source(images)
    gone.unlink()
    with pytest.raises(ShardError, match=r"cannot read a/gone.png \(No such file"):
        pack(source, tmp_path / "out", bad_images="skip")


def test_digits_pack_and_read_back(tmp_path: Path) -> None:
    """The embedded dataset is 1,797 grey images of 32x32 in ten classes."""
    index = pack("digits", tmp_path / "digits")
    assert index.image_shape == (1, 32, 32)
    assert sum(index.class_counts or ()) == index.num_samples == 1797
    assert verify(index.path) == []
    assert read_index(index.path) == index
    assert read_index(index.path).fingerprint == index.fingerprint


def test_packed_shards_are_a_source(packed: object, tmp_path: Path) -> None:
    """Packed shards can be packed again, at another size."""
    again = pack(packed.path, tmp_path / "again", size=16)  # type: ignore[attr-defined]
    assert again.image_shape == (3, 16, 16)
    assert again.class_counts == packed.class_counts  # type: ignore[attr-defined]


def test_imports_are_light() -> None:
    """Worker processes and `--help` load neither torch nor scikit-learn with the data plane."""
    heavy = "{'torch', 'torchvision', 'sklearn', 'webdataset'}"
    script = (
        f"import sys, shards.pack, shards.verify, shards.reader; print({heavy} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"
