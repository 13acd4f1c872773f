"""Nearest neighbours in feature space: precision, recall, density, coverage, duplicates, copies.

Distances are squared and in float64, so that exact copies have distance zero on any device. Rows
are divided among the ranks, and every rank returns the same numbers.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from distgan.runtime.distributed import World

BLOCK_ELEMENTS = 2**23  # distances computed at a time: 64 MiB in float64


@dataclass(frozen=True)
class Fidelity:
    """Precision and recall (Kynkaanniemi et al. 2019, arXiv 1904.06991), density and coverage
    (Naeem et al. 2020, arXiv 2002.09797).

    All are in [0, 1] but density, which has no upper bound. For two samples of one distribution
    density is 1 and coverage about 1 - 2^-k. Precision and recall depend on the dimension.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """Return the squared distances [n, m] between the rows of x [n, d] and of y [m, d]."""
    products = torch.addmm(y.square().sum(1), x, y.T, alpha=-2)
    return products.add_(x.square().sum(1, keepdim=True)).clamp_min_(0)


def reduce_rows(x: Tensor, y: Tensor, world: World, reduce: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply `reduce` to the squared distances of all rows of x to all rows of y, in blocks of rows.

    `reduce` maps [rows, m] to [rows, c]; returns [n, c], in order, on every rank.
    """
    own, y = x[world.rank :: world.size].double(), y.double()
    rows_per_block = max(1, BLOCK_ELEMENTS // len(y))
    parts = [reduce(squared_distances(block, y)) for block in own.split(rows_per_block)]
    out = torch.cat(parts)
    per_rank = -(-len(x) // world.size)
    padding = out.new_zeros(per_rank - len(out), out.shape[1])
    gathered = world.all_gather(torch.cat([out, padding]))
    # Rank r of W has rows r, r + W, ...: interleave them, then drop the padding.
    return (
        gathered.view(world.size, per_rank, -1)
        .transpose(0, 1)
        .reshape(world.size * per_rank, -1)[: len(x)]
    )


def neighbour_distances(features: Tensor, k: int, world: World) -> Tensor:
    """Return squared distances [n, k] of each sample to its k nearest others, ascending; n > k."""
    assert len(features) > k, f"{len(features)} samples do not have {k} neighbours"
    return reduce_rows(
        features, features, world, lambda d: d.topk(k + 1, largest=False).values[:, 1:]
    )


def fidelity(
    fakes: Tensor,
    reals: Tensor,
    world: World,
    *,
    fake_radii: Tensor,
    real_radii: Tensor,
    real_radii_wide: Tensor,
    k_wide: int = 5,
) -> Fidelity:
    """Return precision and recall with the radii, density and coverage with the wide radii.

    Radii are squared distances to the k-th nearest neighbour, columns of `neighbour_distances`. The
    papers use k = 3 for `fake_radii` [n] and `real_radii` [m], and k = 5 for `real_radii_wide` [m].
    """

    def of_fakes(d: Tensor) -> Tensor:
        """Return whether each fake is in the radius of a real, and in how many wide radii."""
        return torch.stack(
            [(d < real_radii).any(1).double(), (d < real_radii_wide).sum(1).double() / k_wide], 1
        )

    def of_reals(d: Tensor) -> Tensor:
        """Return whether each real is in the radius of a fake, and its distance to the nearest."""
        return torch.stack([(d < fake_radii).any(1).double(), d.amin(1)], 1)

    inside, density = reduce_rows(fakes, reals, world, of_fakes).mean(0).tolist()
    reached, nearest_fake = reduce_rows(reals, fakes, world, of_reals).unbind(1)
    coverage = (nearest_fake < real_radii_wide).double().mean()
    return Fidelity(inside, float(reached.mean()), density, float(coverage))


def nearest(queries: Tensor, reals: Tensor, world: World) -> tuple[Tensor, Tensor]:
    """Return the squared distance [n] to the nearest real of each query, and its index [n]."""
    both = reduce_rows(
        queries, reals, world, lambda d: torch.stack([s.double() for s in d.min(1)], 1)
    )
    return both[:, 0], both[:, 1].long()


def relative_distances(
    queries: Tensor, reals: Tensor, real_radii: Tensor, world: World
) -> tuple[Tensor, Tensor]:
    """Return each query's squared distance [n] to its nearest real, relative to that real's radius.

    It is 0 for a copy. Where reals are close together, a small distance alone is no sign of one,
    and the radius corrects for that. Also returns the index [n] of the nearest real.
    """
    distances, indices = nearest(queries, reals, world)
    return distances / real_radii[indices].clamp_min(torch.finfo(torch.float64).tiny), indices


def fraction_below(values: Tensor, threshold: float) -> float:
    """Return the fraction of values at or below the threshold, in [0, 1]."""
    return float((values <= threshold).double().mean())
