"""Fakes beside their nearest real neighbours: does a generator invent, or does it copy?"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from distgan.config.schema import Data
from distgan.data import open_dataset
from distgan.errors import UserError
from distgan.evaluation.neighbours import squared_distances
from distgan.networks.generator_file import load_generator
from shards.errors import ShardError
from shards.reader import ShardReader

MOST_REALS = 20_000  # looked through, so that a page takes seconds whatever the dataset
NUM_FAKES, NUM_NEAREST = 8, 2
SIDE = 16  # pixels at which images are compared: colours and coarse shapes


@dataclass(frozen=True)
class Nearest:
    """Fakes [n, C, H, W], and below each its nearest reals [k, n, C, H, W], uint8; out of how many."""

    fakes: Tensor
    reals: Tensor
    num_searched: int
    num_reals: int

    @property
    def grid(self) -> Tensor:
        """Rows of n images: the fakes, the nearest reals, the second nearest."""
        return torch.cat([self.fakes, self.reals.flatten(0, 1)])


def find_nearest(run: Path, data: Data, *, seed: int, fingerprint: str) -> Nearest | str:
    """The first fakes of the seed with their nearest reals; where that cannot be, a sentence that says why."""
    if data.shards is not None and "://" in data.shards:
        return "The real images lie on another machine."
    try:
        index, reader = open_dataset(data)
        if fingerprint and index.fingerprint != fingerprint:
            return f"{index.path} no longer holds the images that this run learned."
        generator = load_generator(run)
    except (UserError, ShardError) as error:
        return f"They could not be looked for: {error}."
    if generator.image_shape != reader.image_shape:
        return f"{index.path} no longer holds the images that this run learned."
    fakes = generator.sample(NUM_FAKES, seed)
    ids, searched = nearest_ids(fakes, reader, most=MOST_REALS)
    reals = torch.from_numpy(reader.gather(ids.T.flatten().numpy())).unflatten(0, (-1, NUM_FAKES))
    return Nearest(fakes, reals, searched, reader.num_samples)


def nearest_ids(fakes: Tensor, reader: ShardReader, *, most: int) -> tuple[Tensor, int]:
    """Ids [n, k] of the reals nearest to fakes uint8 [n, C, H, W], and how many of them were looked at, evenly spread."""
    searched = min(most, reader.num_samples)
    ids = np.linspace(0, reader.num_samples - 1, searched).astype(np.int64)
    parts = [
        coarse(torch.from_numpy(reader.gather(part)))
        for part in np.array_split(ids, -(-searched // 1000))
    ]
    distances = squared_distances(coarse(fakes).double(), torch.cat(parts).double())
    places = distances.topk(min(NUM_NEAREST, searched), largest=False).indices
    return torch.from_numpy(ids)[places], searched


def coarse(images: Tensor) -> Tensor:
    """uint8 [n, C, H, W] -> float [n, C * SIDE * SIDE]."""
    return torch.nn.functional.adaptive_avg_pool2d(images.float(), SIDE).flatten(1)
