"""Where a run's images come from, batch after batch on the device: shards in its own memory, or a thread that reads ahead.

shards that fit  ──once──> uint8 on the device ──ids of the order──> batch
others           ──thread──> pinned memory ──side stream, a batch ahead──> batch
All give the same batches.
"""

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from shards.decoding import fair_workers
from shards.reader import BatchStream, ShardReader

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
    options = {"start": start, "batch_size": batch_size, "rank": rank, "world": world_size, "workers": workers}
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
        return self.images[torch.from_numpy(next(self.all_ids)).to(self.images.device, non_blocking=True)]

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
