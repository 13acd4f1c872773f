"""PNG and JPEG shards: the same samples in the same order as raw ones, in fewer bytes."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image

from distgan.commands.info import describe
from distgan.runtime.signals import Interrupt
from shards.errors import ShardError
from shards.format.compressed import CompressedLayout
from shards.format.index import ShardIndex, read_index
from shards.format.raw import npy_of_spans
from shards.order.settings import PERMUTATION, OrderSettings
from shards.pack import pack
from shards.reader import ShardReader
from shards.remote.files import open_shards
from shards.sources.official import ArraySource
from shards.stream import BatchStream
from shards.verify import verify
from tests.shards.servers import QUICK, serving
from tests.worlds import rows, run_world, train_run

MakeImages = Callable[..., Path]
ROOT = Path(__file__).parents[2]
NUM = 250  # in two shards
ENCODINGS = ("raw", "png", "jpeg")


def smooth_source(channels: int = 3) -> ArraySource:
    """Images of 32x32 that compress as photographs do, in two classes."""
    draw = np.random.default_rng(0)
    coarse = [Image.fromarray(draw.integers(0, 256, (5, 5, 3), np.uint8)) for _ in range(NUM)]
    images = np.stack(
        [np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC)) for image in coarse]
    )
    return ArraySource(
        names=[str(number) for number in range(NUM)],
        sizes=np.full(NUM, images[0].size, np.int64),
        labels=np.arange(NUM, dtype=np.int32) % 2,
        class_names=("even", "odd"),
        digest="0" * 64,
        default_size=32,
        in_memory=True,
        images=images if channels == 3 else images[..., 0],
    )


def pack_all(folder: Path, channels: int = 3) -> dict[str, ShardIndex]:
    """The same images in every encoding."""
    source = smooth_source(channels)
    options: dict[str, Any] = {"channels": channels, "shard_size_mb": 1}
    return {
        encoding: pack(source, folder / encoding, encoding=encoding, **options)
        for encoding in ENCODINGS
    }


@pytest.fixture(scope="module")
def indices(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ShardIndex]:
    """To be read only."""
    return pack_all(tmp_path_factory.mktemp("encoded"))


def take(reader: ShardReader, num_batches: int, **options: int) -> torch.Tensor:
    """The first batches of a stream, [num_batches, b, C, H, W]."""
    with BatchStream(reader, **{"key": 7, "start": 0, "batch_size": 12} | options) as stream:
        return torch.stack(list(islice(stream, num_batches)))


@pytest.mark.parametrize("channels", [1, 3])
def test_samples_are_those_of_raw_shards(tmp_path: Path, channels: int) -> None:
    """By id PNG holds the same pixels and JPEG nearly the same, with the same labels and classes, in fewer bytes."""
    packed = pack_all(tmp_path, channels)
    everything, readers = (
        np.arange(NUM),
        {name: ShardReader(index) for name, index in packed.items()},
    )
    images = readers["raw"].gather(everything)
    assert images.shape == (NUM, channels, 32, 32)
    assert np.array_equal(readers["png"].gather(everything), images)
    difference = np.abs(readers["jpeg"].gather(everything).astype(int) - images)
    assert 0 < difference.mean() < 2
    for name, index in packed.items():
        assert verify(index.path) == []
        assert read_index(index.path) == index
        assert np.array_equal(readers[name].labels(everything), readers["raw"].labels(everything))
        assert [shard.num_samples for shard in index.shards] == [
            shard.num_samples for shard in packed["raw"].shards
        ]
    odd = [
        ShardReader(packed[name], classes=["odd"]).gather(np.arange(NUM // 2))
        for name in ("raw", "png")
    ]
    assert np.array_equal(*odd)
    assert packed["jpeg"].num_bytes <= packed["png"].num_bytes < packed["raw"].num_bytes
    assert len({index.fingerprint for index in packed.values()}) == 3


@pytest.mark.parametrize(
    "order_settings", [PERMUTATION, OrderSettings("windows", lanes=2, window_shards=1)]
)
def test_streams_are_those_of_raw_shards(
    indices: dict[str, ShardIndex], order_settings: OrderSettings
) -> None:
    """The same batches in any order, from any position, on any number of ranks."""
    raw, png = (
        ShardReader(indices[name], order_settings=order_settings) for name in ("raw", "png")
    )
    for options in ({}, {"start": 96}, {"world_size": 3, "rank": 1}):
        assert torch.equal(take(png, 25, **options), take(raw, 25, **options))


@pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)  # of its own
@pytest.mark.parametrize(("encoding", "extension"), [("png", "png"), ("jpeg", "jpg")])
def test_stock_readers_read_the_tars(
    indices: dict[str, ShardIndex], encoding: str, extension: str
) -> None:
    """`webdataset` decodes images and labels; headers and places are those that the standard library finds."""
    index, reader = indices[encoding], ShardReader(indices[encoding])
    urls = [str(index.path / shard.file) for shard in index.shards]
    samples = list(
        webdataset.WebDataset(urls, shardshuffle=False).decode("pil").to_tuple(extension, "cls")
    )
    images = np.stack([np.asarray(image).transpose(2, 0, 1) for image, _ in samples])
    assert np.abs(images - reader.gather(np.arange(NUM)).astype(int)).max() <= (
        0 if encoding == "png" else 2
    )
    assert [label for _, label in samples] == reader.labels(np.arange(NUM)).tolist()
    spans = []
    for url in urls:
        data = Path(url).read_bytes()
        with tarfile.open(url) as tar:
            for number, member in enumerate(tar):
                plain = tarfile.TarInfo(member.name)
                plain.size = member.size
                assert data[member.offset : member.offset + 512] == plain.tobuf(
                    tarfile.USTAR_FORMAT
                )
                if number % 2 == 0:
                    spans.append((member.offset_data, member.size))
    assert np.array_equal(np.load(index.path / "spans.npy", allow_pickle=False), spans)


def test_quality_is_part_of_the_plan(tmp_path: Path) -> None:
    """Another quality gives other bytes and is another dataset; it is shown, and refused where it says nothing."""
    source, sizes = smooth_source(), []
    for quality in (50, 95):
        index = pack(source, tmp_path / str(quality), encoding="jpeg", quality=quality)
        sizes.append(index.num_bytes)
        assert f"jpeg of quality {quality}" in dict(describe(index))["images"]
        assert "% of raw" in dict(describe(index))["shards"]
    assert sizes[0] < sizes[1]
    assert pack(source, tmp_path / "95", encoding="jpeg").num_bytes == sizes[1]
    for options in ({"encoding": "jpeg", "quality": 50}, {"encoding": "png"}, {}):
        with pytest.raises(ShardError, match="another dataset"):
            pack(source, tmp_path / "95", **options)
    for encoding, quality in (("png", 80), ("raw", 80), ("jpeg", 0), ("jpeg", 101)):
        with pytest.raises(ShardError, match=f"--quality {quality}"):
            pack(source, tmp_path / "none", encoding=encoding, quality=quality)
    with pytest.raises(ShardError, match="--encoding webp"):
        pack(source, tmp_path / "none", encoding="webp")


def test_broken_images_are_left_out(make_images: MakeImages, tmp_path: Path) -> None:
    """Gaps of broken images close, within a chunk and between chunks."""
    images = make_images(300, size=32)
    for number in (0, 7, 150, 299):
        (images / "ab"[number % 2] / f"{number:04d}.png").write_bytes(b"broken")
    packed = {
        encoding: pack(
            images,
            tmp_path / encoding,
            size=32,
            shard_size_mb=1,
            encoding=encoding,
            bad_images="skip",
            workers=1,
        )
        for encoding in ("raw", "png")
    }
    assert {index.num_samples for index in packed.values()} == {296}
    assert verify(packed["png"].path) == []
    assert np.array_equal(*(ShardReader(index).gather(np.arange(296)) for index in packed.values()))


@pytest.mark.parametrize("encoding", ["png", "jpeg"])
@pytest.mark.parametrize("damage", ["header", "image", "end", "spans", "swapped", "missing"])
def test_damage_is_found(tmp_path: Path, encoding: str, damage: str) -> None:
    """A flipped byte anywhere and spans that changed places, also where the checksums were made to fit."""
    index = pack(smooth_source(), tmp_path / "out", encoding=encoding)
    record, tar, spans = index.shards[0], index.path / "000000.tar", index.path / "spans.npy"
    path = tar if damage in ("header", "image", "end") else spans
    data = bytearray(path.read_bytes())
    values = np.load(spans)
    if damage == "swapped":
        values[[3, 4]] = values[[4, 3]]
        data = bytearray(npy_of_spans(values))
    elif damage != "missing":
        offset = {
            "header": 130,
            "image": int(values[2].sum()) - 1,
            "end": len(data) - 1,
            "spans": 140,
        }[damage]
        data[offset] ^= 0x04
    path.unlink() if damage == "missing" else path.write_bytes(data)
    assert [problem.file for problem in verify(index.path)] == [path.name]
    if damage == "missing":
        with pytest.raises(ShardError, match=r"spans\.npy"):
            ShardReader(index)
        return
    digest = sha256(data).hexdigest()
    forged = (
        replace(index, shards=(replace(record, sha256=digest),))
        if path == tar
        else replace(index, spans_sha256=digest)
    )
    (index.path / "index.json").write_bytes(forged.to_json())
    if damage != "image":  # there may be other images than these
        assert [problem.file for problem in verify(index.path)] == ["000000.tar"]


def test_what_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    """Bytes that are no image, or one of another shape, are an error of one line that names shard and sample."""
    index = pack(smooth_source(), tmp_path / "out", encoding="png")
    other = pack(smooth_source(), tmp_path / "other", size=16, encoding="png")
    spans = np.load(index.path / "spans.npy")
    small = np.load(other.path / "spans.npy")[0]
    image = (other.path / "000000.tar").read_bytes()[small[0] : small.sum()]
    for data, message in (
        (b"no image", "sample 5 cannot be decoded"),
        (image, r"sample 5 is \[3, 16, 16\]"),
    ):
        with open(index.path / "000000.tar", "r+b") as file:
            file.seek(spans[5, 0])
            file.write(data)
        with pytest.raises(
            ShardError, match=rf"000000\.tar: the image of {message}.*distgan verify"
        ) as caught:
            ShardReader(index).gather(np.array([4, 5]))
        assert "\n" not in str(caught.value)
    wild = np.array(spans)
    wild[5] = (-(2**62), 2**62)
    (index.path / "spans.npy").write_bytes(npy_of_spans(wild))
    with pytest.raises(ShardError, match="sample 5"):
        ShardReader(index).gather(np.array([5]))


@pytest.mark.parametrize(
    "change", [{"encoding": "webp"}, {"quality": None}, {"quality": 101}, {"spans_sha256": None}]
)
def test_a_changed_index_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    """What the index says of the encoding has to fit together."""
    path = pack(smooth_source(), tmp_path / "out", encoding="jpeg").path
    fields = json.loads((path / "index.json").read_text())
    (path / "index.json").write_text(json.dumps(fields | change))
    with pytest.raises(ShardError, match="damaged"):
        read_index(path)


def test_remote_shards_are_the_local_ones(indices: dict[str, ShardIndex], tmp_path: Path) -> None:
    """Over HTTP, each file is fetched once; with windows as well."""
    pytest.importorskip("aiohttp")
    local = ShardReader(
        indices["jpeg"], order_settings=OrderSettings("windows", lanes=2, window_shards=1)
    )
    with serving(indices["jpeg"].path) as server:
        for order_settings in (local.order_settings, PERMUTATION):
            index, files = open_shards(server.url, cache=tmp_path, retry=QUICK)
            remote = ShardReader(index, files=files, order_settings=order_settings)
            expected = local if order_settings != PERMUTATION else ShardReader(indices["jpeg"])
            assert torch.equal(take(remote, 25), take(expected, 25))
        assert {file: server.gets[file] for file in ("000000.tar", "000001.tar", "spans.npy")} == {
            "000000.tar": 1,
            "000001.tar": 1,
            "spans.npy": 1,
        }


def test_a_process_decodes_what_the_thread_would(indices: dict[str, ShardIndex]) -> None:
    """The same batches from a position on, without touching torch's own random numbers; killed, it is an error."""
    reader = ShardReader(indices["jpeg"], classes=["odd"])
    expected, before = take(reader, 30, start=60), torch.get_rng_state()
    with BatchStream(reader, key=7, start=60, batch_size=12, workers=1) as stream:
        while not multiprocessing.active_children():
            time.sleep(0.01)
        (worker,) = multiprocessing.active_children()
        for (
            number
        ) in Interrupt.SIGNALS:  # the trainer's to answer, even while the worker is starting
            os.kill(worker.pid or 0, number)
        assert torch.equal(torch.stack(list(islice(stream, 30))), expected)
        assert stream.position == 60 + 30 * 12
        for number in Interrupt.SIGNALS:
            os.kill(worker.pid or 0, number)
        for _ in range(20):
            next(stream)
        os.kill(worker.pid or 0, signal.SIGKILL)
        with pytest.raises(ShardError, match=r"decodes images died.*fewer data\.workers"):
            for _ in stream:
                pass
    assert torch.equal(torch.get_rng_state(), before)
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("closed", [False, True])
def test_a_batch_that_does_not_come_is_noticed(
    indices: dict[str, ShardIndex], monkeypatch: pytest.MonkeyPatch, closed: bool
) -> None:
    """A process that lives but sends nothing ends the stream with one line, or when it is closed."""
    stream = BatchStream(
        ShardReader(indices["jpeg"]), key=7, start=0, batch_size=12, workers=1, prefetch=1
    )
    next(stream)
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid or 0, signal.SIGSTOP)
    monkeypatch.setattr("shards.decode_workers._MAX_WAIT_SEC", 60.0 if closed else 0.5)
    if closed:
        stream.close()
    else:
        with pytest.raises(ShardError, match=r"has sent nothing for 0\.5 s.*data\.workers=0"):
            for _ in stream:
                pass
    assert multiprocessing.active_children() == []


