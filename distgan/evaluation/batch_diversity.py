"""Diversity of one batch of fakes, from distances between pixels: cheap enough for every report.

It shows at once that all fakes are one image, but not that a class is missing.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from distgan.evaluation.neighbours import squared_distances

MOST = 64  # images of a batch that are compared with one another
SIZE = 16  # larger images are averaged down to this size, which removes noise and keeps content


@dataclass(frozen=True)
class BatchDiversity:
    """Distances within batches of reals, with which batches of as many fakes are compared."""

    batch: int
    mean_distance: float
    near_distance: float  # from a real to the nearest other of its batch: the 1 % quantile

    @classmethod
    def of_reals(cls, reals: Tensor, *, batch: int = MOST) -> "BatchDiversity":
        """Measure reals [n, C, H, W] in [-1, 1], n >= 2; a few batches are enough.

        `batch` is the number of fakes that there will be: among fewer images the nearest is
        farther. At most 64 are compared.
        """
        batch = min(max(batch, 2), MOST, len(reals))
        assert batch >= 2, f"{len(reals)} images have no distances"
        found = [pixel_distances(part) for part in reals.split(batch) if len(part) == batch]
        nearest = torch.cat([nearest for _, nearest in found])
        mean = torch.stack([mean for mean, _ in found]).mean()
        return cls(batch, float(mean), float(nearest.quantile(0.01)))

    def metrics(self, fakes: Tensor) -> dict[str, Tensor]:
        """Return the metrics of the first `batch` of fakes [n, C, H, W] in [-1, 1].

        They are scalars on the device, and may be averaged over ranks and steps.
        """
        mean, nearest = pixel_distances(fakes[: self.batch])
        return {
            "diversity/batch_ratio": mean / max(self.mean_distance, 1e-12),
            "diversity/batch_duplicates": (nearest <= self.near_distance).float().mean(),
        }


def pixel_distances(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean distance of all pairs, and the distances [n] to the nearest other image.

    A distance is the root mean square of the differences between pixels.
    """
    pixels = images.detach().float()
    if min(pixels.shape[2:]) > SIZE:
        pixels = torch.nn.functional.adaptive_avg_pool2d(pixels, SIZE)
    flat = pixels.flatten(1)
    # Without the mean of the batch, float32 keeps small differences between large values.
    flat = flat - flat.mean(0)
    distances = (squared_distances(flat, flat) / flat.shape[1]).sqrt()
    others = distances.masked_fill(
        torch.eye(len(flat), dtype=torch.bool, device=flat.device), torch.inf
    )
    return distances.sum() / (len(flat) * (len(flat) - 1)), others.amin(1)
