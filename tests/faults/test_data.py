"""Damaged data: every kind of damage in every shard is found, and no bytes make a reader fail otherwise than it says."""

from __future__ import annotations

import gc
import io
import json
import shutil
import signal
import subprocess
import tarfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from shards.errors import ShardError
from shards.format.index import ShardIndex, read_index
from shards.images import BadImage, decode_image
from shards.reader import ShardReader
from shards.remote.files import open_shards
from shards.sources.registry import open_source
from shards.verify import verify
from tests.shards.servers import QUICK, pack_noise, serving

SHARDS = range(3)
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
LENGTHS = pytest.mark.parametrize("num_examples", [40, pytest.param(3000, marks=pytest.mark.slow)])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    """Three whole shards."""
    return pack_noise(tmp_path_factory.mktemp("whole") / "data", num_shards=len(SHARDS))


@pytest.fixture
def copy(whole: ShardIndex, tmp_path: Path) -> ShardIndex:
    """A copy of them to be damaged."""
    return read_index(shutil.copytree(whole.path, tmp_path / "data"))


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
    """Wherever it is cut, or where it has bytes too many, verify names the shard and nobody reads it."""
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


@pytest.mark.parametrize("damage", ["flip", "cut", "swap", "missing"])
def test_damaged_remote_shards_never_arrive(copy: ShardIndex, tmp_path: Path, damage: str) -> None:
    """The checksum of every remote file is checked before anyone reads it, and what fails is not kept."""
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


# ------------------------------------------------------------------------------------------------- a full disk


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
    """One line; finished shards stay, and with more room the same command ends with the same bytes."""
    with small_disk(tmp_path / "disk", 2048) as disk:
        with pytest.raises(ShardError, match="the disk is full: free some space"):
            pack_noise(disk / "data", num_shards=len(SHARDS))
        assert [path.name for path in disk.glob("data/*.tar")] == ["000000.tar"]
        subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True, timeout=10)
        assert pack_noise(disk / "data", num_shards=len(SHARDS)).fingerprint == whole.fingerprint
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


# ------------------------------------------------------------------------------------------------- hostile bytes


@contextmanager
def no_hang(seconds: int = 20) -> Iterator[None]:
    """Fails where the block takes longer."""

    def late(*_: object) -> None:
        raise AssertionError(f"still busy after {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def fuzz(strategy: st.SearchStrategy[Any], num_examples: int, check: Callable[[Any], None]) -> None:
    """`check` everything that the strategy draws, each in bounded time."""

    @given(strategy)
    @settings(
        max_examples=num_examples,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        derandomize=True,
    )
    def run(value: Any) -> None:
        with no_hang(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what Pillow finds odd but can read
            check(value)

    run()


@st.composite
def mutated(draw: st.DrawFn, originals: list[bytes]) -> bytes:
    """One of the originals with bytes changed, a stretch removed, doubled or filled in, or cut; or other bytes at all."""
    data = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(1, 6))):
        start = draw(st.integers(0, max(0, len(data) - 1)))
        stop = start + draw(st.integers(0, 600))
        match draw(st.sampled_from(["set", "fill", "remove", "double", "cut", "random"])):
            case "set" if data:
                data[start] = draw(st.integers(0, 255))
            case "fill":
                data[start:stop] = draw(st.sampled_from([b"\0", b"\xff", b"7", b"\x80"])) * (
                    stop - start
                )
            case "remove":
                del data[start:stop]
            case "double":
                data[start:start] = data[start:stop]
            case "cut":
                del data[start:]
            case "random":
                data[start:start] = draw(st.binary(max_size=64))
    return bytes(data)


def encoded(kind: str, mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.arange(12 * 9 * 3, dtype=np.uint8).reshape(12, 9, 3)).convert(mode).save(
        file, kind
    )
    return file.getvalue()


def npy() -> bytes:
    file = io.BytesIO()
    np.save(file, np.zeros((3, 8, 8), np.uint8))
    return file.getvalue()


IMAGES = [
    *(encoded(kind) for kind in ("JPEG", "PNG", "BMP", "GIF", "WEBP")),
    encoded("PNG", "RGBA"),
    encoded("PNG", "P"),
    encoded("JPEG", "CMYK"),
    npy(),
]


