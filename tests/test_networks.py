"""Networks, the moving average of weights, and random draws."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from distgan.networks.base import (
    ConditionalSpec,
    DiscriminatorSpec,
    GeneratorSpec,
    MinibatchStddev,
    images_at_once,
)
from distgan.networks.build import GENERATORS, build_discriminator, build_generator
from distgan.networks.ema import GeneratorEma, recalibrate_batch_norm
from distgan.networks.latents import generate
from distgan.networks.mixture import spec_from_dict
from distgan.runtime.randomness import normal, uniform

SPEC = GeneratorSpec(architecture="dcgan", image_size=32, channels=3, width=8, latent_dim=7)
SIZES: dict[str, Any] = {"image_size": 32, "channels": 3, "width": 4, "latent_dim": 7}


@pytest.mark.parametrize("size", [32, 64, 128])
@pytest.mark.parametrize("channels", [1, 3])
def test_shapes_and_ranges(size: int, channels: int) -> None:
    """Latents map to images in [-1, 1], images to a logit; every parameter gets a gradient."""
    spec = GeneratorSpec(
        architecture="dcgan", image_size=size, channels=channels, width=4, latent_dim=7
    )
    generator, discriminator = (
        build_generator(spec),
        build_discriminator(spec, DiscriminatorSpec(width=4)),
    )
    images = generator(torch.randn(3, 7))
    assert images.shape == (3, channels, size, size)
    assert images.abs().max() <= 1
    logits = discriminator(images)
    assert logits.shape == (3,)
    logits.sum().backward()
    assert all(
        p.grad is not None for network in (generator, discriminator) for p in network.parameters()
    )


@pytest.mark.parametrize("architecture", GENERATORS)
@pytest.mark.parametrize("norm", ["batch", "spectral", "none"])
@pytest.mark.parametrize("size", [32, 64])
def test_discriminator_variants_work_together(architecture: str, norm: str, size: int) -> None:
    """Norms, minibatch stddev and packing combine: one logit per pack, a gradient per parameter."""
    spec = GeneratorSpec(
        architecture=architecture, image_size=size, channels=3, width=4, latent_dim=7
    )
    discriminator = build_discriminator(
        spec, DiscriminatorSpec(width=4, norm=norm, minibatch_stddev=2, packing=2)
    )
    logits = discriminator(build_generator(spec)(torch.randn(8, 7)))
    assert logits.shape == (4,)
    logits.sum().backward()
    assert all(p.grad is not None for p in discriminator.parameters())


def test_resnet_has_about_as_many_parameters_as_a_dcgan() -> None:
    """At width 64 each network has 1M to 4.3M parameters, for 32 and for 64 pixels."""
    for size in (32, 64):
        spec = GeneratorSpec(
            architecture="resnet", image_size=size, channels=3, width=64, latent_dim=128
        )
        for network in (build_generator(spec), build_discriminator(spec)):
            assert 1e6 < sum(p.numel() for p in network.parameters()) < 4.3e6


@pytest.mark.parametrize("number", range(5))
def test_a_generator_is_refined_from_the_full_resolution_down(number: int) -> None:
    """At the full one the convolution makes the image, from half the width."""
    spec = replace(SPEC, refinements=number)
    generator = build_generator(spec)
    shapes: list[tuple[int, ...]] = []
    for layer in generator.modules():
        if isinstance(layer, torch.nn.Conv2d):
            layer.register_forward_hook(
                lambda _, maps, images: shapes.append((maps[0].shape[1], *images.shape[1:]))
            )
    images = generator(torch.randn(2, 7))
    every = [(32, 32, 4, 4), (16, 16, 8, 8), (8, 8, 16, 16), (4, 3, 32, 32)]
    assert shapes == every[len(every) - number :]
    assert images.shape == (2, 3, 32, 32) and images.abs().max() <= 1
    images.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in generator.parameters())
    assert spec_from_dict(spec.to_dict()) == spec


def test_description_of_a_generator_without_refinements_has_no_word_of_them() -> None:
    """So earlier versions can read it."""
    assert not {"refinements", "bits"} & set(SPEC.to_dict())


@pytest.mark.parametrize("architecture", GENERATORS)
def test_self_modulation_lets_latents_act_on_the_norms(architecture: str) -> None:
    """At first it changes nothing; then it acts, also beside labels, and every weight is used."""
    usual = GeneratorSpec(architecture=architecture, **SIZES)
    plain = build_generator(usual)
    for spec in (
        replace(usual, code_dim=3),
        ConditionalSpec(
            architecture=architecture, **SIZES, code_dim=3, classes=("a", "b"), shares=(0.5, 0.5)
        ),
    ):
        network: Any = build_generator(spec)
        latents, labels = torch.randn(4, 7), [torch.tensor([0, 1, 0, 1])] * bool(spec.num_labels)
        expected = plain(latents).detach()
        torch.testing.assert_close(network(latents, *labels), expected)
        torch.nn.init.normal_(network.modulation.weight)
        images = network(latents, *labels)
        assert float((images.detach() - expected).abs().max()) > 0.01
        images.square().sum().backward()
        assert all(p.grad is not None and p.grad.any() for p in network.parameters())
        assert spec_from_dict(spec.to_dict()) == spec
    assert "code_dim" not in usual.to_dict()


@pytest.mark.parametrize("norm", ["batch", "spectral", "none"])
def test_there_is_a_refinement_at_each_resolution(norm: str) -> None:
    """The first has half the width; other layers stay the same; every parameter gets a gradient."""
    refined = build_discriminator(
        SPEC, DiscriminatorSpec(width=8, norm=norm, minibatch_stddev=2, packing=2, refinements=4)
    )
    shapes: list[tuple[int, ...]] = []
    for layer in refined.layers:
        if isinstance(layer, torch.nn.Conv2d) and layer.kernel_size == (3, 3):
            layer.register_forward_hook(lambda _, __, output: shapes.append(tuple(output.shape)))
    logits = refined(torch.randn(8, 3, 32, 32))
    assert shapes == [
        (4, 4, 32, 32),
        (4, 8, 16, 16),
        (4, 16, 8, 8),
        (4, 32, 4, 4),
    ] and logits.shape == (4,)
    logits.sum().backward()
    assert all(p.grad is not None for p in refined.parameters())
    plain = build_discriminator(
        SPEC, DiscriminatorSpec(width=8, norm=norm, minibatch_stddev=2, packing=2)
    )
    # The first strided convolution has 4 input channels now, in place of two images of 3.
    of_plain = {tuple(p.shape) for p in plain.parameters()} - {(8, 6, 4, 4)}
    assert of_plain < {tuple(p.shape) for p in refined.parameters()}


@pytest.mark.parametrize("size", [32, 64, 128])
def test_he_weights_preserve_the_scale_without_norm(size: int) -> None:
    """The mean square of features stays near that of the input; N(0, 0.02) makes it vanish."""
    spec = GeneratorSpec(architecture="dcgan", image_size=size, channels=3, width=64, latent_dim=7)
    images = torch.randn(16, 3, size, size, generator=torch.Generator().manual_seed(0))
    powers = {}
    for init in ("normal", "he"):
        discriminator = build_discriminator(spec, DiscriminatorSpec(norm="none", init=init))
        with torch.no_grad():
            powers[init] = float(discriminator(images, with_features=True)[1].square().mean())
    assert 0.3 < powers["he"] < 2
    assert powers["normal"] < 0.02


def test_spectral_norm_bounds_every_layer() -> None:
    """After some forward passes the largest singular value of each weight is 1."""
    discriminator = build_discriminator(SPEC, DiscriminatorSpec(width=8, norm="spectral"))
    for _ in range(50):
        discriminator(torch.randn(4, 3, 32, 32))
    discriminator.eval()
    for module in discriminator.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            largest = torch.linalg.matrix_norm(module.weight.flatten(1), ord=2)
            assert largest.item() == pytest.approx(1, rel=0.02)


def test_minibatch_stddev_compares_within_groups() -> None:
    """A feature gets its weight times the stddev of the group: 0 of equal maps, 1 of -1 and 1."""
    maps = torch.ones(4, 3, 2, 2)
    maps[2] = -1
    module = MinibatchStddev(3, group=2)
    added = module(maps) - maps
    torch.testing.assert_close(added[:2], torch.zeros(2, 3, 2, 2), atol=1e-4, rtol=0)
    torch.testing.assert_close(
        added[2:], module.weight[None, :, None, None].expand(2, 3, 2, 2), atol=1e-4, rtol=0
    )


def test_packing_stacks_consecutive_images() -> None:
    """The logit of a pack is that of its images stacked as channels."""
    packed = build_discriminator(SPEC, DiscriminatorSpec(width=8, norm="none", packing=2))
    images = torch.randn(4, 3, 32, 32)
    wide = packed.layers(images.view(2, 6, 32, 32)).flatten(1)
    torch.testing.assert_close(packed(images), packed.head(wide).squeeze(1))


def test_dcgan_has_the_size_of_the_paper() -> None:
    """At 32 pixels and width 64: 1.07M and 0.66M parameters, weights from N(0, 0.02)."""
    spec = GeneratorSpec(architecture="dcgan", image_size=32, channels=3, width=64, latent_dim=100)
    generator, discriminator = build_generator(spec), build_discriminator(spec)
    sizes = [sum(p.numel() for p in network.parameters()) for network in (generator, discriminator)]
    assert [round(size / 1e6, 2) for size in sizes] == [1.07, 0.66]
    assert generator.project.weight.std().item() == pytest.approx(0.02, rel=0.01)


def test_weights_depend_on_the_seed_alone() -> None:
    """Equal seeds give equal weights, whatever was drawn before; other seeds give other weights."""
    spec = GeneratorSpec(architecture="dcgan", image_size=32, channels=1, width=4, latent_dim=7)
    first = build_generator(spec, seed=1).project.weight
    torch.rand(5)
    assert torch.equal(first, build_generator(spec, seed=1).project.weight)
    assert not torch.equal(first, build_generator(spec, seed=2).project.weight)


def test_draws_depend_on_the_position() -> None:
    """Slices draw what the whole does; seeds and purposes differ; moments are those of N(0, 1)."""
    positions = torch.arange(20_000)
    whole = normal((10,), positions, seed=3, purpose="latents")
    torch.testing.assert_close(
        whole[500:600], normal((10,), positions[500:600], seed=3, purpose="latents"), rtol=0, atol=0
    )
    assert not torch.equal(whole, normal((10,), positions, seed=4, purpose="latents"))
    assert not torch.equal(whole, normal((10,), positions, seed=3, purpose="flip"))
    moments = torch.tensor([whole.mean(), whole.square().mean(), whole.pow(4).mean()])
    torch.testing.assert_close(moments, torch.tensor([0.0, 1.0, 3.0]), atol=0.05, rtol=0)
    assert torch.corrcoef(whole.T).fill_diagonal_(0).abs().max() < 0.03
    fractions = uniform((), positions, seed=0, purpose="flip").histc(10, 0, 1) / len(positions)
    torch.testing.assert_close(fractions, torch.full((10,), 0.1), atol=0.01, rtol=0)


def test_ema_moves_halfway_in_its_halflife() -> None:
    """Early in training the half-life is 1/20 of the images seen, unless weights were loaded."""
    spec = GeneratorSpec(architecture="dcgan", image_size=32, channels=1, width=4, latent_dim=7)
    raw = build_generator(spec, seed=0)
    ema = GeneratorEma(raw, halflife_kimg=1.0)
    start = ema.generator.project.weight.clone()
    torch.nn.init.constant_(raw.project.weight, 1.0)
    for _ in range(10):
        ema.update(list(raw.parameters()), batch_size=100, images_seen=1_000_000)
    torch.testing.assert_close(ema.generator.project.weight, (start + 1.0) / 2)
    young = GeneratorEma(build_generator(spec, seed=0), halflife_kimg=1.0)
    young.update(list(raw.parameters()), batch_size=100, images_seen=2_000)
    torch.testing.assert_close(young.generator.project.weight, (start + 1.0) / 2)
    trained = GeneratorEma(build_generator(spec, seed=0), halflife_kimg=1.0, ramps_up=False)
    for _ in range(10):
        trained.update(list(raw.parameters()), batch_size=100, images_seen=2_000)
    torch.testing.assert_close(trained.generator.project.weight, (start + 1.0) / 2)


def test_large_images_are_made_in_smaller_batches_that_are_the_same_images() -> None:
    """256 images of 256 pixels would need gigabytes for the maps of a layer."""
    sizes = []
    for size, at_once in ((32, 256), (64, 256), ((64, 96), 170), (256, 16)):
        spec = GeneratorSpec(
            architecture="dcgan", image_size=size, channels=1, width=4, latent_dim=7
        )
        generator = build_generator(spec).eval()
        assert images_at_once(generator) == at_once
    generator.register_forward_hook(lambda _, __, images: sizes.append(len(images)))
    latents = torch.randn(20, 7)
    images = generate(generator, latents)
    assert sizes == [16, 4]
    torch.testing.assert_close(images[16:], generator(latents[16:]), rtol=0, atol=1e-5)
    sizes.clear()
    recalibrate_batch_norm(generator, latents)
    assert sizes == [10, 10]


def test_recalibrated_statistics_are_those_of_the_latents() -> None:
    """Running statistics become the mean and variance over the latents; momentum stays the same."""
    generator = build_generator(
        GeneratorSpec(architecture="dcgan", image_size=32, channels=1, width=4, latent_dim=7)
    ).eval()
    latents = torch.randn(64, 7)
    recalibrate_batch_norm(generator, latents)
    maps = generator.project(latents).unflatten(1, (-1, 4, 4))
    norm = generator.layers[0]
    torch.testing.assert_close(norm.running_mean, maps.mean((0, 2, 3)))
    torch.testing.assert_close(norm.running_var, maps.var((0, 2, 3)))
    assert norm.momentum == 0.1
    assert not norm.training
