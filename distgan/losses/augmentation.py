"""Augmentation of what the discriminator sees, reals and fakes alike, differentiable (Zhao et al. 2020, DiffAugment).

Each kind is applied to an image with the same probability, by draws that belong to the image's position.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from distgan.runtime.randomness import uniform

SHIFT, HOLE = 1 / 8, 1 / 2  # of the side: farthest translation, side of the square that is cut out


def color(images: Tensor, draws: Tensor, chosen: Tensor) -> Tensor:
    """Brightness by up to 0.5, saturation and contrast by a factor up to 2 and 1.5."""
    brightness, saturation, contrast = (
        torch.where(chosen, scale * draw + shift, neutral)[:, None, None, None]
        for draw, scale, shift, neutral in zip(
            draws.T[:3], (1, 2, 1), (-0.5, 0, 0.5), (0, 1, 1), strict=True
        )
    )
    images = images + brightness
    grey = images.mean(1, keepdim=True)
    images = grey + (images - grey) * saturation
    mean = images.mean((1, 2, 3), keepdim=True)
    return mean + (images - mean) * contrast


def translation(images: Tensor, draws: Tensor, chosen: Tensor) -> Tensor:
    """Shift by whole pixels, up to an eighth of the side each way; zeros come in."""
    size = images.shape[-1]
    farthest = int(size * SHIFT + 0.5)
    shifts = ((draws[:, :2] * (2 * farthest + 1)).floor() - farthest) * chosen[:, None]
    places = torch.arange(size, device=images.device)
    # [B, 2, size, size]: one where a source row (or column) moves to a target.
    moves = (places[:, None] + shifts[:, :, None, None] == places).to(images.dtype)
    down, across = moves[:, None, 0], moves[:, None, 1]
    return down.mT @ images @ across


def cutout(images: Tensor, draws: Tensor, chosen: Tensor) -> Tensor:
    """Zeros in a square of half the side, its centre anywhere."""
    size = images.shape[-1]
    places = torch.arange(size, device=images.device) + 0.5
    inside = (places - (draws[:, :2] * size)[:, :, None]).abs() < size * HOLE / 2
    hole = inside[:, 0, :, None] & inside[:, 1, None, :] & chosen[:, None, None]
    return images * ~hole[:, None]


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
    """Images [B, C, H, W] in [-1, 1], each with each of the kinds by the probability (a scalar in [0, 1])."""
    for kind in kinds:
        draws = uniform((4,), positions, seed=seed, purpose=f"{purpose}/{kind}")
        images = AUGMENTATIONS[kind](images, draws, draws[:, 3] < probability)
    return images


def adapted(
    probability: Tensor, real_accuracy: Tensor, *, target: float, images: int, ramp_kimg: float
) -> Tensor:
    """The probability after a step toward where the discriminator's mean sign on reals is `target`.

    From 0 to 1 it takes `ramp_kimg` at least (Karras et al. 2020, ADA, section 3.1); no host waits for it.
    """
    step = images / (ramp_kimg * 1000)
    return (probability + step * torch.sign(2 * real_accuracy - 1 - target)).clamp(0, 1)
