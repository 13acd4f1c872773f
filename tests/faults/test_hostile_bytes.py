"""Any bytes as an image, a tar, an index or labels: a clear error, in bounded time."""

from __future__ import annotations

import io
import json
import tarfile
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from shards.errors import ShardError
from shards.format.index import ShardIndex
from shards.images import BadImage, decode_image
from shards.reader import ShardReader
from shards.remote.files import open_shards
from shards.sources.registry import open_source
from shards.verify import verify
from tests.faults.fuzz_targets import no_hang
from tests.shards.servers import QUICK, serving

LENGTHS = pytest.mark.parametrize("num_examples", [40, pytest.param(3000, marks=pytest.mark.slow)])


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
    """Draw one of the originals, changed, cut, or with a stretch removed, doubled or filled."""
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
    """Items are images or raise BadImage, or the tar raises ShardError; nothing is written."""
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
    """`verify` finds every change; a reader goes on or raises ShardError, and unpickles nothing."""
    path = copy.path / "labels.npy"
    text = path.read_bytes()

    def check(data: bytes) -> None:
        path.write_bytes(data)
        with suppress(ShardError):
            reader = ShardReader(copy.path, classes=["even"])
            reader.labels(np.arange(reader.num_samples))

    fuzz(mutated([text]), num_examples, check)
    path.write_bytes(text[:-1] + bytes([text[-1] ^ 1]))
    assert [problem.file for problem in verify(copy.path)] == ["labels.npy"]


@LENGTHS
def test_any_bytes_as_a_remote_index(tmp_path: Path, whole: ShardIndex, num_examples: int) -> None:
    """What a server calls an index is judged as strictly."""
    pytest.importorskip("aiohttp")
    quick = type(QUICK)(tries=1, connect_sec=2, stall_sec=2, outage_sec=0)
    folder = tmp_path / "served"
    folder.mkdir()
    with serving(folder) as server:

        def check(data: bytes) -> None:
            (folder / "index.json").write_bytes(data)
            with suppress(ShardError):
                index, _ = open_shards(server.url, cache=tmp_path / "cache", retry=quick)
                assert index.fingerprint == whole.fingerprint

        fuzz(edited((whole.path / "index.json").read_bytes()), num_examples // 2, check)
