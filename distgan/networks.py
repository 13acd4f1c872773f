"""DCGAN generator and discriminator (Radford et al. 2016) for 32, 64 and 128 pixels.

generator      latents [B, Z] -> project to 4x4 -> (transposed convolution, norm, ReLU) x k -> tanh -> [B, C, H, W]
discriminator  images [B, C, H, W] -> (strided convolution, norm, leaky ReLU) x k -> 4x4 -> one logit [B]

Needs torch alone, so that an exported generator loads anywhere.
"""

import itertools
import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

IMAGE_SIZES = (32, 64, 128)


@dataclass(frozen=True)
class GeneratorSpec:
    """All that is needed to build a generator again."""

    architecture: str
    image_size: int
    channels: int
    width: int
    latent_dim: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def num_doublings(image_size: int) -> int:
    """How often 4 pixels double to the image size; raises ValueError for a size that is not offered."""
    if image_size not in IMAGE_SIZES:
        raise ValueError(
            f"images of {image_size} pixels; the networks are built for {', '.join(map(str, IMAGE_SIZES))}"
        )
    return int(math.log2(image_size)) - 2


def init_dcgan(module: nn.Module) -> None:
    """Weights from N(0, 0.02), norm scales from N(1, 0.02), biases zero (Radford et al. 2016, section 4)."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
        nn.init.normal_(module.weight, 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)


class DCGANGenerator(nn.Module):
    """latents [B, latent_dim] -> images [B, C, H, W] in [-1, 1]."""

    def __init__(self, spec: GeneratorSpec) -> None:
        super().__init__()
        doublings = num_doublings(spec.image_size)
        widths = [spec.width * 2 ** (doublings - 1 - i) for i in range(doublings)]
        self.latent_dim = spec.latent_dim
        # A 4x4 transposed convolution of a 1x1 input is this matrix product.
        self.project = nn.Linear(spec.latent_dim, widths[0] * 16, bias=False)
        layers: list[nn.Module] = [nn.BatchNorm2d(widths[0]), nn.ReLU(inplace=True)]
        for before, after in itertools.pairwise(widths):
            layers += [
                nn.ConvTranspose2d(before, after, 4, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(inplace=True),
            ]
        layers += [nn.ConvTranspose2d(widths[-1], spec.channels, 4, stride=2, padding=1), nn.Tanh()]
        self.layers = nn.Sequential(*layers)
        self.apply(init_dcgan)

    def forward(self, latents: Tensor) -> Tensor:
        """latents [B, latent_dim] -> images [B, C, H, W] in [-1, 1]."""
        seed_map = self.project(latents).unflatten(1, (-1, 4, 4))
        return self.layers(seed_map.contiguous(memory_format=torch.channels_last))


class DCGANDiscriminator(nn.Module):
    """images [B, C, H, W] in [-1, 1] -> logits [B], above zero where the image is held to be real."""

    def __init__(self, *, image_size: int, channels: int, width: int) -> None:
        super().__init__()
        widths = [width * 2**i for i in range(num_doublings(image_size))]
        layers: list[nn.Module] = [
            nn.Conv2d(channels, widths[0], 4, stride=2, padding=1),
            nn.LeakyReLU(0.2, inplace=True),
        ]
        for before, after in itertools.pairwise(widths):
            layers += [
                nn.Conv2d(before, after, 4, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.LeakyReLU(0.2, inplace=True),
            ]
        self.layers = nn.Sequential(*layers)
        # A 4x4 convolution of a 4x4 map to one number is this matrix product.
        self.judge = nn.Linear(widths[-1] * 16, 1)
        self.apply(init_dcgan)

    def forward(self, images: Tensor) -> Tensor:
        """images [B, C, H, W] in [-1, 1] -> logits [B]."""
        return self.judge(self.layers(images).flatten(1)).squeeze(1)


NETWORKS: dict[str, tuple[type[DCGANGenerator], type[DCGANDiscriminator]]] = {
    "dcgan": (DCGANGenerator, DCGANDiscriminator),
}


def build_generator(spec: GeneratorSpec, *, seed: int = 0) -> nn.Module:
    """A generator with weights drawn from the seed, channels last in memory."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return NETWORKS[spec.architecture][0](spec).to(memory_format=torch.channels_last)


def build_discriminator(spec: GeneratorSpec, *, width: int, seed: int = 0) -> nn.Module:
    """The discriminator that goes with a generator, weights drawn from the seed, channels last in memory."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1)  # not the generator's draws over again
        network = NETWORKS[spec.architecture][1](image_size=spec.image_size, channels=spec.channels, width=width)
        return network.to(memory_format=torch.channels_last)
