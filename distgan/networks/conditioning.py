"""Class labels in the networks: a conditional generator and a projection discriminator.

generator      labels [B] -> embedding e [B, D] -> beside the latents, and into every norm:
               maps -> batch norm -> (1 + A e) * maps + B e, where A and B begin at zero
discriminator  images -> maps -> features h, summed over positions -> logit = w.h + e_y.h

Projection: Miyato and Koyama 2018, equation 4. Conditional batch norm: Dumoulin et al. 2017.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from distgan.runtime.randomness import uniform

GOLDEN_RATIO = 0.6180339887498949


def class_weights(labels: Tensor, numbers: Tensor) -> Tensor:
    """Return the weight of each class, float [B, K]; `numbers` are 0 .. K - 1.

    Labels are int64 [B], or are weights [B, K] already, as between two classes. A product with
    one-hot rows has dense gradients, can be differentiated twice, and is deterministic on a GPU.
    """
    return labels if labels.is_floating_point() else (labels[:, None] == numbers).float()


class ClassTable(nn.Module):
    """A learned vector for each class: labels [B], or weights [B, K], to vectors [B, D].

    Vectors are multiplied by `strength`, from 0 to 1, with which labels can be blended in.
    """

    numbers: Tensor
    strength: Tensor

    def __init__(self, num_classes: int, dim: int, *, std: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_classes, dim) * std)
        self.register_buffer("numbers", torch.arange(num_classes), persistent=False)
        self.register_buffer("strength", torch.ones(()))

    def forward(self, labels: Tensor) -> Tensor:
        return class_weights(labels, self.numbers) @ (self.weight * self.strength)


class ConditionalNorm(nn.Module):
    """Batch norm whose result is scaled and shifted by a condition; at first it changes nothing."""

    def __init__(self, channels: int, condition_dim: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.deltas = nn.Parameter(torch.zeros(2 * channels, condition_dim))

    def forward(self, maps: Tensor, condition: Tensor) -> Tensor:
        """Return maps [B, C, H, W] for the condition [B, D]."""
        maps = self.norm(maps)
        deltas = linear(condition, self.deltas).to(maps.dtype)[:, :, None, None]
        scales, shifts = deltas.chunk(2, 1)
        return torch.addcmul(shifts, maps, 1 + scales)


def make_norm(channels: int, condition_dim: int) -> nn.Module:
    """Return batch norm, conditional if the condition has a dimension."""
    if condition_dim:
        return ConditionalNorm(channels, condition_dim)
    return nn.BatchNorm2d(channels)


class Layers(nn.Sequential):
    """Layers one after another; conditional norms and blocks of layers also take the condition."""

    def forward(self, maps: Tensor, condition: Tensor | None = None) -> Tensor:
        for layer in self:
            takes_both = condition is not None and isinstance(layer, ConditionalNorm | Block)
            maps = layer(maps, condition) if takes_both else layer(maps)
        return maps


class Block(nn.Module):
    """Base class of blocks with `Layers`: they take maps and the condition."""


def label_strength(images_seen: int, *, start_kimg: float) -> float:
    """Return the strength of labels: 0 up to the start, then rising to 1 over as many images."""
    if not start_kimg:
        return 1.0
    return min(1.0, max(0.0, images_seen / 1000 / start_kimg - 1.0))


def set_label_strength(network: nn.Module, strength: float) -> None:
    """Set the strength of all labels of a network, in place, without waiting for a device."""
    for module in network.modules():
        if isinstance(module, ClassTable):
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
