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


def mode_seeking(
    fakes: Tensor, reals: Tensor, latents: Tensor, labels: Tensor | None = None
) -> Tensor:
    """Return a term in [0, 1] that is large if images change little with their latents.

    It is 1 if they do not change, and 1/2 if they differ as much as reals do. The ratio of
    distances is that of Mao et al. 2019, equation 2. 1 / (1 + ratio) replaces 1 / ratio, so that
    one pair of equal images does not outweigh all others.

    Takes fakes and reals [B, C, H, W] and latents [B, Z]; B is a multiple of GROUP. If fakes and
    reals have labels [B], only images with equal labels are compared, because those of two classes
    differ even if each class has collapsed. A group without such a pair counts as 0.
    """
    if labels is None:
        distances = consecutive_distances
        weights = torch.full((len(fakes) // GROUP, GROUP // 2), 2 / GROUP, device=fakes.device)
    else:
        distances = all_distances
        are_equal = torch.eq(*in_pairs(labels))
        weights = are_equal / are_equal.sum(1, keepdim=True).clamp(min=1)
    # Reals have no latents: their mean distance in a group stands for a typical latent distance.
    real_distances = (weights * distances(reals)).sum(1, keepdim=True)
    fake_distances = distances(fakes) / (distances(latents) / LATENT_DISTANCE + EPSILON)
    ratios = fake_distances / (real_distances + EPSILON)
    return (weights / (1 + ratios)).sum() / len(weights)


def consecutive_distances(samples: Tensor) -> Tensor:
    """Return mean absolute differences of consecutive samples: [B, ...] to [B / 8, 4]."""
    distances = (samples[0::2] - samples[1::2]).flatten(1).abs().mean(1)
    return distances.unflatten(0, (-1, GROUP // 2))


def all_distances(samples: Tensor) -> Tensor:
    """Return mean absolute differences of all pairs in each group: [B, ...] to [B / 8, 28]."""
    first, second = in_pairs(samples)
    return (first - second).flatten(2).abs().mean(2)


def in_pairs(samples: Tensor) -> tuple[Tensor, Tensor]:
    """Return both samples of all pairs in each group: [B, ...] to twice [B / 8, 28, ...]."""
    groups = samples.unflatten(0, (-1, GROUP))
    first, second = torch.triu_indices(GROUP, GROUP, offset=1, device=samples.device)
    return groups[:, first], groups[:, second]


def mean_distances(features: Tensor) -> Tensor:
    """Return the mean Euclidean distance within each group: [B, F] to [B / GROUP]."""
    first, second = in_pairs(features.float())
    return ((first - second).square().sum(2) + EPSILON).sqrt().mean(1)


def feature_distance(fake_features: Tensor, real_features: Tensor) -> Tensor:
    """Return the fraction in [0, 1] by which fakes are closer to each other than reals are.

    Takes features [B, F] of the discriminator. The term is zero at the distance of reals: a term
    that rewarded ever larger distances would reward noise.
    """
    return relu(1 - mean_distances(fake_features) / mean_distances(real_features.detach())).mean()
