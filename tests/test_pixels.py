"""Training on pictures of many channels and 16 bits."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from distgan.config.load import load_config
from distgan.data import normalize, resident_images
from distgan.errors import UserError
from distgan.evaluation.evaluator import choose_extractor
from distgan.evaluation.extractors import RandomConv, fit_images
from distgan.images import grid_pixels, to_uint16, write_image
from distgan.networks.generator_file import load_generator
from distgan.runtime.distributed import World
from shards.pack import pack
from shards.reader import ShardReader
from shards.stream import BatchStream
from tests.test_commands import call
from tests.worlds import run_world, train_run


def multispectral(folder: Path, *, num: int = 24) -> Path:
    """Write arrays of five channels of 16 bits, 16 pixels high and 24 wide."""
    noise = np.random.default_rng(0)
    folder.mkdir()
    for number in range(num):
        pixels = noise.integers(0, 2**16, (5, 16, 24), dtype=np.uint16)
        np.save(folder / f"{number:02d}.npy", pixels)
    return folder


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Pack multispectral pictures."""
    out = tmp_path / "shards"
    pack(multispectral(tmp_path / "pictures"), out, size=(16, 24), workers=1)
    return out


def test_multispectral_pictures_are_trained_sampled_evaluated_and_exported(
    tmp_path: Path, shards: Path
) -> None:
    """Every command works on them, or says in one line why not."""
    run = tmp_path / "run"
    (result,) = run_world(1, train_run, shards, run, ["train.kimg=0.024"])
    assert result["state"] == "done"
    generator = load_generator(run)
    assert (generator.image_shape, generator.spec.bits) == ((5, 16, 24), 16)
    assert json.loads((run / "generator.json").read_text())["generator"]["bits"] == 16
    for arguments in (
        ("info", shards),
        ("sample", run, "--out", tmp_path / "grid.png", "--num", 4),
        ("sample", run, "--files", tmp_path / "files", "--num", 2),
        ("evaluate", run, "--data", shards, "--num", 12),
        ("report", run),
        ("export", run, "--out", tmp_path / "out"),
    ):
        code, said = call(*arguments)
        assert code == 0, said
    code, said = call("demo", run, "--out", tmp_path / "demo")
    assert (code, said.count("\n")) == (2, 1) and "have 5" in said.replace("\n", " ")
    pixels = np.load(tmp_path / "files" / "000001.npy")
    assert (pixels.shape, pixels.dtype) == ((5, 16, 24), np.uint16)
    assert pixels.max() > 255
    with Image.open(tmp_path / "grid.png") as picture:
        assert picture.mode == "RGB"
    assert "save_image(images[:, :3], " in (tmp_path / "out" / "README.md").read_text()


def test_training_reads_all_sixteen_bits(shards: Path) -> None:
    """A stream and images that are resident give the same values in [-1, 1]."""
    reader = ShardReader(shards)
    with BatchStream(reader, key=1, start=0, batch_size=8) as stream:
        streamed = normalize(next(stream))
    ids = reader.make_order(1, batch_size=8).ids(np.arange(8))
    stored = torch.from_numpy(reader.gather(ids).astype(np.float64)) / 32767.5 - 1
    assert torch.allclose(streamed.double(), stored, atol=1e-6)
    assert streamed.is_contiguous(memory_format=torch.channels_last)
    resident = normalize(resident_images(reader, torch.device("cpu")))
    assert torch.equal(resident[torch.from_numpy(ids)], streamed)
    assert streamed.min() < -0.9 and streamed.max() > 0.9


def test_images_that_a_screen_cannot_show_are_shown(tmp_path: Path) -> None:
    """The first three channels, alpha on white, and any number as a grid."""
    for channels in (1, 2, 3, 4, 5, 16):
        images = torch.zeros((2, channels, 8, 8), dtype=torch.uint8)
        grid = grid_pixels(images, scale=1)
        assert grid.shape[0] == 3
        assert (grid.max() > 0) == (channels == 4), "transparent black is white"
    images = torch.arange(5, dtype=torch.uint8)[None, :, None, None].expand(1, 5, 8, 8)
    assert grid_pixels(images, scale=1)[:, 0, 0].tolist() == [0, 1, 2]


def test_single_images_are_written_as_they_are(tmp_path: Path) -> None:
    """PNG where it can hold the values, npy elsewhere."""
    for channels in (1, 3, 4, 5):
        for deep in (False, True):
            images = torch.rand(1, channels, 4, 6) * 2 - 1
            pixels = to_uint16(images)[0] if deep else images[0].add(1).mul(127).to(torch.uint8)
            path = write_image(pixels, tmp_path / f"{channels}-{deep}")
            if path.suffix == ".npy":
                found = np.load(path)
            else:
                with Image.open(path) as picture:
                    found = np.asarray(picture)
                found = found[None] if channels == 1 else found.transpose(2, 0, 1)
            assert np.array_equal(found, pixels.numpy())
            assert (path.suffix == ".npy") == (channels == 5 or (deep and channels > 1))


def test_features_of_many_channels_see_each(shards: Path) -> None:
    """A change of any channel changes the features; Inception refuses them in one line."""
    images = torch.zeros((1, 5, 32, 32), dtype=torch.uint8)
    assert fit_images(images, channels=3, size=32).shape == (1, 3, 32, 32)
    extract, plain = RandomConv(), RandomConv()(images).features
    for channel in range(5):
        changed = images.clone()
        changed[:, channel, :16] = 200
        assert not torch.equal(extract(changed).features, plain)
    evaluation = load_config(None, ["evaluation.extractor=inception"]).evaluation
    with pytest.raises(UserError, match="takes 1 or 3 channels, and these images have 5"):
        choose_extractor(evaluation, ShardReader(shards), world=World(0, 1))
