"""Kinds of real images, found as clusters of their features, where there are no labels.

Richardson & Weiss 2018 (arXiv 1805.12462) compare bins of pixels in this way. A generator that
covers half of all images everywhere has all kinds; one that makes half of the kinds has not.
"""

import warnings

import torch
from torch import Tensor

from distgan.evaluation.neighbours import nearest
from distgan.runtime.distributed import World

MOST_KINDS = 20
IMAGES_PER_KIND = 20  # fewer images would make it a matter of chance whether a kind is missing


def find_kinds(features: Tensor, world: World) -> Tensor:
    """Return the centres [k, d] of the kinds of `features` [n, d], by k-means. Collective.

    There are at most 20, and at least one. All ranks get those of rank zero, because rounding may
    differ between processors.
    """
    num_kinds = max(1, min(MOST_KINDS, len(features) // IMAGES_PER_KIND))
    centres = features.new_zeros(num_kinds, features.shape[1], dtype=torch.float64)
    if world.is_main:
        centres.copy_(fit_centres(features, num_kinds, seed=0, num_starts=3))
    world.broadcast_([centres])
    return centres


def fit_centres(features: Tensor, num: int, *, seed: int, num_starts: int) -> Tensor:
    """Return the centres [num, d], float64, of clusters of features [n, d], by k-means."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    points = features.double().cpu().numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different images than clusters
        found = KMeans(num, n_init=num_starts, random_state=seed).fit(points)
    return torch.from_numpy(found.cluster_centers_)


def kind_shares(features: Tensor, centres: Tensor, world: World) -> Tensor:
    """Return the shares [k], float64, of the kinds among `features` [n, d]."""
    _, kinds = nearest(features, centres, world)
    counts = torch.bincount(kinds.cpu(), minlength=len(centres))
    return counts.double() / len(features)


def missing_kinds(shares: Tensor, real_counts: Tensor, *, below: float) -> int:
    """Return how many kinds have less than `below` times their share among the reals.

    Kinds with fewer than ten reals are left out: a perfect generator might miss them by chance.
    """
    real_shares = real_counts / real_counts.sum()
    is_missing = (shares < below * real_shares) & (real_counts >= IMAGES_PER_KIND / 2)
    return int(is_missing.sum())
