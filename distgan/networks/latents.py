"""Latents of samples, and images from them."""

import math

import torch
from torch import Tensor, nn

from distgan.networks.base import GeneratorSpec
from distgan.runtime.randomness import normal


def sample_latents(num: int, spec: GeneratorSpec, *, seed: int, first: int = 0) -> Tensor:
    """Latents [num, Z] number `first` and on of a seed; sample i is the same however many are drawn."""
    return normal(
        (spec.latent_dim,), torch.arange(first, first + num), seed=seed, purpose="samples"
    )


@torch.no_grad()
def generate(generator: nn.Module, latents: Tensor, *, batch_size: int = 256) -> Tensor:
    """Images [N, C, H, W] in [-1, 1] for latents [N, Z], in batches."""
    return torch.cat([generator(batch).float() for batch in latents.split(batch_size)])


def truncate(latents: Tensor, threshold: float) -> Tensor:
    """Latents from N(0, 1) cut off at +-threshold (Brock et al. 2019, section 3.1), the same images made more typical.

    The cut distribution is reached by moving each value to its own quantile, so that image i stays akin to image i.
    """
    values, edge = latents.double(), torch.tensor(threshold, dtype=torch.float64)
    low, high = torch.special.ndtr(-edge), torch.special.ndtr(edge)
    cut = torch.special.ndtri(low + torch.special.ndtr(values) * (high - low))
    return cut.clamp(-threshold, threshold).to(latents.dtype)


def slerp(starts: Tensor, ends: Tensor, shares: Tensor) -> Tensor:
    """Latents [N, S, Z] from starts [N, Z] to ends [N, Z] along great circles, at shares [S] of the way (Shoemake 1985).

    On a straight line the middle would be nearer to zero than nearly all latents that the generator was trained on.
    """
    cosine = torch.nn.functional.cosine_similarity(starts, ends).clamp(-1 + 1e-6, 1 - 1e-6)
    angle = cosine.acos()[:, None]  # [N, 1]
    weights = (
        torch.stack([((1 - shares) * angle).sin(), (shares * angle).sin()]) / angle.sin()
    )  # [2, N, S]
    return weights[0, :, :, None] * starts[:, None] + weights[1, :, :, None] * ends[:, None]


def walk(keys: Tensor, *, frames_per_leg: int) -> Tensor:
    """Latents [F, N, Z] of a closed walk through keys [K, N, Z], K * frames_per_leg frames, the last next to the first."""
    shares = torch.arange(frames_per_leg) / frames_per_leg
    shares = (1 - (math.pi * shares).cos()) / 2  # slow at the keys
    legs = [slerp(start, end, shares) for start, end in zip(keys, keys.roll(-1, 0), strict=True)]
    return torch.cat([leg.transpose(0, 1) for leg in legs])
