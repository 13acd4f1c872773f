"""Diversity terms of the generator's loss: fakes of a batch should differ as much as reals do.

Each term compares samples within fixed groups of consecutive samples, so that it does not depend on
how a batch is distributed over ranks.
"""

import torch
from torch import Tensor
from torch.nn.functional import relu

GROUP = 8  # consecutive samples that are compared with each other
LATENT_DISTANCE = 2 / torch.pi**0.5  # mean |a - b| of two draws from N(0, 1)
EPSILON = 1e-8


def pair_distances(samples: Tensor) -> Tensor:
    """Return the mean absolute difference in pairs of consecutive samples: [B, ...] to [B / 2]."""
    return (samples[0::2] - samples[1::2]).flatten(1).abs().mean(1)


def mode_seeking(fakes: Tensor, reals: Tensor, latents: Tensor) -> Tensor:
    """Return a term in (0, 1] that is large if images change little with their latents.

    It is 1 if they do not change, and 1/2 if they differ as much as reals do. The ratio of
    distances is that of Mao et al. 2019, equation 2. 1 / (1 + ratio) replaces 1 / ratio, so that
    one pair of equal images does not outweigh all others.

    Takes fakes and reals [B, C, H, W] and latents [B, Z]; B is a multiple of GROUP.
    """
    # Reals have no latents: their mean distance in a group stands for a typical latent distance.
    real_distances = pair_distances(reals).unflatten(0, (-1, GROUP // 2)).mean(1, keepdim=True)
    latent_distances = pair_distances(latents) / LATENT_DISTANCE
    fake_distances = pair_distances(fakes) / (latent_distances + EPSILON)
    ratios = fake_distances.unflatten(0, (-1, GROUP // 2)) / (real_distances + EPSILON)
    return (1 / (1 + ratios)).mean()


def mean_distances(features: Tensor) -> Tensor:
    """Return the mean Euclidean distance within each group: [B, F] to [B / GROUP]."""
    groups = features.float().unflatten(0, (-1, GROUP))
    first, second = torch.triu_indices(GROUP, GROUP, offset=1, device=features.device)
    squares = (groups[:, first] - groups[:, second]).square().sum(2)
    return (squares + EPSILON).sqrt().mean(1)


def feature_distance(fake_features: Tensor, real_features: Tensor) -> Tensor:
    """Return the fraction in [0, 1] by which fakes are closer to each other than reals are.

    Takes features [B, F] of the discriminator. The term is zero at the distance of reals: a term
    that rewarded ever larger distances would reward noise.
    """
    return relu(1 - mean_distances(fake_features) / mean_distances(real_features.detach())).mean()
