"""DCGAN generator and discriminator (Radford et al. 2016) for 32, 64 and 128 pixels, and residual ones.

generator      latents [B, Z] -> project to 4x4 -> (transposed convolution, norm, ReLU) x k -> tanh -> [B, C, H, W]
discriminator  images [B, C, H, W] -> (strided convolution, norm, leaky ReLU) x k -> 4x4 -> one logit [B],
               and before each step, where asked for, a 3x3 convolution and a leaky ReLU

Needs torch alone, so that an exported generator loads anywhere.
"""

import itertools

import torch
from torch import Tensor, nn

from distgan.networks.base import (
    Discriminator,
    DiscriminatorSpec,
    GeneratorSpec,
    MinibatchStddev,
    num_doublings,
)
from distgan.networks.convolutions import DownConv, UpConv


def init_dcgan(module: nn.Module) -> None:
    """Weights from N(0, 0.02), norm scales from N(1, 0.02), biases zero (Radford et al. 2016, section 4)."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
        nn.init.normal_(module.weight, 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)


def init_he(module: nn.Module) -> None:
    """Weights that keep the spread of maps through leaky ReLUs of slope 0.2 (He et al. 2015, equation 15).

    Those of N(0, 0.02) leave it to a norm layer to make up for what they take away.
    """
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, 0.2)


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
                UpConv(before, after, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(inplace=True),
            ]
        layers += [UpConv(widths[-1], spec.channels), nn.Tanh()]
        self.layers = nn.Sequential(*layers)
        self.apply(init_dcgan)

    def forward(self, latents: Tensor) -> Tensor:
        """latents [B, latent_dim] -> images [B, C, H, W] in [-1, 1]."""
        seed_map = self.project(latents).unflatten(1, (-1, 4, 4))
        return self.layers(seed_map.contiguous(memory_format=torch.channels_last))


class DCGANDiscriminator(Discriminator):
    """Strided convolutions, the first and the last without norm, and where asked for 3x3 ones in turn with them.

    Those begin at full resolution (Miyato et al. 2018, table 3), there with half the width, and have no norm.
    """

    def __init__(self, spec: DiscriminatorSpec, *, image_size: int, channels: int) -> None:
        super().__init__()
        self.packing = spec.packing
        widths = [spec.width * 2**i for i in range(num_doublings(image_size))]
        seen = channels * spec.packing
        layers: list[nn.Module] = []
        for number, width in enumerate(
            [max(1, spec.width // 2), *widths]
        ):  # 0 is the full resolution
            if number > 0:
                is_normed = spec.norm == "batch" and number > 1
                layers.append(DownConv(seen, width, bias=not is_normed))
                if spec.minibatch_stddev and number == len(widths):
                    layers.append(MinibatchStddev(width, spec.minibatch_stddev))
                layers += [nn.BatchNorm2d(width)] if is_normed else []
                layers.append(nn.LeakyReLU(0.2, inplace=True))
                seen = width
            if number < spec.refinements:
                layers += [nn.Conv2d(seen, width, 3, padding=1), nn.LeakyReLU(0.2, inplace=True)]
                seen = width
        self.layers = nn.Sequential(*layers)
        # A 4x4 convolution of a 4x4 map to one number is this matrix product.
        self.head = nn.Linear(widths[-1] * 16, 1)
        self.apply(init_dcgan)
        if spec.init == "he":
            self.layers.apply(init_he)
        self.normalise(spec.norm)
