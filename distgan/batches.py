"""What a step consumes on this rank: reals on the device, and the latents that go with their positions."""

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from distgan.config import Config
from distgan.randomness import normal, uniform
from distgan.streams import open_stream
from shards.order import order_key
from shards.reader import ShardReader


@dataclass(frozen=True)
class MicroBatch:
    """reals [b, C, H, W] in [-1, 1], latents [b, Z], and the numbers of the reals in the run, int64 [b]."""

    reals: Tensor
    latents: Tensor
    positions: Tensor
    seed: int  # of every other draw that belongs to these positions


class Batches:
    """This rank's share of one global batch after another, in micro-batches, from a position in the order on."""

    def __init__(
        self,
        reader: ShardReader,
        config: Config,
        *,
        start: int,
        rank: int,
        world_size: int,
        device: torch.device,
    ) -> None:
        train = config.train
        self.config, self.device = config, device
        self.share = train.batch_size // world_size
        self.offset = rank * self.share  # of this rank's first image in a global batch
        self.micro_batch = self.share // train.accumulate
        self.wait_seconds = 0.0  # spent waiting for images
        key = order_key(reader.index.fingerprint, train.seed)
        self.stream = open_stream(
            reader,
            key=key,
            start=start,
            batch_size=train.batch_size,
            rank=rank,
            world_size=world_size,
            device=device,
            resident_share=config.data.resident_share,
            workers=config.data.workers,
        )

    def __enter__(self) -> "Batches":
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.close()

    def positions(self, batch_start: int) -> Tensor:
        """Numbers of this rank's images of the global batch that begins at `batch_start`, int64 [share]."""
        first = batch_start + self.offset
        return torch.arange(first, first + self.share, device=self.device)

    def next(self, batch_start: int, *, rollbacks: int) -> list[MicroBatch]:
        """The next batch; after a rollback with other latents than those that led to the collapse."""
        positions, seed = self.positions(batch_start), self.config.train.seed
        reals = self.next_reals(positions)
        purpose = f"latents/{rollbacks}" if rollbacks else "latents"
        latents = normal((self.config.networks.latent_dim,), positions, seed=seed, purpose=purpose)
        parts = zip(*(tensor.split(self.micro_batch) for tensor in (reals, latents, positions)), strict=True)
        return [MicroBatch(reals, latents, positions, seed) for reals, latents, positions in parts]

    def next_reals(self, positions: Tensor) -> Tensor:
        """The next images [share, C, H, W] in [-1, 1], channels last, mirrored where so drawn."""
        began = time.monotonic()
        pixels = next(self.stream)
        self.wait_seconds += time.monotonic() - began
        pixels = pixels.to(memory_format=torch.channels_last)
        images = pixels.float() / 127.5 - 1.0
        if self.config.data.flip:
            drawn = uniform((), positions, seed=self.config.train.seed, purpose="flip")
            images = torch.where((drawn < 0.5)[:, None, None, None], images.flip(3), images)
        return images
