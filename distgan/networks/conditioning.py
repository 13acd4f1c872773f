"""Labels and latents that modulate every norm of a generator; labels in a discriminator.

generator      condition c [B, D]: the embedding of the label, a code made of the latent, or both
               maps -> batch norm -> (1 + A c) * maps + B c, where A and B begin at zero
discriminator  images -> maps h -> logit = w.h + e_y.(h summed over positions)

Projection: Miyato and Koyama 2018, equation 4. Conditional batch norm: Dumoulin et al. 2017.
Self-modulation: Chen et al. 2019.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, linear

from distgan.runtime.randomness import uniform

GOLDEN_RATIO = 0.6180339887498949


class ClassTable(nn.Module):
    """A learned vector for each class: labels int64 [B] to vectors [B, D], with dense gradients.

    Labels may also be weights of the classes, float [B, K], as between two of them. If it `blends`,
    vectors are multiplied by `strength`, from 0 to 1.
    """

    strength: Tensor | None

    def __init__(self, num_classes: int, dim: int, *, std: float, blends: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_classes, dim) * std)
        self.register_buffer("strength", torch.ones(()) if blends else None)

    def forward(self, labels: Tensor) -> Tensor:
        if labels.is_floating_point():
            vectors = labels @ self.weight
        else:
            vectors = embedding(labels, self.weight)
        return vectors if self.strength is None else vectors * self.strength


class Modulation(nn.Module):
    """The scales and shifts of several norms, made from the condition by one product.

    `channels` are those of the norms. At first all scales are 1 and all shifts 0.
    """

    start: Tensor

    def __init__(self, channels: Sequence[int], condition_dim: int) -> None:
        super().__init__()
        self.sizes = [size for each in channels for size in (each, each)]
        start = [torch.full((size,), 1.0 - i % 2) for i, size in enumerate(self.sizes)]
        self.weight = nn.Parameter(torch.zeros(sum(self.sizes), condition_dim))
        self.register_buffer("start", torch.cat(start), persistent=False)

    def forward(self, condition: Tensor) -> list[Tensor]:
        """Return scales [B, C], then shifts [B, C], of each norm for the condition [B, D]."""
        return list(linear(condition, self.weight, self.start).split(self.sizes, 1))


class ConditionalNorm(nn.Module):
    """Batch norm, the `number`-th of its network, whose result is scaled and shifted."""

    def __init__(self, channels: int, number: int) -> None:
        super().__init__()
        self.norm, self.number = nn.BatchNorm2d(channels), number

    def forward(self, maps: Tensor, modulation: list[Tensor]) -> Tensor:
        """Return maps [B, C, H, W], with scales and shifts as `Modulation` returns them."""
        maps = self.norm(maps)
        scales, shifts = (
            each.to(maps.dtype)[:, :, None, None]
            for each in modulation[2 * self.number : 2 * self.number + 2]
        )
        return torch.addcmul(shifts, maps, scales)


class Block(nn.Module):
    """Base class of blocks with `Layers`: they take maps and, if there is any, the modulation."""


class Layers(nn.Sequential):
    """Layers one after another; conditional norms and blocks of layers also take the modulation."""

    def forward(self, maps: Tensor, modulation: list[Tensor] | None = None) -> Tensor:
        for layer in self:
            takes_both = modulation is not None and isinstance(layer, ConditionalNorm | Block)
            maps = layer(maps, modulation) if takes_both else layer(maps)
        return maps


def label_strength(images_seen: int, *, start_kimg: float) -> float:
    """Return the strength of labels: 0 up to the start, then rising to 1 over as many images."""
    if not start_kimg:
        return 1.0
    return min(1.0, max(0.0, images_seen / 1000 / start_kimg - 1.0))


def set_label_strength(network: nn.Module, strength: float) -> None:
    """Set the strength of all labels of a network, in place, without waiting for a device."""
    for module in network.modules():
        if isinstance(module, ClassTable):
            assert module.strength is not None, "these labels are not blended"
            module.strength.fill_(strength)


def spread_labels(numbers: Tensor, shares: Sequence[float], *, seed: int = 0) -> Tensor:
    """Return labels int64 [N] of the classes with these shares, on the device of `numbers` [N].

    The label of a number depends on it and the seed alone. Among consecutive numbers the classes
    have their shares as nearly as possible: multiples of the golden ratio fill [0, 1) evenly.
    """
    start = uniform((), torch.zeros(1, dtype=torch.int64), seed=seed, purpose="labels").double()
    places = (start + numbers.cpu().double() * GOLDEN_RATIO) % 1
    ends = torch.tensor(shares, dtype=torch.float64).cumsum(0)[:-1]
    return torch.searchsorted(ends, places, right=True).to(numbers.device)
