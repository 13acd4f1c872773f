"""Random draws of a run for its images, beside their pixels: latents, flips and labels.

All are functions of an image's position in the run, so they do not depend on the number of ranks,
and a resumed run repeats them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distgan.config.schema import Config
from distgan.runtime.randomness import normal, uniform

DRAWN_IMAGES = 4096  # latents, flips and labels are drawn for so many images of a rank at once

LabelsAt = Callable[[NDArray[np.int64]], NDArray[np.int64]]
"""Positions in the run, of any shape, to the labels of the images there."""


@dataclass(frozen=True)
class Draws:
    """Random draws for several batches of one rank, made together to launch fewer kernels.

    positions int64 [n, b], latents [n, b, Z], mirrored bool [n, b] or None, and labels int64 [n, b]
    or None, for n batches of b images on this rank. The first batch is at position `start`.
    """

    start: int
    rollbacks: int
    batch_size: int  # over all ranks
    positions: Tensor
    latents: Tensor
    mirrored: Tensor | None
    labels: Tensor | None

    def has(self, position: int, rollbacks: int) -> bool:
        """Return whether these include the draws of the batch at this position."""
        number, rest = divmod(position - self.start, self.batch_size)
        is_inside = rest == 0 and 0 <= number < len(self.positions)
        return is_inside and rollbacks == self.rollbacks

    def of_batch(self, position: int) -> "BatchDraws":
        """Return the draws of the batch at this position."""
        number = (position - self.start) // self.batch_size
        mirrored = None if self.mirrored is None else self.mirrored[number]
        labels = None if self.labels is None else self.labels[number]
        return BatchDraws(self.positions[number], self.latents[number], mirrored, labels)


class BatchDraws(NamedTuple):
    """The draws of one batch: positions int64 [b], latents [b, Z], and what else there is.

    mirrored is bool [b] or None, labels int64 [b] or None.
    """

    positions: Tensor
    latents: Tensor
    mirrored: Tensor | None
    labels: Tensor | None


def draw(
    config: Config,
    position: int,
    *,
    rollbacks: int,
    offset: int,
    batch_size_per_rank: int,
    device: torch.device,
    labels_at: LabelsAt | None,
) -> Draws:
    """Return the draws for the batches from `position` on; `offset` is that of a rank's part."""
    train, per_rank = config.train, batch_size_per_rank
    num_batches = max(1, DRAWN_IMAGES // per_rank)
    # Random bits need 64-bit integers, which mps lacks.
    drawn_on = torch.device("cpu") if device.type == "mps" else device
    starts = torch.arange(num_batches, device=drawn_on) * train.batch_size + position + offset
    positions = (starts[:, None] + torch.arange(per_rank, device=drawn_on)).flatten()
    purpose = f"latents/{rollbacks}" if rollbacks else "latents"
    shape = (config.networks.latent_dim,)
    latents = normal(shape, positions, seed=train.seed, purpose=purpose)
    mirrored = None
    if config.data.flip:
        mirrored = uniform((), positions, seed=train.seed, purpose="flip") < 0.5
        mirrored = mirrored.view(num_batches, -1).to(device)
    labels = None
    if labels_at is not None:
        numbers = np.arange(num_batches)[:, None] * train.batch_size + np.arange(per_rank)
        labels = to_device(labels_at(numbers + position + offset), device)
    return Draws(
        position,
        rollbacks,
        train.batch_size,
        positions.view(num_batches, -1).to(device),
        latents.view(num_batches, per_rank, -1).to(device),
        mirrored,
        labels,
    )


def to_device(labels: NDArray[np.int64], device: torch.device) -> Tensor:
    """Copy labels to a device; the host does not wait for a GPU."""
    on_host = torch.from_numpy(labels)
    if device.type == "cuda":
        on_host = on_host.pin_memory()
    return on_host.to(device, non_blocking=True)
