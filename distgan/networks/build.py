"""Build networks from their specs, with weights drawn from a seed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from distgan.networks.base import (
    ConditionalSpec,
    Discriminator,
    DiscriminatorSpec,
    GeneratorSpec,
)
from distgan.networks.conditioning import ClassTable
from distgan.networks.convolutions import use_fast_convolutions
from distgan.networks.dcgan import DCGANDiscriminator, DCGANGenerator
from distgan.networks.mixture import Mixture, MixtureSpec
from distgan.networks.resnet import ResNetDiscriminator, ResNetGenerator

# By the value of `networks.architecture`.
GENERATORS: dict[str, Callable[[GeneratorSpec], nn.Module]] = {
    "dcgan": DCGANGenerator,
    "resnet": ResNetGenerator,
}
DISCRIMINATORS: dict[str, Callable[..., Discriminator]] = {
    "dcgan": DCGANDiscriminator,
    "resnet": ResNetDiscriminator,
}

DEFAULT_DISCRIMINATOR = DiscriminatorSpec()


def build_generator(spec: GeneratorSpec, *, seed: int = 0) -> nn.Module:
    """Return a generator in channels-last memory format.

    Raises ValueError for an image size that the networks do not support.
    """
    if isinstance(spec, MixtureSpec):
        return Mixture(spec, [build_generator(spec.part, seed=seed) for _ in spec.classes])
    with seeded(seed):
        network = GENERATORS[spec.architecture](spec)
    use_fast_convolutions(network)
    return network.to(memory_format=torch.channels_last)


def build_discriminator(
    images: GeneratorSpec, spec: DiscriminatorSpec = DEFAULT_DISCRIMINATOR, *, seed: int = 0
) -> Discriminator:
    """Return a discriminator of a generator's images, in channels-last memory format."""
    with seeded(seed + 1):  # other random numbers than the generator's
        network = DISCRIMINATORS[images.architecture](
            spec, image_size=images.image_size, channels=images.channels
        )
        network.san = spec.san
        if isinstance(images, ConditionalSpec):
            network.add_projection(images)
        use_fast_convolutions(network)  # before spectral norm, which changes the modules' classes
        if spec.norm == "spectral":
            apply_spectral_norm(network)
    return network.to(memory_format=torch.channels_last)


def apply_spectral_norm(network: nn.Module) -> None:
    """Divide every weight by its largest singular value (Miyato et al. 2018)."""
    for module in list(network.modules()):
        if isinstance(module, nn.Conv2d | nn.Linear | ClassTable):
            nn.utils.parametrizations.spectral_norm(module)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed PyTorch's random numbers in the block, and restore their state afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
