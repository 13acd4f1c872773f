"""The fast convolutions compute what PyTorch's do."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, conv_transpose2d

from distgan.losses.adversarial import ADVERSARIAL
from distgan.networks import convolutions
from distgan.networks.base import DiscriminatorSpec, GeneratorSpec
from distgan.networks.build import build_discriminator, build_generator
from distgan.networks.convolutions import (
    Col2Im,
    DownConv,
    Im2Col,
    UpConv,
    as_matrix,
    use_fast_convolutions,
)
from distgan.networks.dcgan import DCGANDiscriminator
from distgan.runtime.accelerator import keep_freed_memory

DOUBLE = torch.float64
NUM_STEPS = 3
SPEC = GeneratorSpec(architecture="dcgan", image_size=32, channels=3, width=4, latent_dim=8)


def randn(*shape: int) -> Tensor:
    """Return channels-last normal numbers in float64 that require a gradient."""
    numbers = torch.randn(shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(sum(shape)))
    return numbers.to(memory_format=torch.channels_last).requires_grad_()


def down(images: Tensor, weight: Tensor) -> Tensor:
    """Compute a strided convolution as a product, in any precision."""
    return (Im2Col.apply(images) @ as_matrix(weight).t()).permute(0, 3, 1, 2)


def up(images: Tensor, weight: Tensor) -> Tensor:
    """Compute a transposed convolution as a product, in any precision."""
    return Col2Im.apply(images.permute(0, 2, 3, 1) @ as_matrix(weight))


@pytest.mark.parametrize(("height", "width"), [(4, 4), (6, 2)])
def test_products_equal_the_convolutions(height: int, width: int) -> None:
    """In float64 values, gradients, and the second-order gradients of penalties agree."""
    small, large, weight = (
        randn(2, 5, height, width),
        randn(2, 3, 2 * height, 2 * width),
        randn(5, 3, 4, 4),
    )
    for ours, theirs, images in (
        (down, conv2d, large),
        (up, conv_transpose2d, small),
    ):
        expected = theirs(images, weight, stride=2, padding=1)
        torch.testing.assert_close(ours(images, weight), expected)
        assert ours(images, weight).is_contiguous(memory_format=torch.channels_last)
        upstream = torch.randn_like(expected)
        for function in (ours, theirs):
            where = {} if function is ours else {"stride": 2, "padding": 1}
            first = torch.autograd.grad(
                function(images, weight, **where), (images, weight), upstream, create_graph=True
            )
            second = torch.autograd.grad(sum(g.square().sum() for g in first), (images, weight))
            if function is ours:
                kept = [*first, *second]
            else:
                for mine, others in zip(kept, [*first, *second], strict=True):
                    torch.testing.assert_close(mine, others)


def run_steps(
    monkeypatch: pytest.MonkeyPatch, *, dtype: torch.dtype | None, most_pixels: int = 0
) -> list[Tensor]:
    """Return losses and gradients of three steps, in float32 or autocast to `dtype`."""
    monkeypatch.setattr(convolutions, "MAX_PIXELS", most_pixels)
    loss, draws = ADVERSARIAL["bce"], torch.Generator().manual_seed(3)
    spec = GeneratorSpec(architecture="dcgan", image_size=32, channels=3, width=16, latent_dim=16)
    generator, discriminator = (
        build_generator(spec),
        build_discriminator(spec, DiscriminatorSpec(width=16)),
    )
    optimizers = [
        torch.optim.SGD(network.parameters(), lr=0.05) for network in (generator, discriminator)
    ]
    seen: list[Tensor] = []
    for _ in range(NUM_STEPS):
        reals = (torch.rand(16, 3, 32, 32, generator=draws) * 2 - 1).to(
            memory_format=torch.channels_last
        )
        latents = torch.randn(16, 16, generator=draws)
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            fakes = generator(latents)
            on_reals, on_fakes = discriminator(reals).float(), discriminator(fakes.detach()).float()
            loss_d = loss.real_loss(on_reals, 0.0) + loss.fake_loss(on_fakes)
            discriminator.zero_grad()
            loss_d.backward()
            gradients = [p.grad.clone() for p in discriminator.parameters()]
            loss_g = loss.generator_loss(discriminator(fakes).float())
            generator.zero_grad()
            loss_g.backward()
        seen += [
            loss_d.detach(),
            loss_g.detach(),
            *gradients,
            *(p.grad.clone() for p in generator.parameters()),
        ]
        for optimizer in optimizers:
            optimizer.step()
    return seen


def gradient_errors(seen: list[Tensor], reference: list[Tensor]) -> list[float]:
    """Return the relative distance of each step's whole gradient from the reference's."""
    num = len(reference) // NUM_STEPS
    errors = []
    for first in range(0, len(reference), num):
        ours, theirs = (
            torch.cat([gradient.flatten() for gradient in tensors[first + 2 : first + num]])
            for tensors in (seen, reference)
        )
        errors.append(float((ours - theirs).norm() / theirs.norm()))
    return errors


@pytest.mark.parametrize("most_pixels", [16, 64])
def test_bf16_products_are_about_as_accurate_as_the_library(
    most_pixels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In each step the bf16 gradient is at most twice as far from float32 as PyTorch's own.

    PyTorch rounds differently on every instruction set, which changes the ratio by a half.
    """
    reference = run_steps(monkeypatch, dtype=None)
    library = gradient_errors(run_steps(monkeypatch, dtype=torch.bfloat16), reference)
    products = gradient_errors(
        run_steps(monkeypatch, dtype=torch.bfloat16, most_pixels=most_pixels), reference
    )
    assert products != library
    assert all(ours < 2 * theirs for ours, theirs in zip(products, library, strict=True))


def test_fp32_steps_use_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without autocast every loss and gradient is that of PyTorch's kernels, to the last bit."""
    reference = run_steps(monkeypatch, dtype=None)
    for seen, expected in zip(
        run_steps(monkeypatch, dtype=None, most_pixels=64), reference, strict=True
    ):
        assert torch.equal(seen, expected)


@pytest.mark.parametrize("norm", ["batch", "spectral", "none"])
def test_only_matching_convolutions_are_replaced(norm: str) -> None:
    """4x4 convolutions of stride 2 are; 3x3 ones and a transposed one with bias are not."""
    discriminator = build_discriminator(SPEC, DiscriminatorSpec(norm=norm, width=4, refinements=2))
    generator = build_generator(SPEC)
    for network, plain, fast in (
        (discriminator, nn.Conv2d, DownConv),
        (generator, nn.ConvTranspose2d, UpConv),
    ):
        layers = [layer for layer in network.layers if isinstance(layer, plain)]
        strided = [layer for layer in layers if layer.stride == (2, 2)]
        assert [layer for layer in layers if isinstance(layer, fast)] == [
            layer for layer in strided if fast is DownConv or layer.bias is None
        ]
        assert len(strided) == 3


def test_replacing_keeps_names_weights_and_outputs() -> None:
    """A network and its copy with fast convolutions have equal states and, in float32, outputs."""
    plain = DCGANDiscriminator(DiscriminatorSpec(width=4), image_size=32, channels=3)
    fast = copy.deepcopy(plain)
    use_fast_convolutions(fast)
    before, after = plain.state_dict(), fast.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(plain(images), fast(images))


def test_freed_memory_is_reused() -> None:
    """Allocating and freeing a large tensor again and again causes few page faults."""
    import resource

    keep_freed_memory()
    for _ in range(3):
        torch.ones(2**23)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(2**23)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 5 * 2**23 * 4 // 4096 // 2
