"""Repeated packs: after a kill, a full disk, or a change of the source."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shards.errors import ShardError
from shards.files import locked
from shards.format.index import read_index
from shards.pack import pack
from shards.sources.registry import open_source
from shards.verify import verify
from tests.shards.images import WRITERS, contents, flip, overwrite, png

MakeImages = Callable[..., Path]


ROOT = Path(__file__).parents[2]


WRITER_OF = {"folder": "folder", "tar": "images.tar", "zip": "images.zip"}


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
    """The first shard is kept, no process is left, and the repeated pack gives the same bytes."""
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


def pack_until_killed(images: Path, out: Path) -> None:
    """Pack all shards, and stop before the index is written."""

    def stop(done: int, total: int) -> None:
        if done == total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(images, out, size=32, shard_size_mb=1, workers=1, progress=stop)


@pytest.mark.parametrize("damage", ["shard", "record", "missing"])
def test_resuming_trusts_nothing(make_images: MakeImages, tmp_path: Path, damage: str) -> None:
    """A finished shard that was damaged since, or whose record was, is packed again."""
    images, out = make_images(300, size=32), tmp_path / "out"

    pack_until_killed(images, out)
    if damage == "shard":
        flip(out / "000000.tar", 5000)
    elif damage == "record":
        (out / ".packing" / "000000.json").write_text('[{"file": 3}, []]')
    else:
        (out / "000000.tar").unlink()
    pack(images, out, size=32, shard_size_mb=1)
    pack(images, tmp_path / "whole", size=32, shard_size_mb=1)
    assert contents(out) == contents(tmp_path / "whole")


def test_images_overwritten_after_a_kill_are_packed_again(
    make_images: MakeImages, tmp_path: Path
) -> None:
    """A resumed pack mixes no old pixels with new ones, even with equal names, sizes and times."""
    images, out = make_images(300, size=32), tmp_path / "out"

    pack_until_killed(images, out)
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
    """A finished dataset is returned for equal files, also for copies, and refused otherwise."""
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
    """The shards are complete, and the same command removes the folder of work files."""
    images, out = make_images(30, size=32), tmp_path / "out"

    def die(*_: object, **__: object) -> None:
        raise SystemExit

    with monkeypatch.context() as patched:
        patched.setattr("shards.output.shutil.rmtree", die)
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


def test_every_image_left_out_is_listed(make_images: MakeImages, tmp_path: Path) -> None:
    """Broken images and those that could not even be read are in rejected.jsonl, with reasons."""
    images, out = make_images(20), tmp_path / "out"
    (images / "a" / "scan.heic").write_bytes(b"ftypheic")
    os.symlink("nowhere", images / "b" / "link.png")
    (images / "a" / "readme.txt").write_text("no image")
    index = pack(images, out, size=16)
    assert pack(images, out, size=16) == index
    assert index.num_rejected == 2
    (images / "a" / "0000.png").write_bytes(b"broken")
    index = pack(images, tmp_path / "skip", size=16, bad_images="skip")
    lines = (index.path / "rejected.jsonl").read_text().splitlines()
    reasons = {line["name"]: line["reason"] for line in map(json.loads, lines)}
    assert reasons == {
        "a/scan.heic": ".heic files are not read",
        "b/link.png": "broken link",
        "a/0000.png": "not a JPEG, PNG, TIFF, WebP, BMP or GIF image",
    }
    assert (index.num_samples, index.num_rejected) == (19, 3)
    assert verify(index.path) == []
    (images / "a" / "other.heic").write_bytes(b"ftypheic")
    with pytest.raises(ShardError, match="without 1 broken image "):
        pack(images, index.path, size=16)
    (images / "a" / "0000.png").write_bytes(png())
    whole = pack(images, tmp_path / "whole", size=16)
    for name in ("scan.heic", "other.heic"):
        (images / "a" / name).unlink()
    assert pack(images, whole.path, size=16) == whole  # without a file that was no image
