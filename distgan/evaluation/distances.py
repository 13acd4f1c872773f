"""Metrics from moments or kernels of features: Frechet, kernel, Vendi and Inception score.

Every function takes the same features on every rank, processes this rank's part of the rows in
float64, reduces, and returns the same number for any world size.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from distgan.runtime.distributed import World


@dataclass(frozen=True)
class Moments:
    """Mean [d] and unbiased covariance [d, d] of features, float64."""

    mean: Tensor
    covariance: Tensor


def moments(features: Tensor, world: World) -> Moments:
    """Return mean and covariance of `features` [n, d], n >= 2.

    The mean is computed first and subtracted, so that a large mean costs no precision.
    """
    own = features[world.rank :: world.size].double()
    mean = world.all_reduce_sum(own.sum(0)) / len(features)
    centred = own - mean
    return Moments(mean, world.all_reduce_sum(centred.T @ centred) / (len(features) - 1))


def matrix_sqrt(covariance: Tensor) -> Tensor:
    """Return the symmetric square root of a positive semidefinite matrix [d, d].

    Eigenvalues that rounding made negative count as zero.
    """
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T


def frechet_distance(fakes: Moments, reals: Moments, *, reals_sqrt: Tensor | None = None) -> float:
    """Return |m1 - m2|^2 + Tr(C1 + C2 - 2 (C1 C2)^(1/2)); 0 at best.

    Heusel et al. 2017 (arXiv 1706.08500), eq. 6. The trace of (C1 C2)^(1/2) is the sum of the
    square roots of the eigenvalues of C2^(1/2) C1 C2^(1/2). That matrix is symmetric, so the result
    is real, and correct for singular covariances. `reals_sqrt` is C2^(1/2) if it is already known.
    """
    root = matrix_sqrt(reals.covariance) if reals_sqrt is None else reals_sqrt
    overlap = torch.linalg.eigvalsh(root @ fakes.covariance @ root).clamp_min(0).sqrt().sum()
    traces = fakes.covariance.trace() + reals.covariance.trace()
    return max(0.0, float((fakes.mean - reals.mean).square().sum() + traces - 2 * overlap))


def frechet_of_sets(fakes: Tensor, reals: Tensor) -> float:
    """Return the Frechet distance of features [n, d] and [m, d] that one rank has alone.

    With centred features X and Y the eigenvalues of C1 C2 other than zero are those of
    (Y X^T) (X Y^T) / (n - 1)(m - 1), so the trace of (C1 C2)^(1/2) is the sum of the singular
    values of X Y^T over the root of (n - 1)(m - 1). With few images that matrix is much smaller
    than the covariances.
    """
    n, m = len(fakes), len(reals)
    if n * m * min(n, m) >= fakes.shape[1] ** 3:
        alone = World(0, 1)
        return frechet_distance(moments(fakes, alone), moments(reals, alone))
    means = [each.double().mean(0) for each in (fakes, reals)]
    x = (fakes.double() - means[0]) / math.sqrt(n - 1)
    y = (reals.double() - means[1]) / math.sqrt(m - 1)
    overlap = torch.linalg.svdvals(x @ y.T).sum()
    traces = x.square().sum() + y.square().sum()
    return max(0.0, float((means[0] - means[1]).square().sum() + traces - 2 * overlap))


def kernel_distance(
    fakes: Tensor,
    reals: Tensor,
    world: World,
    *,
    num_subsets: int = 50,
    subset_size: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the unbiased squared MMD with the kernel (x.y / d + 1)^3.

    Binkowski et al. 2018 (arXiv 1801.01401), sec. 4. Returns the mean and the standard deviation
    over random subsets, which are divided among the ranks; papers report the latter as the error.
    Subsets have at most half of the samples, because equal subsets would have no deviation.
    """
    size = min(subset_size, max(2, min(len(fakes), len(reals)) // 2))
    values = torch.zeros(num_subsets, dtype=torch.float64, device=fakes.device)
    for index in range(world.rank, num_subsets, world.size):
        draw = torch.Generator().manual_seed(seed * num_subsets + index)
        x = fakes[torch.randperm(len(fakes), generator=draw)[:size].to(fakes.device)]
        y = reals[torch.randperm(len(reals), generator=draw)[:size].to(reals.device)]
        values[index] = squared_mmd(x.double(), y.double())
    values = world.all_reduce_sum(values)
    return float(values.mean()), float(values.std(correction=0))


def squared_mmd(x: Tensor, y: Tensor) -> Tensor:
    """Return the U-statistic of the squared MMD of two sets [m, d] with the cubic kernel.

    It is unbiased and may be negative.
    """

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        base = (a @ b.T).div_(a.shape[1]).add_(1)
        return base * base * base  # much faster than a power

    def off_diagonal_mean(gram: Tensor) -> Tensor:
        return (gram.sum() - gram.trace()) / (len(gram) * (len(gram) - 1))

    return (
        off_diagonal_mean(kernel(x, x)) + off_diagonal_mean(kernel(y, y)) - 2 * kernel(x, y).mean()
    )


def vendi_score(features: Tensor, world: World) -> float:
    """Return exp of the entropy of the eigenvalues of K / n, where K are cosine similarities.

    Friedman & Dieng 2023 (arXiv 2210.02410): the effective number of distinct samples, from 1 to
    min(n, d). X X^T and X^T X have the same eigenvalues, so the smaller d x d matrix is enough.
    """
    own = torch.nn.functional.normalize(features[world.rank :: world.size].double(), dim=1)
    values = torch.linalg.eigvalsh(world.all_reduce_sum(own.T @ own) / len(features)).clamp_min(0)
    shares = values / values.sum().clamp_min(
        torch.finfo(values.dtype).tiny
    )  # 0 if all are the same
    return float(torch.special.entr(shares).sum().exp())


def inception_score(logits: Tensor, *, num_splits: int = 10) -> float:
    """Return exp of E[KL(p(y|x) || p(y))], averaged over splits; 1 at worst.

    Salimans et al. 2016 (arXiv 1606.03498), sec. 4.
    """
    scores = []
    for part in logits.double().tensor_split(min(num_splits, len(logits))):
        posterior = part.softmax(1)
        marginal = posterior.mean(0)
        scores.append(
            (torch.special.entr(marginal).sum() - torch.special.entr(posterior).sum(1).mean()).exp()
        )
    return float(torch.stack(scores).mean())
