"""Latents to sample from, and the images of latents."""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, cosine_similarity

from distgan.networks.base import GeneratorSpec, images_at_once
from distgan.runtime.randomness import normal


def sample_latents(num: int, spec: GeneratorSpec, *, seed: int, first: int = 0) -> Tensor:
    """Return latents [num, Z] from N(0, 1), numbers `first`, `first + 1`, ... of a seed.

    A latent depends only on its number and the seed.
    """
    numbers = torch.arange(first, first + num)
    return normal((spec.latent_dim,), numbers, seed=seed, purpose="samples")


@torch.no_grad()
def generate(generator: nn.Module, latents: Tensor, labels: Tensor | None = None) -> Tensor:
    """Return images [N, C, H, W] in [-1, 1] for latents [N, Z], and labels, made in batches."""
    inputs = [latents] if labels is None else [latents, labels]
    batches = zip(*(each.split(images_at_once(generator)) for each in inputs), strict=True)
    return torch.cat([generator(*batch).float() for batch in batches])


def typical_latent(generator: nn.Module, latents: Tensor, labels: Tensor | None = None) -> Tensor:
    """Return the latent of [N, Z] whose image, reduced to 8x8 pixels, is nearest to their mean."""
    images = adaptive_avg_pool2d(generate(generator, latents, labels), 8).flatten(1)
    return latents[(images - images.mean(0)).square().sum(1).argmin()]


def truncate(latents: Tensor, centers: Tensor, fraction: float) -> Tensor:
    """Return latents [N, Z] moved toward centers [N, Z] or [Z], to a fraction of the way from them.

    This trades variety for more typical images (Karras et al. 2019, appendix B). The lengths stay
    those of N(0, 1). Truncating each value instead (Brock et al. 2019, section 3.1) shortens the
    latents, for which batch norm's statistics are wrong: contrast is lost and colors shift.
    """
    return slerp(centers.expand_as(latents), latents, torch.tensor([fraction]))[:, 0]


def slerp(starts: Tensor, ends: Tensor, fractions: Tensor) -> Tensor:
    """Return latents [N, S, Z] between starts [N, Z] and ends [N, Z], at fractions [S] in [0, 1].

    Spherical linear interpolation (Shoemake 1985). The middle of a straight line would be closer to
    zero than nearly all latents that the generator was trained on.
    """
    cosine = cosine_similarity(starts, ends).clamp(-1 + 1e-6, 1 - 1e-6)
    angle = cosine.acos()[:, None]  # [N, 1]
    # [2, N, S]
    weights = torch.stack([((1 - fractions) * angle).sin(), (fractions * angle).sin()])
    weights = weights / angle.sin()
    return weights[0, :, :, None] * starts[:, None] + weights[1, :, :, None] * ends[:, None]


def walk(keys: Tensor, *, frames_per_leg: int) -> Tensor:
    """Return latents [K * frames_per_leg, N, Z] of a closed walk through keys [K, N, Z]."""
    fractions = torch.arange(frames_per_leg) / frames_per_leg
    fractions = (1 - (math.pi * fractions).cos()) / 2  # slow near the keys
    legs = [slerp(start, end, fractions) for start, end in zip(keys, keys.roll(-1, 0), strict=True)]
    return torch.cat([leg.transpose(0, 1) for leg in legs])
