"""Packing: the same bytes always, nothing lost, nothing overwritten."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from PIL import Image

from shards import pack as pack_module
from shards.errors import ShardError
from shards.files import locked
from shards.format.index import read_index
from shards.format.raw import RawLayout
from shards.pack import pack
from shards.reader import ShardReader
from shards.sources.registry import open_source
from shards.verify import verify
from tests.shards.test_sources import WRITERS, png

MakeImages = Callable[..., Path]

ROOT = Path(__file__).parents[2]
WRITER_OF = {"folder": "folder", "tar": "images.tar", "zip": "images.zip"}


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its name."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


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


KILLED = """
import os, signal, sys
from shards.pack import pack
def progress(done, total):
    if done >= int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
if __name__ == "__main__":
    options = {"workers": int(sys.argv[4]), "encoding": sys.argv[5]}
    pack(sys.argv[1], sys.argv[2], size=32, shard_size_mb=1, progress=progress, **options)
"""


@pytest.mark.parametrize(("workers", "encoding"), [(1, "raw"), (2, "raw"), (2, "jpeg")])
def test_a_killed_pack_goes_on(
    make_images: MakeImages, tmp_path: Path, workers: int, encoding: Any
) -> None:
    """A pack killed in its second shard keeps the first, leaves no process behind, and ends with the same bytes."""
    images, script = make_images(600, size=32), tmp_path / "killed.py"
    pack(images, tmp_path / "whole", size=32, shard_size_mb=1, workers=1, encoding=encoding)
    script.write_text(KILLED)
    out = tmp_path / "out"
    command = [sys.executable, str(script), str(images), str(out), "300", str(workers), encoding]
    killed = subprocess.Popen(
        command, env=os.environ | {"PYTHONPATH": str(ROOT)}, start_new_session=True
    )
    assert killed.wait() == -signal.SIGKILL
    deadline = time.monotonic() + 10
    while _group_lives(killed.pid):
        assert time.monotonic() < deadline, "a worker outlived its pack"
        time.sleep(0.05)
    with pytest.raises(ShardError, match="unfinished pack"):
        read_index(out)
    assert (out / "000000.tar").exists()
    first = (out / "000000.tar").stat().st_ino
    seen: list[tuple[int, int]] = []
    options: dict[str, Any] = {"workers": 1, "encoding": encoding}
    pack(
        images,
        out,
        size=32,
        shard_size_mb=1,
        progress=lambda *counts: seen.append(counts),
        **options,
    )
    assert seen[0][0] >= 204
    assert seen[-1] == (600, 600)
    assert (out / "000000.tar").stat().st_ino == first
    assert contents(out) == contents(tmp_path / "whole")


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("damage", ["shard", "record", "missing"])
def test_resuming_trusts_nothing(make_images: MakeImages, tmp_path: Path, damage: str) -> None:
    """A finished shard that was damaged since, or whose record was, is packed again."""
    images, out = make_images(300, size=32), tmp_path / "out"

    def stop(done: int, total: int) -> None:
        if done == total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(images, out, size=32, shard_size_mb=1, workers=1, progress=stop)
    if damage == "shard":
        flip(out / "000000.tar", 5000)
    elif damage == "record":
        (out / ".packing" / "000000.json").write_text('[{"file": 3}, []]')
    else:
        (out / "000000.tar").unlink()
    pack(images, out, size=32, shard_size_mb=1)
    pack(images, tmp_path / "whole", size=32, shard_size_mb=1)
    assert contents(out) == contents(tmp_path / "whole")


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


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


def overwrite(path: Path) -> None:
    """Replace an image by another of the same length, as the user's next export would."""
    data = path.read_bytes()
    image = Image.open(path)
    flipped = io.BytesIO()
    Image.fromarray(255 - np.asarray(image)).save(flipped, "PNG")
    other = flipped.getvalue()
    assert len(other) <= len(data) + 200
    status = path.stat()
    path.write_bytes(other[: len(data)].ljust(len(data), b"\0"))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # not even the time tells


def test_images_overwritten_after_a_kill_are_packed_again(
    make_images: MakeImages, tmp_path: Path
) -> None:
    """A resumed pack mixes no old pixels with new ones, even if names, sizes and times are equal."""
    images, out = make_images(300, size=32), tmp_path / "out"

    def stop(done: int, total: int) -> None:
        if done == total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(images, out, size=32, shard_size_mb=1, workers=1, progress=stop)
    assert (out / "000000.tar").exists()
    for path in images.rglob("*.png"):
        overwrite(path)
    pack(images, out, size=32, shard_size_mb=1, workers=1)
    pack(images, tmp_path / "whole", size=32, shard_size_mb=1, workers=1)
    assert contents(out) == contents(tmp_path / "whole")


@pytest.mark.parametrize("kind", ["folder", "tar", "zip"])
def test_a_changed_source_is_not_taken_for_the_packed_one(
    make_images: MakeImages, tmp_path: Path, kind: str
) -> None:
    """A finished dataset is returned for the same files, also copied, and refused once one differs."""
    images, out = make_images(20), tmp_path / "out"
    source = images

    def store() -> None:
        if kind == "tar":
            subprocess.run(["tar", "cf", str(source), "-C", str(images), "a", "b"], check=True)
        elif kind == "zip":
            with zipfile.ZipFile(source, "w") as archive:
                for path in sorted(images.rglob("*.png")):
                    archive.write(path, path.relative_to(images))

    if kind != "folder":
        source = tmp_path / f"images.{kind}"
    store()
    index = pack(source, out, size=16)
    assert read_index(out).source_sha256 is not None
    if kind == "folder":
        source = Path(shutil.copytree(images, tmp_path / "copy"))
    else:
        store()
    assert pack(source, out, size=16) == index
    overwrite((source if kind == "folder" else images) / "a" / "0004.png")
    store()
    before = contents(out)
    with pytest.raises(ShardError, match="before files of the source were changed"):
        pack(source, out, size=16)
    assert contents(out) == before


