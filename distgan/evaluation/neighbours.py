"""Metrics of nearest neighbours in feature space: precision, recall, density, coverage, duplicates, copies.

Distances are squared and float64: exact copies come out at zero on any device, whatever it does with float32 matrix
products. Rows are shared out over the ranks; every rank returns the same numbers.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from distgan.runtime.distributed import World

BLOCK_ELEMENTS = 2**23  # of one block of distances: 64 MiB in float64


@dataclass(frozen=True)
class Fidelity:
    """Kynkaanniemi et al. 2019 (arXiv 1904.06991) and Naeem et al. 2020 (arXiv 2002.09797).

    All in [0, 1] but density, which has no upper bound. For two samples of one distribution density is 1 and coverage
    about 1 - 2^-k; precision and recall depend on the dimension.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """[n, d] and [m, d], float64 -> [n, m]."""
    products = torch.addmm(y.square().sum(1), x, y.T, alpha=-2)
    return products.add_(x.square().sum(1, keepdim=True)).clamp_min_(0)


def over_rows(x: Tensor, y: Tensor, world: World, reduce: Callable[[Tensor], Tensor]) -> Tensor:
    """reduce(distances of some rows of x to all of y) -> [rows, c], for all rows of x, in order, on every rank."""
    own, y = x[world.rank :: world.size].double(), y.double()
    rows_per_block = max(1, BLOCK_ELEMENTS // len(y))
    parts = [reduce(squared_distances(block, y)) for block in own.split(rows_per_block)]
    out = torch.cat(parts)
    per_rank = -(-len(x) // world.size)
    padding = out.new_zeros(per_rank - len(out), out.shape[1])
    gathered = world.all_gather(torch.cat([out, padding]))
    # Rank r holds rows r, r + W, ...: interleave, then drop what only filled up the last round.
    return (
        gathered.view(world.size, per_rank, -1)
        .transpose(0, 1)
        .reshape(world.size * per_rank, -1)[: len(x)]
    )


def neighbour_distances(features: Tensor, k: int, world: World) -> Tensor:
    """Squared distances [n, k] of each sample to its k nearest others, ascending; needs n > k."""
    assert len(features) > k, f"{len(features)} samples have no {k} neighbours"
    return over_rows(
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
    """Precision and recall from the radii of the k-th neighbours, density and coverage from the wider ones.

    Radii are squared distances, columns of `neighbour_distances`: `fake_radii` [n] and `real_radii` [m] at k = 3,
    `real_radii_wide` [m] at `k_wide` = 5, the papers' choices.
    """

    def of_fakes(d: Tensor) -> Tensor:  # inside any real's ball; inside how many of the wider ones
        return torch.stack(
            [(d < real_radii).any(1).double(), (d < real_radii_wide).sum(1).double() / k_wide], 1
        )

    def of_reals(d: Tensor) -> Tensor:  # inside any fake's ball; distance to the nearest fake
        return torch.stack([(d < fake_radii).any(1).double(), d.amin(1)], 1)

    inside, density = over_rows(fakes, reals, world, of_fakes).mean(0).tolist()
    reached, nearest_fake = over_rows(reals, fakes, world, of_reals).unbind(1)
    coverage = (nearest_fake < real_radii_wide).double().mean()
    return Fidelity(inside, float(reached.mean()), density, float(coverage))


def nearest(queries: Tensor, reals: Tensor, world: World) -> tuple[Tensor, Tensor]:
    """The nearest real of each query: squared distances [n] and indices [n]."""
    both = over_rows(
        queries, reals, world, lambda d: torch.stack([s.double() for s in d.min(1)], 1)
    )
    return both[:, 0], both[:, 1].long()


def closeness_to_reals(queries: Tensor, reals: Tensor, real_radii: Tensor, world: World) -> Tensor:
    """Squared distance of each query to its nearest real, over that real's own squared radius: [n], 0 for a copy.

    Relative to the radius, because where reals lie close together a near neighbour is no sign of a copy.
    """
    distances, indices = nearest(queries, reals, world)
    return distances / real_radii[indices].clamp_min(torch.finfo(torch.float64).tiny)


def share_below(values: Tensor, threshold: float) -> float:
    """The share of values at or below the threshold, in [0, 1]."""
    return float((values <= threshold).double().mean())
