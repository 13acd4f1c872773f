"""Generated images beside their nearest real ones, which show whether the generator copies."""

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
from shards.reader import ShardReader

MAX_SEARCHED = 20_000  # reals, so that the search takes seconds for any dataset
NUM_FAKES, NUM_NEAREST = 8, 2
SIDE = 16  # images are compared at this many pixels a side: colours and coarse shapes
CHUNK = 1000  # reals in memory at a time


@dataclass(frozen=True)
class Nearest:
    """Fakes [n, C, H, W] and their nearest reals [k, n, C, H, W], uint8, the nearest first."""

    fakes: Tensor
    reals: Tensor
    num_searched: int
    num_reals: int

    @property
    def grid(self) -> Tensor:
        """Rows of n images: the fakes, their nearest reals, their second nearest."""
        return torch.cat([self.fakes, self.reals.flatten(0, 1)])


def find_nearest(run: Path, data: Data, *, seed: int, fingerprint: str) -> Nearest:
    """Return the first fakes of a seed with their nearest reals.

    Raises UserError or ShardError if the generator or the images are missing or are other ones.
    """
    if data.shards is not None and "://" in data.shards:
        raise UserError(f"the real images are remote ({data.shards})")
    index, reader = open_dataset(data)
    generator = load_generator(run)
    is_same = not fingerprint or index.fingerprint == fingerprint
    if not is_same or generator.image_shape != reader.image_shape:
        raise UserError(f"{index.path} now holds other images than those of this run")
    fakes = generator.sample(NUM_FAKES, seed)
    ids, num_searched = nearest_ids(fakes, reader, max_searched=MAX_SEARCHED)
    reals = torch.from_numpy(reader.gather_8_bits(ids.T.flatten().numpy())).unflatten(
        0, (-1, NUM_FAKES)
    )
    return Nearest(fakes, reals, num_searched, reader.num_samples)


def nearest_ids(fakes: Tensor, reader: ShardReader, *, max_searched: int) -> tuple[Tensor, int]:
    """Return (ids [n, k] of the reals nearest to uint8 fakes [n, C, H, W], number searched).

    In a larger dataset, `max_searched` reals at even distances are searched.
    """
    num_searched = min(max_searched, reader.num_samples)
    ids = np.linspace(0, reader.num_samples - 1, num_searched).astype(np.int64)
    chunks = np.array_split(ids, -(-num_searched // CHUNK))
    reals = torch.cat(
        [downsample(torch.from_numpy(reader.gather_8_bits(chunk))) for chunk in chunks]
    )
    distances = squared_distances(downsample(fakes).double(), reals.double())
    places = distances.topk(min(NUM_NEAREST, num_searched), largest=False).indices
    return torch.from_numpy(ids)[places], num_searched


def downsample(images: Tensor) -> Tensor:
    """Return uint8 [n, C, H, W] as float [n, C * SIDE * SIDE]."""
    return torch.nn.functional.adaptive_avg_pool2d(images.float(), SIDE).flatten(1)
