"""Residual networks (Miyato et al. 2018; Gulrajani et al. 2017) for 16 to 256 pixels.

generator      latents [B, Z] -> linear -> 4x4 maps -> UpBlock x k -> norm, ReLU, convolution
               -> tanh -> images [B, C, H, W]
discriminator  images [B, C, H, W] -> DownBlock x (k - 1) -> 8x8 maps -> two blocks -> ReLU
               -> sum over pixels -> linear -> logits [B]

Images of other sizes begin with 3 to 7 pixels in place of 4 (`sizes.py`).
"""

import itertools
from collections.abc import Callable

from torch import Tensor, nn

from distgan.networks.base import (
    Discriminator,
    DiscriminatorSpec,
    GeneratorNetwork,
    GeneratorSpec,
    MinibatchStddev,
)
from distgan.networks.conditioning import Block, Layers
from distgan.networks.sizes import ImageSize, pyramid


def init_resnet(module: nn.Module) -> None:
    """Draw Glorot-uniform weights (Gulrajani et al. 2017, appendix F) and set biases to zero."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        is_3x3 = isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3)
        nn.init.xavier_uniform_(module.weight, gain=2**0.5 if is_3x3 else 1.0)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class UpBlock(Block):
    """A residual block of the generator: [B, before, S, S] to [B, after, 2 S, 2 S]."""

    def __init__(self, before: int, after: int, *, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.residual = Layers(
            norm(before),
            nn.ReLU(),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(before, after, 3, padding=1, bias=False),
            norm(after),
            nn.ReLU(inplace=True),
            nn.Conv2d(after, after, 3, padding=1),
        )
        self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1), nn.Upsample(scale_factor=2))

    def forward(self, maps: Tensor, modulation: list[Tensor] | None = None) -> Tensor:
        return self.residual(maps, modulation) + self.shortcut(maps)


class ResNetGenerator(GeneratorNetwork):
    """ResNet generator: latents [B, latent_dim] to images [B, C, H, W] in [-1, 1].

    Miyato et al. 2018, table 4. It has 4 x width channels up to 16 pixels and half as many after
    each further doubling, which keeps it near 3.5M parameters at width 64.
    """

    def __init__(self, spec: GeneratorSpec) -> None:
        super().__init__(spec)
        height, width, num_doublings = pyramid(spec.image_size)
        self.start = (height, width)
        sizes = [4 * 2**i for i in range(num_doublings + 1)]  # of maps that begin with 4 pixels
        widths = [max(1, spec.width * 4 * min(16, size) // size) for size in sizes]
        self.project = nn.Linear(spec.latent_dim, widths[0] * height * width)
        self.layers = Layers(
            *(UpBlock(a, b, norm=self.norm) for a, b in itertools.pairwise(widths)),
            self.norm(widths[-1]),
            nn.ReLU(inplace=True),
            nn.Conv2d(widths[-1], spec.channels, 3, padding=1),
            nn.Tanh(),
        )
        self.apply(init_resnet)
        self.add_condition()


class DownBlock(nn.Module):
    """A residual block of the discriminator, [B, before, S, S] to [B, after, S or S / 2, ...].

    The first block of a network takes images, which do not pass through an activation.
    """

    def __init__(
        self, before: int, after: int, *, has_batch_norm: bool, is_first: bool, halves: bool
    ) -> None:
        super().__init__()
        pool = [nn.AvgPool2d(2)] if halves else []

        def activation(channels: int) -> list[nn.Module]:
            return [*([nn.BatchNorm2d(channels)] if has_batch_norm else []), nn.ReLU()]

        self.residual = nn.Sequential(
            *([] if is_first else activation(before)),
            nn.Conv2d(before, after, 3, padding=1, bias=not has_batch_norm),
            *activation(after),
            nn.Conv2d(after, after, 3, padding=1),
            *pool,
        )
        self.shortcut = nn.Sequential(
            *([nn.Conv2d(before, after, 1)] if before != after else []), *pool
        )

    def forward(self, maps: Tensor) -> Tensor:
        return self.residual(maps) + self.shortcut(maps)


class ResNetDiscriminator(Discriminator):
    """ResNet discriminator: blocks of 2 x width channels down to 8x8 pixels, then two more.

    Miyato et al. 2018, table 4.
    """

    def __init__(self, spec: DiscriminatorSpec, *, image_size: ImageSize, channels: int) -> None:
        super().__init__()
        self.packing = spec.packing
        width = 2 * spec.width
        height, width_of_maps, num_doublings = pyramid(image_size)
        num_halvings = num_doublings - 1
        blocks: list[nn.Module] = []
        before = channels * spec.packing
        for number in range(num_halvings + 2):
            if spec.minibatch_stddev and number == num_halvings + 1:
                blocks.append(MinibatchStddev(width, spec.minibatch_stddev))
            blocks.append(
                DownBlock(
                    before,
                    width,
                    has_batch_norm=spec.norm == "batch",
                    is_first=number == 0,
                    halves=number < num_halvings,
                )
            )
            before = width
        sum_pool = nn.AvgPool2d((2 * height, 2 * width_of_maps), divisor_override=1)
        self.layers = nn.Sequential(*blocks, nn.ReLU(), sum_pool)
        self.head = nn.Linear(width, 1)
        self.num_channels = width
        self.apply(init_resnet)
