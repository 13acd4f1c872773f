"""Networks by the word of `networks.architecture`, with weights drawn from a seed."""

import torch
from torch import nn

from distgan.networks.base import Discriminator, DiscriminatorSpec, GeneratorSpec
from distgan.networks.dcgan import DCGANDiscriminator, DCGANGenerator
from distgan.networks.resnet import ResNetDiscriminator, ResNetGenerator

NETWORKS: dict[str, tuple[type[nn.Module], type[Discriminator]]] = {
    "dcgan": (DCGANGenerator, DCGANDiscriminator),
    "resnet": (ResNetGenerator, ResNetDiscriminator),
}

DEFAULT_DISCRIMINATOR = DiscriminatorSpec()


def build_generator(spec: GeneratorSpec, *, seed: int = 0) -> nn.Module:
    """A generator with weights drawn from the seed, channels last in memory."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return NETWORKS[spec.architecture][0](spec).to(memory_format=torch.channels_last)


def build_discriminator(
    spec: GeneratorSpec, discriminator: DiscriminatorSpec = DEFAULT_DISCRIMINATOR, *, seed: int = 0
) -> Discriminator:
    """The discriminator that goes with a generator, weights drawn from the seed, channels last in memory."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1)  # not the generator's draws over again
        network = NETWORKS[spec.architecture][1](
            discriminator, image_size=spec.image_size, channels=spec.channels
        )
        return network.to(memory_format=torch.channels_last)