READ_ALL = """
import itertools, sys
from shards.reader import ShardReader
from shards.stream import BatchStream
if __name__ == "__main__":
    with BatchStream(ShardReader(sys.argv[1]), key=7, start=0, batch_size=128, workers=2) as stream:
        print(sum(len(batch) for batch in itertools.islice(stream, 20)))
"""


def test_processes_need_no_shared_memory(indices: dict[str, ShardIndex], tmp_path: Path) -> None:
    """With a full and read-only /dev/shm, batches of 393 kB arrive all the same."""
    script = tmp_path / "read_all.py"
    script.write_text(READ_ALL)
    mount = "mount -t tmpfs -o ro,size=4k tmpfs /dev/shm"
    if subprocess.run(["unshare", "-m", "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("no file system can be mounted: needs root")
    command = f'{mount} && exec "$@"'
    read_all = [sys.executable, str(script), str(indices["jpeg"].path)]
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", command, "sh", *read_all],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout == "2560\n", done.stderr


@pytest.mark.slow
def test_processes_read_remote_windows(indices: dict[str, ShardIndex], tmp_path: Path) -> None:
    """From the cache of the node, batches in order; what one of them cannot read is one line."""
    pytest.importorskip("aiohttp")
    order_settings = OrderSettings("windows", lanes=2, window_shards=1)
    expected = take(ShardReader(indices["png"], order_settings=order_settings), 40)
    with serving(indices["png"].path) as server:
        index, files = open_shards(server.url, cache=tmp_path, retry=QUICK)
        reader = ShardReader(index, files=files, order_settings=order_settings)
        assert torch.equal(take(reader, 40, workers=2), expected)
        assert server.shard_gets == {"000000.tar": 1, "000001.tar": 1}
    index = pack(smooth_source(), tmp_path / "damaged", encoding="png")
    with open(index.path / "000000.tar", "r+b") as file:
        file.seek(int(np.load(index.path / "spans.npy")[5, 0]))
        file.write(b"no image")
    with pytest.raises(ShardError, match="sample 5 cannot be decoded") as caught:
        take(ShardReader(index), 30, workers=2)
    assert "\n" not in str(caught.value)


LEFT_OPEN = """
import multiprocessing, os, signal, sys, time
from shards.reader import ShardReader
from shards.stream import BatchStream
if __name__ == "__main__":
    stream = BatchStream(ShardReader(sys.argv[1]), key=7, start=0, batch_size=12, workers=2)
    next(stream)
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    if sys.argv[2] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
@pytest.mark.parametrize("end", ["killed", "forgotten"])
def test_processes_end_with_their_parent(
    indices: dict[str, ShardIndex], tmp_path: Path, end: str
) -> None:
    """Where it is killed, and where it ends without closing its stream."""
    script = tmp_path / "left_open.py"
    script.write_text(LEFT_OPEN)
    command = [sys.executable, str(script), str(indices["png"].path), end]
    done = subprocess.run(
        command,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        timeout=300,
    )
    assert done.returncode == (-signal.SIGKILL if end == "killed" else 0)
    workers = [int(word) for word in done.stdout.split()]
    assert len(workers) == 2
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < deadline, "a worker outlived its parent"
        time.sleep(0.05)


def train_in_one_order(shards: Path, run_dir: Path) -> dict[str, Any]:
    """A short run in a process of its own, whose order of images does not follow from their bytes."""
    import distgan.data

    distgan.data.order_key = lambda fingerprint, seed: 7
    return train_run(shards, run_dir, ["train.kimg=0.06", "data.workers=0"])


@pytest.mark.slow
def test_training_with_processes_goes_on_where_it_was(
    indices: dict[str, ShardIndex], tmp_path: Path
) -> None:
    """Two ranks with a decoding process each: stopped and taken up again, bit for bit as if never stopped."""
    for name, lengths in (("whole", (0.06,)), ("halves", (0.036, 0.06))):
        for kimg in lengths:
            words = [f"train.kimg={kimg}", "data.workers=1"]
            found = run_world(
                2, train_run, indices["jpeg"].path, tmp_path / name, words, timeout=120
            )[0]
        if name == "whole":
            whole = found
    assert all(
        np.array_equal(whole["weights"][name], found["weights"][name]) for name in whole["weights"]
    )


def test_any_image_becomes_a_jpeg(tmp_path: Path) -> None:
    """Noise, which no encoder makes smaller, at sizes and qualities where Pillow's own buffer would not do."""
    for size, quality in ((256, 95), (160, 100)):
        layout = CompressedLayout((3, size, size), False, "jpeg", quality)
        noise = np.random.default_rng(0).integers(0, 2, (3, size, size), np.uint8) * 255
        file = layout.encode(noise)
        assert Image.open(io.BytesIO(file)).size == (size, size)
        assert 65536 < len(file) <= layout.max_sample_bytes


def test_training_on_png_is_training_on_raw(indices: dict[str, ShardIndex], tmp_path: Path) -> None:
    """Bit for bit the same losses and weights."""
    raw, png = (
        run_world(1, train_in_one_order, indices[name].path, tmp_path / name)[0]
        for name in ("raw", "png")
    )
    assert all(
        np.array_equal(raw["weights"][name], png["weights"][name]) for name in raw["weights"]
    )
    losses = [
        [(row["loss/d"], row["loss/g"]) for row in rows(tmp_path / name)] for name in ("raw", "png")
    ]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 5
