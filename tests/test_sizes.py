"""Images of other sizes than 32, 64 and 128 pixels, and images that are not square."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from distgan.networks.base import DiscriminatorSpec, GeneratorSpec
from distgan.networks.build import GENERATORS, build_discriminator, build_generator
from distgan.networks.generator_file import load_generator
from distgan.networks.sizes import BASES, DOUBLINGS, ImageSize, Pyramid, nearest_sizes, pyramid
from shards.reader import ShardReader
from tests.test_commands import call
from tests.worlds import run_world, train_run

SQUARES = (16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256)
SHAPES = (*SQUARES[:8], (96, 64), (28, 20), (16, 28), (80, 112))


def test_squares_are_multiples_of_powers_of_two() -> None:
    """Sides are b * 2^k with b from 3 to 7, between 16 and 256."""
    products = {b * 2**k for b in BASES for k in DOUBLINGS}
    assert sorted(side for side in products if 16 <= side <= 256) == list(SQUARES)
    assert [pyramid(side) for side in (32, 48, 224)] == [
        Pyramid(4, 4, 3), Pyramid(3, 3, 4), Pyramid(7, 7, 5),
    ]  # fmt: skip


def test_another_size_names_the_two_nearest() -> None:
    """Squares for a square, and shapes of the same number of doublings for others."""
    with pytest.raises(ValueError, match="50x50 pixels; the nearest sizes are 48x48 and 56x56"):
        pyramid(50)
    assert nearest_sizes(300, 300) == [(224, 224), (256, 256)]
    assert nearest_sizes(60, 100) == [(48, 96), (64, 96)]


@pytest.mark.parametrize("architecture", GENERATORS)
@pytest.mark.parametrize("size", SHAPES, ids=str)
def test_networks_of_every_family_fit_the_size(architecture: str, size: ImageSize) -> None:
    """Latents map to images, images to a logit, and every parameter gets a gradient."""
    spec = GeneratorSpec(
        architecture=architecture, image_size=size, channels=3, width=2, latent_dim=3
    )
    generator = build_generator(spec)
    discriminator = build_discriminator(spec, DiscriminatorSpec(width=2, minibatch_stddev=2))
    images = generator(torch.randn(2, 3))
    assert images.shape[1:] == spec.image_shape
    discriminator(images).sum().backward()
    assert all(p.grad is not None for net in (generator, discriminator) for p in net.parameters())


def test_channels_do_not_double_beyond_the_limit() -> None:
    """At 256 pixels and width 64 both networks stay below 30M parameters."""
    spec = GeneratorSpec(architecture="dcgan", image_size=256, channels=3, width=64, latent_dim=100)
    for network in (build_generator(spec), build_discriminator(spec)):
        assert sum(p.numel() for p in network.parameters()) < 30e6


def test_wide_grey_pictures_are_trained_sampled_exported_and_evaluated(tmp_path: Path) -> None:
    """From packing to the model card, images keep 24 rows and 40 columns."""
    noise = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    for number in range(24):
        pixels = noise.integers(0, 256, (30, 60), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{number}.png")
    shards, run = tmp_path / "shards", tmp_path / "run"
    code, said = call(
        "pack", tmp_path / "pictures", shards, "--size", "24x40", "--channels", 1, "--workers", 1
    )
    assert code == 0, said
    assert ShardReader(shards).image_shape == (1, 24, 40)
    assert "images: 24x40, 1 channel" in call("info", shards)[1], "height first, as in --size"
    (result,) = run_world(1, train_run, shards, run, ["train.kimg=0.024"])
    assert result["state"] == "done"
    assert json.loads((run / "generator.json").read_text())["generator"]["image_size"] == [24, 40]
    assert load_generator(run).sample(2).shape == (2, 1, 24, 40)
    for arguments in (
        ("sample", run, "--out", tmp_path / "grid.png", "--num", 4),
        ("evaluate", run, "--data", shards, "--num", 12),
        ("report", run),
        ("export", run, "--out", tmp_path / "out"),
    ):
        code, said = call(*arguments)
        assert code == 0, said
    assert "24x40" in (run / "report.html").read_text()
    with Image.open(tmp_path / "grid.png") as picture:
        assert picture.width > picture.height
