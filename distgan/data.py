"""Shards to micro-batches: the dataset of a run, a stream of its images on the device, and the latents that go with them."""

import fcntl
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from distgan.config.schema import Config, Data
from distgan.errors import UserError
from distgan.runtime.randomness import normal, uniform
from shards.decoding import fair_workers
from shards.format.index import ShardIndex
from shards.order.ordering import Ordering
from shards.order.permutation import order_key
from shards.reader import ShardReader
from shards.remote.urls import open_shards
from shards.sources.open import cache_folder
from shards.stream import BatchStream


def packed_digits() -> Path:
    """The digits as 32x32 shards in the cache, packed by the first process that asks."""
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ".digits.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (folder / "digits-32" / "index.json").exists():
                from shards.pack import pack

                pack("digits", folder / "digits-32", workers=1)
    except OSError as error:
        raise UserError(
            f"cannot write to the cache {folder}: {error.strerror}; set DISTGAN_CACHE to another folder"
        ) from None
    return folder / "digits-32"


def open_dataset(data: Data) -> tuple[ShardIndex, ShardReader]:
    """Index and reader of the shards; raises UserError or ShardError for what is missing or damaged."""
    max_bytes = None if data.cache_gb is None else int(data.cache_gb * 1e9)
    index, files = open_shards(
        data.shards or packed_digits(), cache=cache_folder() / "shards", max_bytes=max_bytes
    )
    ordering = Ordering(data.order, data.lanes, data.window_shards)
    return index, ShardReader(index, classes=data.classes, files=files, ordering=ordering)


CHUNK = 4096  # images on their way to the device at a time


class ImageStream(Protocol):
    """Endless batches uint8 [share, C, H, W]; close it."""

    def __next__(self) -> Tensor:
        """The next one, on the device."""

    def close(self) -> None:
        """End it."""


def free_bytes(device: torch.device) -> int:
    """What is free on a GPU; none anywhere else, for there the shards' memory map is as good as a copy."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0


def open_stream(
    reader: ShardReader,
    *,
    key: int,
    start: int,
    batch_size: int,
    rank: int,
    world_size: int,
    device: torch.device,
    resident_share: float,
    workers: int | None = None,
) -> ImageStream:
    """The stream that suits the device: from its memory where the images take at most `resident_share` of what is free.

    `workers` processes decode where shards are encoded; None: as many as are fair.
    """
    num_bytes = reader.num_samples * int(np.prod(reader.image_shape))
    if reader.ordering.kind == "permutation" and num_bytes <= resident_share * free_bytes(device):
        order = reader.order(key, batch_size=batch_size)
        share = batch_size // world_size
        first = start + rank * share
        block = batch_size * np.arange(max(1, order.block // share))[:, None] + np.arange(share)

        def all_ids() -> Iterator[np.ndarray]:
            position = first
            while True:
                yield from order.ids(position + block)
                position += batch_size * len(block)

        return ResidentStream(resident_images(reader, device), all_ids())
    workers = fair_workers() if workers is None else workers
    options = {
        "start": start,
        "batch_size": batch_size,
        "rank": rank,
        "world": world_size,
        "workers": workers,
    }
    read_ahead = BatchStream(reader, key=key, **options)
    return CopiedAhead(read_ahead, device) if device.type == "cuda" else read_ahead


def resident_images(reader: ShardReader, device: torch.device) -> Tensor:
    """All images uint8 [N, C, H, W] in the device's memory, channels last."""
    images = torch.empty(
        (reader.num_samples, *reader.image_shape),
        dtype=torch.uint8,
        device=device,
        memory_format=torch.channels_last,
    )
    for first in range(0, reader.num_samples, CHUNK):
        ids = np.arange(first, min(first + CHUNK, reader.num_samples))
        images[first : first + len(ids)] = torch.from_numpy(reader.gather(ids)).to(device)
    return images


class ResidentStream:
    """Batches of images that lie on the device, by the ids of an order."""

    def __init__(self, images: Tensor, all_ids: Iterator[np.ndarray]) -> None:
        self.images, self.all_ids = images, all_ids

    def __next__(self) -> Tensor:
        return self.images[
            torch.from_numpy(next(self.all_ids)).to(self.images.device, non_blocking=True)
        ]

    def close(self) -> None:
        """Nothing to end."""


class CopiedAhead:
    """Batches of another stream, each on its way to a GPU while the one before is used."""

    def __init__(self, read_ahead: BatchStream, device: torch.device) -> None:
        self.read_ahead, self.device = read_ahead, device
        self.copies = torch.cuda.Stream(device)
        self.ahead = self.copy()

    def copy(self) -> Tensor:
        """Start the copy of the next batch."""
        with torch.cuda.stream(self.copies):
            return next(self.read_ahead).to(self.device, non_blocking=True)

    def __next__(self) -> Tensor:
        user = torch.cuda.current_stream(self.device)
        user.wait_stream(self.copies)
        batch = self.ahead
        batch.record_stream(user)  # its memory is not given to a later copy before the user is done
        self.ahead = self.copy()
        return batch

    def close(self) -> None:
        """End the stream behind it."""
        self.read_ahead.close()


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
        parts = zip(
            *(tensor.split(self.micro_batch) for tensor in (reals, latents, positions)), strict=True
        )
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
