"""Exponential moving average of the generator's weights, with its half-life counted in images.

Only weights are averaged. The running statistics of batch norm belong to the raw weights: copied to
the averaged generator, they make its images far worse than those of the raw one. So the averaged
generator measures its own statistics before it is used.
"""

import copy

import torch
from torch import Tensor, nn

from distgan.networks.base import images_at_once

# The half-life is at most this fraction of the images seen, so that the drawn weights are forgotten
# (Karras et al. 2020, StyleGAN2-ADA, which has no such ramp either if weights were loaded).
RAMP_UP = 0.05


class GeneratorEma:
    """A moving average of the generator's weights; its network is always in eval mode."""

    def __init__(
        self, generator: nn.Module, *, halflife_kimg: float, ramps_up: bool = True
    ) -> None:
        self.generator = copy.deepcopy(generator).eval().requires_grad_(False)
        self.parameters: list[Tensor] = list(self.generator.parameters())
        self.halflife_images, self.ramps_up = halflife_kimg * 1000, ramps_up

    @torch.no_grad()
    def update(self, weights: list[Tensor], *, batch_size: int, images_seen: int) -> None:
        """Move toward the generator's weights after a step of `batch_size` images."""
        halflife = self.halflife_images
        if self.ramps_up:
            halflife = min(halflife, images_seen * RAMP_UP)
        toward_raw = 1.0 - 0.5 ** (batch_size / halflife) if halflife > 0 else 1.0
        torch._foreach_lerp_(self.parameters, weights, weight=toward_raw)


@torch.no_grad()
def recalibrate_batch_norm(generator: nn.Module, latents: Tensor, *condition: Tensor) -> None:
    """Set the running statistics of every BatchNorm layer to their means over the latents [N, Z].

    A conditional generator's labels [N] follow them, with the shares that they have in training.
    The latents are split into batches of equal size. The layers end in eval mode.
    """
    norms = [module for module in generator.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over batches
        norm.train()
    num_batches = -(-len(latents) // images_at_once(generator))
    for batch in zip(*(part.chunk(num_batches) for part in (latents, *condition)), strict=True):
        generator(*batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
