"""Damaged data: every kind of damage in any shard, and full disks."""

from __future__ import annotations

import gc
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from shards.errors import ShardError
from shards.format.index import ShardIndex, read_index
from shards.reader import ShardReader
from shards.remote.files import open_shards
from shards.verify import verify
from tests.faults.conftest import NUM_SHARDS
from tests.shards.servers import QUICK, pack_noise, serving

SHARDS = range(NUM_SHARDS)


SAMPLE = 512 + 49_664 + 1_024  # header, image with padding, label with its header


FLIPS = {
    "header": 3,
    "size field": 130,
    "npy header": 520,
    "pixels": 700,
    "padding": SAMPLE - 1100,
    "label": SAMPLE - 512,
}


CUTS = {
    "all of it": 0,
    "in the first header": 100,
    "after the first header": 512,
    "inside an image": 30_000,
    "before a label": SAMPLE - 1024,
    "inside a label": SAMPLE - 300,
    "after a sample": 5 * SAMPLE,
    "in a later header": 5 * SAMPLE + 200,
    "before the trailer": -1024,
    "inside the trailer": -512,
    "the last byte": -1,
}


def damaged(index: ShardIndex) -> set[str]:
    return {problem.file for problem in verify(index.path)}


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 0x20
    path.write_bytes(data)


@pytest.mark.parametrize("shard", SHARDS)
def test_a_flipped_byte_in_any_shard(copy: ShardIndex, shard: int) -> None:
    """Wherever it is, verify names the shard."""
    path = copy.path / copy.shards[shard].file
    for offset in (*FLIPS.values(), 7 * SAMPLE + 4000, -1024, -1):
        flip(path, offset)
        assert damaged(copy) == {path.name}
        flip(path, offset)
    assert damaged(copy) == set()


@pytest.mark.parametrize("shard", SHARDS)
def test_a_cut_in_any_shard(copy: ShardIndex, shard: int) -> None:
    """If a shard is too short or too long, `verify` names it and no reader opens it."""
    path = copy.path / copy.shards[shard].file
    data = path.read_bytes()
    for keep in (*CUTS.values(), None):
        path.write_bytes(data[:keep] if keep is not None else data + b"\0")
        assert damaged(copy) == {path.name}
        with pytest.raises(ShardError, match=rf"{path.name} has .* bytes, not .*distgan verify"):
            ShardReader(copy)


@pytest.mark.parametrize("shard", SHARDS)
def test_missing_swapped_and_duplicated_shards(copy: ShardIndex, shard: int) -> None:
    """A shard that is gone, lies in another's place, or lies there twice."""
    names = [record.file for record in copy.shards]
    one, other = copy.path / names[shard], copy.path / names[shard - 1]
    shutil.copy(one, copy.path / "000077.tar")
    assert damaged(copy) == {"000077.tar"}
    one.unlink()
    assert damaged(copy) == {one.name, "000077.tar"}
    with pytest.raises(ShardError, match=rf"{one.name}: No such file"):
        ShardReader(copy)
    shutil.copy(other, one)  # twice
    assert damaged(copy) == {one.name, "000077.tar"}
    (copy.path / "000077.tar").rename(other)  # swapped
    assert damaged(copy) == {one.name, other.name}


def test_a_shard_that_goes_while_it_is_read(copy: ShardIndex) -> None:
    """Gone or cut after the start, it is a clear error and not a crash."""
    for damage in (Path.unlink, lambda path: path.write_bytes(b"short")):
        reader = ShardReader(copy)
        damage(copy.path / copy.shards[2].file)
        with pytest.raises(ShardError, match=r"000002.tar"):
            reader.gather(np.array([45]))
        shutil.copy(copy.path / copy.shards[1].file, copy.path / copy.shards[2].file)
        with open(copy.path / copy.shards[2].file, "r+b") as file:
            file.truncate(copy.shards[2].num_bytes)


