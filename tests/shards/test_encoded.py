"""PNG and JPEG shards: the same samples in the same order as raw ones, in fewer bytes."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image

from distgan.commands.info import describe
from shards.errors import ShardError
from shards.format.compressed import CompressedLayout
from shards.format.index import ShardIndex, read_index
from shards.order.settings import PERMUTATION, OrderSettings
from shards.pack import pack
from shards.reader import ShardReader
from shards.remote.files import open_shards
from shards.verify import verify
from tests.shards.encodings import NUM, pack_all, smooth_source, take
from tests.shards.servers import QUICK, serving
from tests.worlds import rows, run_code, run_world, train_run

MakeImages = Callable[..., Path]


@pytest.mark.parametrize("channels", [1, 3])
def test_samples_are_those_of_raw_shards(tmp_path: Path, channels: int) -> None:
    """PNG has the same pixels, JPEG nearly the same, both the same labels, in fewer bytes."""
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
    """`webdataset` decodes images and labels; headers and spans are those of `tarfile`."""
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
    """Another quality is another dataset; it is shown, and refused for lossless encodings."""
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


def train_in_one_order(shards: Path, run_dir: Path) -> dict[str, Any]:
    """Train shortly in an order of images that does not depend on the bytes of the shards."""
    import distgan.data

    distgan.data.order_key = lambda fingerprint, seed: 7
    return train_run(shards, run_dir, ["train.kimg=0.06", "data.workers=0"])


def test_images_are_decoded_without_torchvision(indices: dict[str, ShardIndex]) -> None:
    """Its import would take every process that decodes two seconds."""
    code = f"""
import sys
import numpy as np
from shards.reader import ShardReader
ShardReader({str(indices["png"].path)!r}).gather(np.arange(2))
print("torchvision" in sys.modules)
"""
    assert run_code(code, indices["png"].path.parent).strip() == "False"


def test_any_image_becomes_a_jpeg(tmp_path: Path) -> None:
    """Noise cannot be compressed, and needs more than Pillow's own buffer at these sizes."""
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
