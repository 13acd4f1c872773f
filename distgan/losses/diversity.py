"""Diversity terms of the generator's loss: fakes of one batch should be as far from one another as reals are.

Each works on fixed groups of consecutive samples, so that the ranks a batch is spread over change nothing.
"""

import torch
from torch import Tensor
from torch.nn.functional import relu

GROUP = 8  # consecutive samples that are compared with one another
LATENT_DISTANCE = 2 / torch.pi**0.5  # mean |a - b| of two draws from N(0, 1)
TINY = 1e-8


def pair_distances(samples: Tensor) -> Tensor:
    """Mean absolute difference within pairs of consecutive samples: [B, ...] -> [B / 2]."""
    return (samples[0::2] - samples[1::2]).flatten(1).abs().mean(1)


def mode_seeking(fakes: Tensor, reals: Tensor, latents: Tensor) -> Tensor:
    """How little images change with their latents, in (0, 1]: 1 where not at all, 1/2 where as much as reals differ.

    fakes and reals [B, C, H, W], latents [B, Z], B a multiple of GROUP. The ratio of distances is that of Mao et al.
    2019 (equation 2); 1 / (1 + ratio) in the place of 1 / ratio keeps one dead pair from outweighing all others.
    """
    # Reals have no latents: a group's mean distance of reals belongs to a typical distance of latents.
    usual = pair_distances(reals).unflatten(0, (-1, GROUP // 2)).mean(1, keepdim=True)
    latent_distances = pair_distances(latents) / LATENT_DISTANCE
    ratios = (pair_distances(fakes) / (latent_distances + TINY)).unflatten(0, (-1, GROUP // 2)) / (
        usual + TINY
    )
    return (1 / (1 + ratios)).mean()


def mean_distances(features: Tensor) -> Tensor:
    """Mean Euclidean distance within each group of consecutive samples: [B, F] -> [B / GROUP]."""
    groups = features.float().unflatten(0, (-1, GROUP))
    first, second = torch.triu_indices(GROUP, GROUP, offset=1, device=features.device)
    return ((groups[:, first] - groups[:, second]).square().sum(2) + TINY).sqrt().mean(1)


def feature_distance(fake_features: Tensor, real_features: Tensor) -> Tensor:
    """By what part fakes are nearer to one another than reals, in [0, 1]; features [B, F] of the discriminator.

    Matching the reals' distance, not maximising it, keeps noise from paying.
    """
    return relu(1 - mean_distances(fake_features) / mean_distances(real_features.detach())).mean()