def tar_of(names: list[str], kind: int) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=kind) as tar:
        for number, name in enumerate(names):
            data = b"3" if name.endswith(".cls") else IMAGES[number % len(IMAGES)]
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    return file.getvalue()


TARS = [
    tar_of(["a/1.png", "b/2.jpg", "../../c.png", "/d.png"], tarfile.USTAR_FORMAT),
    tar_of(["1.png", "1.cls", "2.png", "2.cls"], tarfile.GNU_FORMAT),
    tar_of(["é" * 80 + ".png", "x" * 200 + ".png"], tarfile.PAX_FORMAT),
    tar_of(["y" * 200 + ".npy"], tarfile.GNU_FORMAT),
]


@LENGTHS
def test_any_bytes_as_an_image(num_examples: int) -> None:
    """An image of the right shape, or BadImage."""

    def check(data: bytes) -> None:
        with suppress(BadImage):
            assert decode_image(data, size=8, channels=3).shape == (3, 8, 8)

    fuzz(mutated(IMAGES), num_examples, check)
    fuzz(st.binary(max_size=300), num_examples // 2, check)


@LENGTHS
def test_any_bytes_as_a_tar(tmp_path: Path, num_examples: int) -> None:
    """A source whose items are images or BadImage, or ShardError; and nothing is written anywhere."""
    path = tmp_path / "images.tar"

    def check(data: bytes) -> None:
        path.write_bytes(data)
        with suppress(ShardError):
            source = open_source(path)
            for item in range(len(source)):
                with suppress(BadImage):
                    decode_image(source.read(item), size=8, channels=3)
        assert list(tmp_path.iterdir()) == [path]

    fuzz(mutated(TARS), num_examples, check)
    fuzz(st.binary(max_size=2000), num_examples // 2, check)


ODD = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=8)
    | st.lists(st.integers(-1, 9), max_size=4)
    | st.dictionaries(st.text(max_size=3), st.integers(), max_size=2)
)


@st.composite
def edited(draw: st.DrawFn, text: bytes) -> bytes:
    """An index with one value, at any depth, exchanged for another or taken away."""
    fields = json.loads(text)
    place: Any = fields
    while True:
        key = draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        if not isinstance(place[key], dict | list) or not place[key] or draw(st.booleans()):
            break
        place = place[key]
    if draw(st.booleans()):
        place[key] = draw(ODD)
    else:
        del place[key]
    return json.dumps(fields).encode()


@LENGTHS
def test_any_bytes_as_an_index(copy: ShardIndex, num_examples: int) -> None:
    """The same content, or ShardError; also from one value exchanged."""
    path = copy.path / "index.json"
    text = path.read_bytes()

    def check(data: bytes) -> None:
        path.write_bytes(data)
        with suppress(ShardError):
            reader = ShardReader(copy.path)
            assert reader.index.fingerprint == copy.fingerprint
            reader.gather(np.arange(reader.num_samples))

    fuzz(mutated([text]), num_examples, check)
    fuzz(edited(text), num_examples, check)


@LENGTHS
def test_any_bytes_as_labels(copy: ShardIndex, num_examples: int) -> None:
    """Verify finds every change of labels.npy; a reader reads on or raises ShardError, and unpickles nothing."""
    path = copy.path / "labels.npy"
    text = path.read_bytes()

    def check(data: bytes) -> None:
        path.write_bytes(data)
        with suppress(ShardError):
            reader = ShardReader(copy.path, classes=["even"])
            reader.labels(np.arange(reader.num_samples))

    fuzz(mutated([text]), num_examples, check)
    path.write_bytes(text[:-1] + bytes([text[-1] ^ 1]))
    assert damaged(copy) == {"labels.npy"}


@LENGTHS
def test_any_bytes_as_a_remote_index(tmp_path: Path, whole: ShardIndex, num_examples: int) -> None:
    """What a server calls an index is judged as strictly."""
    pytest.importorskip("aiohttp")
    quick = type(QUICK)(tries=1, connect_sec=2, stall_sec=2)
    folder = tmp_path / "served"
    folder.mkdir()
    with serving(folder) as server:

        def check(data: bytes) -> None:
            (folder / "index.json").write_bytes(data)
            with suppress(ShardError):
                index, _ = open_shards(server.url, cache=tmp_path / "cache", retry=quick)
                assert index.fingerprint == whole.fingerprint

        fuzz(edited((whole.path / "index.json").read_bytes()), num_examples // 2, check)
