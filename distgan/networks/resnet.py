"""Residual generator and discriminator (Miyato et al. 2018; Gulrajani et al. 2017)."""

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


def init_resnet(module: nn.Module) -> None:
    """Glorot's uniform weights (Gulrajani et al. 2017, appendix F), biases zero."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.xavier_uniform_(
            module.weight, gain=2**0.5 if getattr(module, "kernel_size", 1) == (3, 3) else 1.0
        )
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class UpBlock(nn.Module):
    """Residual block of the generator: [B, before, S, S] -> [B, after, 2 S, 2 S]."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.BatchNorm2d(before),
            nn.ReLU(),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(before, after, 3, padding=1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(inplace=True),
            nn.Conv2d(after, after, 3, padding=1),
        )
        self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1), nn.Upsample(scale_factor=2))

    def forward(self, maps: Tensor) -> Tensor:
        """Maps twice as large."""
        return self.residual(maps) + self.shortcut(maps)


class ResNetGenerator(nn.Module):
    """latents [B, latent_dim] -> images [B, C, H, W] in [-1, 1] (Miyato et al. 2018, table 4).

    4 x width channels up to 16 pixels, then half as many at each doubling, which keeps it near 3.5M parameters.
    """

    def __init__(self, spec: GeneratorSpec) -> None:
        super().__init__()
        sizes = [4 * 2**i for i in range(num_doublings(spec.image_size) + 1)]
        widths = [max(1, spec.width * 4 * min(16, size) // size) for size in sizes]
        self.latent_dim = spec.latent_dim
        self.project = nn.Linear(spec.latent_dim, widths[0] * 16)
        self.layers = nn.Sequential(
            *(UpBlock(before, after) for before, after in itertools.pairwise(widths)),
            nn.BatchNorm2d(widths[-1]),
            nn.ReLU(inplace=True),
            nn.Conv2d(widths[-1], spec.channels, 3, padding=1),
            nn.Tanh(),
        )
        self.apply(init_resnet)

    def forward(self, latents: Tensor) -> Tensor:
        """latents [B, latent_dim] -> images [B, C, H, W] in [-1, 1]."""
        seed_map = self.project(latents).unflatten(1, (-1, 4, 4))
        return self.layers(seed_map.contiguous(memory_format=torch.channels_last))


class DownBlock(nn.Module):
    """Residual block of the discriminator: [B, before, S, S] -> [B, after, S / 2, S / 2], or the same size."""

    def __init__(
        self, before: int, after: int, *, has_batch_norm: bool, is_first: bool, shrinks: bool
    ) -> None:
        super().__init__()
        shrink = [nn.AvgPool2d(2)] if shrinks else []

        def activation(channels: int) -> list[nn.Module]:
            return [*([nn.BatchNorm2d(channels)] if has_batch_norm else []), nn.ReLU()]

        self.residual = nn.Sequential(
            *([] if is_first else activation(before)),
            nn.Conv2d(before, after, 3, padding=1, bias=not has_batch_norm),
            *activation(after),
            nn.Conv2d(after, after, 3, padding=1),
            *shrink,
        )
        self.shortcut = nn.Sequential(
            *([nn.Conv2d(before, after, 1)] if before != after else []), *shrink
        )

    def forward(self, maps: Tensor) -> Tensor:
        """Maps half as large, or of the same size."""
        return self.residual(maps) + self.shortcut(maps)


class ResNetDiscriminator(Discriminator):
    """Residual blocks of 2 x width channels down to 8x8, two more there, then a sum over places (as above)."""

    def __init__(self, spec: DiscriminatorSpec, *, image_size: int, channels: int) -> None:
        super().__init__()
        self.packing = spec.packing
        shrinking, width, has_batch_norm = (
            num_doublings(image_size) - 1,
            2 * spec.width,
            spec.norm == "batch",
        )
        blocks: list[nn.Module] = []
        for number in range(shrinking + 2):
            before = channels * spec.packing if number == 0 else width
            if spec.minibatch_stddev and number == shrinking + 1:
                blocks.append(MinibatchStddev(width, spec.minibatch_stddev))
            blocks.append(
                DownBlock(
                    before,
                    width,
                    has_batch_norm=has_batch_norm,
                    is_first=number == 0,
                    shrinks=number < shrinking,
                )
            )
        self.layers = nn.Sequential(*blocks, nn.ReLU(), nn.AvgPool2d(8, divisor_override=1))
        self.head = nn.Linear(width, 1)
        self.apply(init_resnet)
        self.normalise(spec.norm)