def test_a_shard_cut_short_while_it_is_mapped(copy: ShardIndex) -> None:
    """An error before the page that is gone is read, which would end the process without a word."""
    reader = ShardReader(copy)
    reader.gather(np.arange(reader.num_samples))
    (copy.path / copy.shards[1].file).write_bytes(b"overwritten in place")
    reader.gather(np.arange(20))
    with pytest.raises(ShardError, match=r"000001.tar was cut short .*\(20 bytes are left of"):
        reader.gather(np.arange(reader.num_samples))


@pytest.mark.parametrize("damage", ["flip", "cut", "swap", "missing"])
def test_damaged_remote_shards_never_arrive(copy: ShardIndex, tmp_path: Path, damage: str) -> None:
    """The checksum of a remote file is checked before it is read; a file that fails is not kept."""
    pytest.importorskip("aiohttp")
    path = copy.path / copy.shards[1].file
    if damage == "missing":
        path.unlink()
    elif damage == "flip":
        flip(path, FLIPS["pixels"])
    else:
        data = (copy.path / copy.shards[0].file).read_bytes()
        path.write_bytes(data if damage == "swap" else data[: CUTS["inside an image"]])
    with serving(copy.path) as server:
        index, files = open_shards(server.url, cache=tmp_path / "cache", retry=QUICK)
        reader = ShardReader(index, files=files)
        with pytest.raises(ShardError, match=r"cannot fetch .*000001.tar"):
            reader.gather(np.array([25]))
        assert [p.name for p in (tmp_path / "cache").iterdir() if p.name != "lock"] == [
            copy.labels_sha256
        ]


@contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[Path]:
    """A file system of its own, which only root may mount."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, timeout=10).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("no small disk can be mounted: needs root and mount")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True, timeout=10)


def test_a_disk_that_fills_while_packing(whole: ShardIndex, tmp_path: Path) -> None:
    """The error is one line; with more room the same command resumes and gives the same bytes."""
    with small_disk(tmp_path / "disk", 2048) as disk:
        with pytest.raises(ShardError, match="the disk is full: free some space"):
            pack_noise(disk / "data", num_shards=NUM_SHARDS)
        assert [path.name for path in disk.glob("data/*.tar")] == ["000000.tar"]
        subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True, timeout=10)
        assert pack_noise(disk / "data", num_shards=NUM_SHARDS).fingerprint == whole.fingerprint
        assert damaged(read_index(disk / "data")) == set()


def test_a_disk_that_fills_while_fetching(whole: ShardIndex, tmp_path: Path) -> None:
    """What is unused goes; where all is in use it is one line, and what is there still reads."""
    pytest.importorskip("aiohttp")
    with small_disk(tmp_path / "disk", 1600) as disk, serving(whole.path) as server:
        index, files = open_shards(server.url, cache=disk / "cache", retry=QUICK)
        reader, local = ShardReader(index, files=files), ShardReader(whole)
        first = reader.gather(np.arange(20))
        with pytest.raises(ShardError, match="the disk is full"):
            reader.gather(np.array([25]))
        assert np.array_equal(reader.gather(np.arange(20)), first)
        assert not [path for path in disk.glob("cache/*") if path.suffix]
        del reader
        gc.collect()  # the error's traceback held it
        assert np.array_equal(
            ShardReader(index, files=files).gather(np.array([25])), local.gather(np.array([25]))
        )


def test_a_process_that_dies_of_a_cut_file_says_where(tmp_path: Path) -> None:
    """Its size is checked before each batch; between the check and the read nothing can help."""
    file = tmp_path / "shard.tar"
    file.write_bytes(bytes(8192))
    code = (
        "import mmap, os, sys; from distgan.runtime.streams import keep_streams; keep_streams()\n"
        "file = open(sys.argv[1]); mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)\n"
        "os.truncate(sys.argv[1], 0)\n"
        "mapped[5000]"
    )
    died = subprocess.run([sys.executable, "-c", code, file], capture_output=True, text=True)
    assert died.returncode == -signal.SIGBUS
    assert "Bus error" in died.stderr
    assert "line 4" in died.stderr