def test_a_dataset_without_a_record_of_its_source_is_still_returned(
    make_images: MakeImages, tmp_path: Path
) -> None:
    """Indices of earlier versions lack `source_sha256`."""
    images, out = make_images(20), tmp_path / "out"
    index = pack(images, out, size=16)
    fields = json.loads((out / "index.json").read_text())
    del fields["source_sha256"]
    (out / "index.json").write_text(json.dumps(fields))
    assert pack(images, out, size=16).fingerprint == index.fingerprint


@pytest.mark.parametrize("kind", ["folder", "tar", "zip"])
def test_a_file_changed_while_packing_ends_the_pack(tmp_path: Path, kind: str) -> None:
    """What is truncated between listing and reading is no broken image to be skipped."""
    files = {f"{number}.png": png(number) for number in range(4)}
    path = WRITERS[WRITER_OF[kind]](tmp_path / WRITER_OF[kind], files)
    source = open_source(path)
    victim = path / "2.png" if kind == "folder" else path
    os.truncate(victim, victim.stat().st_size - 20)
    with pytest.raises(ShardError, match="was changed while it was packed"):
        pack(source, tmp_path / "out", bad_images="skip", workers=1)


def test_only_broken_images_are_no_dataset(tmp_path: Path) -> None:
    """When every image is broken there is nothing to pack."""
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"broken")
    with pytest.raises(ShardError, match="all 1 images are broken"):
        pack(tmp_path / "images", tmp_path / "out", bad_images="skip")


def test_nothing_is_overwritten(make_images: MakeImages, tmp_path: Path) -> None:
    """Another dataset, an unfinished one and a folder of something else stay as they are; the same is returned."""
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


def test_two_packs_at_once(make_images: MakeImages, tmp_path: Path) -> None:
    """The second pack into one folder is refused while the first one runs."""
    images, out, refused = make_images(10), tmp_path / "out", []

    def meanwhile(done: int, total: int) -> None:
        with pytest.raises(ShardError, match="another pack is writing"):
            pack(images, out, size=16)
        refused.append(done)

    pack(images, out, size=16, progress=meanwhile)
    assert refused
    assert verify(out) == []


def test_a_lock_that_was_removed_is_made_anew(tmp_path: Path) -> None:
    """A lock file that its holder removes does not lock out the next."""
    for _ in range(2):
        with locked(tmp_path / "work" / "lock", busy="busy"):
            shutil.rmtree(tmp_path / "work")


def test_a_pack_killed_after_its_index_leaves_nothing_behind(
    make_images: MakeImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the index and the end: the shards are whole, and the same command clears its work folder away."""
    images, out = make_images(30, size=32), tmp_path / "out"

    def die(*_: object, **__: object) -> None:
        raise SystemExit

    with monkeypatch.context() as patched:
        patched.setattr("shards.pack.shutil.rmtree", die)
        with pytest.raises(SystemExit):
            pack(images, out, size=32, workers=1)
    assert (out / ".packing").exists()
    pack(images, out, size=32, workers=1)
    pack(images, tmp_path / "whole", size=32, workers=1)
    assert {path.name for path in out.iterdir()} == {
        path.name for path in (tmp_path / "whole").iterdir()
    }


def test_a_full_disk_is_one_line_and_the_pack_goes_on(
    make_images: MakeImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ENOSPC anywhere says so; with space again the same command ends with the same bytes."""
    images, out = make_images(300, size=32), tmp_path / "out"
    pack(images, tmp_path / "whole", size=32, shard_size_mb=1, workers=1)
    pwrite, num_bytes = os.pwrite, 0

    def full(handle: int, data: bytes, offset: int) -> int:
        nonlocal num_bytes
        num_bytes += len(data)
        if num_bytes > 1_200_000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwrite(handle, data[:100_000], offset)  # a short write, as before a disk is full

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(ShardError, match="disk is full"):
            pack(images, out, size=32, shard_size_mb=1, workers=1)
    pack(images, out, size=32, shard_size_mb=1, workers=1)
    assert contents(out) == contents(tmp_path / "whole")


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

    monkeypatch.setattr(pack_module, "write_atomic", denied)
    with pytest.raises(ShardError, match="no permission"):
        pack(images, tmp_path / "out")


@pytest.mark.parametrize(
    "options",
    [{"size": 0}, {"channels": 2}, {"shard_size_mb": 0}, {"workers": 0}, {"bad_images": "x"}],
)
def test_settings_that_cannot_be(
    make_images: MakeImages, tmp_path: Path, options: dict[str, int]
) -> None:
    """A setting out of range is named with its value and touches nothing."""
    with pytest.raises(ShardError, match="is not possible: give"):
        pack(make_images(2), tmp_path / "out", **options)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_an_unreadable_image_names_itself(make_images: MakeImages, tmp_path: Path) -> None:
    """A file that vanishes while packing is no broken image: the pack stops even when those are skipped."""
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
