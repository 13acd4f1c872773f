"""Differentiable augmentation of the discriminator's input, both reals and fakes.

DiffAugment (Zhao et al. 2020). An image gets each kind of augmentation with the same probability.
Its random numbers depend on its position in the run alone.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from distgan.runtime.randomness import uniform

MAX_SHIFT = 1 / 8  # as a fraction of the image's side along that axis
HOLE = 1 / 2  # side of the rectangle that is cut out, likewise


def color(images: Tensor, draws: Tensor, chosen: Tensor) -> Tensor:
    """Change brightness by up to 0.5, saturation by a factor in [0, 2], contrast in [0.5, 1.5]."""

    def per_image(values: Tensor, neutral: float) -> Tensor:
        return torch.where(chosen, values, neutral)[:, None, None, None]

    images = images + per_image(draws[:, 0] - 0.5, 0.0)
    grey = images.mean(1, keepdim=True)
    images = grey + (images - grey) * per_image(2 * draws[:, 1], 1.0)
    mean = images.mean((1, 2, 3), keepdim=True)
    return mean + (images - mean) * per_image(draws[:, 2] + 0.5, 1.0)


def translation(images: Tensor, draws: Tensor, chosen: Tensor) -> Tensor:
    """Shift by whole pixels, up to an eighth of the side in each direction, and fill with zeros."""
    height, width = images.shape[-2:]
    down, across = moves(height, draws[:, 0], chosen), moves(width, draws[:, 1], chosen)
    return down.mT.to(images.dtype) @ images @ across.to(images.dtype)


def moves(size: int, draws: Tensor, chosen: Tensor) -> Tensor:
    """Return bool [B, 1, size, size]: whether a source row (or column) moves to a target one."""
    max_shift = int(size * MAX_SHIFT + 0.5)
    shifts = ((draws * (2 * max_shift + 1)).floor() - max_shift) * chosen
    pixels = torch.arange(size, device=draws.device)
    return pixels[:, None] + shifts[:, None, None, None] == pixels


def cutout(images: Tensor, draws: Tensor, chosen: Tensor) -> Tensor:
    """Set a rectangle of half the height and half the width to zero.

    Its centre may be anywhere in the image.
    """
    height, width = images.shape[-2:]
    rows, columns = covered(height, draws[:, 0]), covered(width, draws[:, 1])
    hole = rows[:, :, None] & columns[:, None, :] & chosen[:, None, None]
    return images * ~hole[:, None]


def covered(size: int, draws: Tensor) -> Tensor:
    """Return bool [B, size]: which rows (or columns) are cut out."""
    pixels = torch.arange(size, device=draws.device) + 0.5
    return (pixels - (draws * size)[:, None]).abs() < size * HOLE / 2


# By the names in `loss.augment`. Each takes images [B, C, H, W], draws [B, 3 or more] from U(0, 1),
# and which images to change, bool [B].
AUGMENTATIONS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "color": color,
    "translation": translation,
    "cutout": cutout,
}


def augment(
    images: Tensor,
    positions: Tensor,
    *,
    kinds: tuple[str, ...],
    probability: Tensor,
    seed: int,
    purpose: str,
) -> Tensor:
    """Return images [B, C, H, W] in [-1, 1] augmented; `probability` is a scalar in [0, 1]."""
    for kind in kinds:
        draws = uniform((4,), positions, seed=seed, purpose=f"{purpose}/{kind}")
        images = AUGMENTATIONS[kind](images, draws, draws[:, 3] < probability)
    return images


def adapt_probability(
    probability: Tensor, real_accuracy: Tensor, *, target: float, images: int, ramp_kimg: float
) -> Tensor:
    """Return the probability after one step of adaptive discriminator augmentation.

    It rises if the mean sign of the logits of reals exceeds `target`, and falls otherwise. From 0
    to 1 it takes at least `ramp_kimg` (Karras et al. 2020, ADA, section 3.1). The computation stays
    on the device.
    """
    step = images / (ramp_kimg * 1000)
    return (probability + step * torch.sign(2 * real_accuracy - 1 - target)).clamp(0, 1)
