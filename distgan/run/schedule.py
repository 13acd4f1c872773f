"""What is due when."""

import math

from distgan.config.schema import Loss
from distgan.optimizers import scheduled


def due(interval: float, before: int, now: int) -> bool:
    """Whether a multiple of the interval (in images) lies after `before` and not after `now`."""
    return math.floor(now / interval) > math.floor(before / interval)


def penalty_scale(loss: Loss, d_step: int, *, progress: float) -> float:
    """Factor on the penalties' weights in this step of the discriminator; 0 where none is due.

    A penalty that comes every k steps weighs k times as much (Karras et al. 2020, StyleGAN2, section 3.1).
    """
    if not loss.penalised or d_step % loss.penalty_interval:
        return 0.0
    return loss.penalty_interval * scheduled("cosine", progress, final=loss.penalty_final)
