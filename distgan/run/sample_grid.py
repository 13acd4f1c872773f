"""What the sample grids of a run show: fixed latents, of a conditional GAN one row per class."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distgan.labels import Labels
from distgan.networks.base import GeneratorSpec
from distgan.networks.latents import sample_latents

NUM_SAMPLES = 64  # images of a grid without classes
COLUMNS, MOST_ROWS = 8, 16  # of a grid with classes


def classes_shown(num_classes: int) -> list[int]:
    """Return the classes that have a row, evenly chosen if there are too many for all."""
    num_rows = min(num_classes, MOST_ROWS)
    return [row * num_classes // num_rows for row in range(num_rows)]


def grid_columns(labels: Labels | None) -> int | None:
    """Return the number of images in a row; None for as many as there are rows."""
    return None if labels is None else COLUMNS


def fake_inputs(spec: GeneratorSpec, labels: Labels | None, *, seed: int) -> tuple[Tensor, ...]:
    """Return what a generator takes for a grid: latents [N, Z], and labels [N] if there are any.

    All classes have the same latents, so that a column shows what a class changes.
    """
    if labels is None:
        return (sample_latents(NUM_SAMPLES, spec, seed=seed),)
    return class_grid(sample_latents(COLUMNS, spec, seed=seed), len(labels.names))


def class_grid(latents: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Return latents [N, Z] and labels [N] of a grid with one row per class for latents [C, Z]."""
    rows = classes_shown(num_classes)
    return latents.repeat(len(rows), 1), torch.tensor(rows).repeat_interleave(len(latents))


def real_ids(num_samples: int, labels: Labels | None) -> NDArray[np.int64]:
    """Return the ids of the first real images for a grid."""
    if labels is None:
        return np.arange(min(NUM_SAMPLES, num_samples))
    own = labels.of_samples(np.arange(num_samples))
    rows = (np.flatnonzero(own == number)[:COLUMNS] for number in classes_shown(len(labels.names)))
    return np.concatenate([np.resize(row, COLUMNS) for row in rows])  # repeats what is too short
