"""Cheap signs of collapse for every report: how different the fakes of one batch are from one another, in pixels.

Blind to a missing class, quick to see that all images are one: the verdict uses them for nothing else.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from distgan.evaluation.neighbours import squared_distances

SIZE = 16  # images are averaged down to this many pixels a side: noise fades, content stays


@dataclass(frozen=True)
class BatchDiversity:
    """Distances within batches of `batch` reals, to hold batches of as many fakes against."""

    batch: int
    mean_distance: float
    near_distance: float  # that 1 % of reals undercut with their nearest other in the batch

    @classmethod
    def of_reals(cls, reals: Tensor, *, batch: int = 64) -> "BatchDiversity":
        """Measure reals [n, C, H, W] in [-1, 1]; n >= 2, a few batches are enough."""
        batch = min(batch, len(reals))
        assert batch >= 2, f"{len(reals)} images have no distances"
        found = [pixel_distances(part) for part in reals.split(batch) if len(part) == batch]
        nearest = torch.cat([nearest for _, nearest in found])
        mean = torch.stack([mean for mean, _ in found]).mean()
        return cls(batch, float(mean), float(nearest.quantile(0.01)))

    def signals(self, fakes: Tensor) -> dict[str, Tensor]:
        """Ratio of mean distances, and share of near-duplicates, in the first `batch` of fakes [n, C, H, W] in [-1, 1].

        Scalars that stay on the device; averages over ranks and steps are right as they are.
        """
        mean, nearest = pixel_distances(fakes[: self.batch])
        return {
            "diversity/batch_ratio": mean / max(self.mean_distance, 1e-12),
            "diversity/batch_duplicates": (nearest <= self.near_distance).float().mean(),
        }


def pixel_distances(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean distance of pairs, and each image's distance [n] to its nearest other; root mean squares of pixels."""
    pixels = images.detach().float()
    if min(pixels.shape[2:]) > SIZE:
        pixels = torch.nn.functional.adaptive_avg_pool2d(pixels, SIZE)
    flat = pixels.flatten(1)
    # Around the batch's mean, for float32 would lose small differences between large images.
    flat = flat - flat.mean(0)
    distances = (squared_distances(flat, flat) / flat.shape[1]).sqrt()
    others = distances.masked_fill(
        torch.eye(len(flat), dtype=torch.bool, device=flat.device), torch.inf
    )
    return distances.sum() / (len(flat) * (len(flat) - 1)), others.amin(1)
