"""Latents to sample from, and the images of latents."""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from distgan.networks.base import GeneratorSpec
from distgan.runtime.randomness import normal


def sample_latents(num: int, spec: GeneratorSpec, *, seed: int, first: int = 0) -> Tensor:
    """Return latents [num, Z] from N(0, 1), numbers `first`, `first + 1`, ... of a seed.

    A latent depends only on its number and the seed.
    """
    numbers = torch.arange(first, first + num)
    return normal((spec.latent_dim,), numbers, seed=seed, purpose="samples")


@torch.no_grad()
def generate(generator: nn.Module, latents: Tensor, *, batch_size: int = 256) -> Tensor:
    """Return images [N, C, H, W] in [-1, 1] for latents [N, Z], computed in batches."""
    return torch.cat([generator(batch).float() for batch in latents.split(batch_size)])


def truncate(latents: Tensor, threshold: float) -> Tensor:
    """Return latents distributed as N(0, 1) truncated to [-threshold, threshold].

    This trades variety for more typical images (Brock et al. 2019, section 3.1). Each value keeps
    its quantile in the truncated distribution, so that every image stays similar to itself.
    """
    values, edge = latents.double(), torch.tensor(threshold, dtype=torch.float64)
    low, high = torch.special.ndtr(-edge), torch.special.ndtr(edge)
    cut = torch.special.ndtri(low + torch.special.ndtr(values) * (high - low))
    return cut.clamp(-threshold, threshold).to(latents.dtype)


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
