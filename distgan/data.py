"""From packed shards to micro-batches on the device: normalised images, latents and labels.

shards -> ShardReader -> stream of uint8 batches on the device -> TrainingBatches -> MicroBatch

A stream reads the images of this rank in the global order, either from shards in a thread that
reads ahead, or from the device's own memory if all images fit. Both give the same batches.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from distgan.config.schema import Config, Data
from distgan.draws import Draws, LabelsAt, draw
from distgan.errors import UserError
from distgan.labels import Labels
from shards.decode_workers import default_num_workers
from shards.files import cache_folder, locked
from shards.format.index import INDEX_FILE, ShardIndex
from shards.order.permutation import order_key
from shards.order.rank import RankSlice
from shards.order.settings import OrderSettings
from shards.reader import ShardReader
from shards.remote.files import open_shards
from shards.stream import TENSOR_TYPE, BatchStream

MAX_DECODED = 100_000  # compressed images decoded before training begins, which takes about 10 s
CHUNK = 4096  # images per copy to the device when all are kept there


# ---------------------------------------------------------------------------------------- dataset


def open_dataset(data: Data) -> tuple[ShardIndex, ShardReader]:
    """Open the shards of `data.shards`, or the digits if it is not set.

    Raises UserError or ShardError if anything is missing or damaged.
    """
    max_bytes = None if data.cache_gb is None else int(data.cache_gb * 1e9)
    source, cache = data.shards or packed_digits(), cache_folder() / "shards"
    index, files = open_shards(source, cache=cache, max_bytes=max_bytes)
    order = OrderSettings(data.order, data.lanes, data.window_shards)
    return index, ShardReader(index, classes=data.classes, files=files, order_settings=order)


def packed_digits() -> Path:
    """Return the folder of scikit-learn's digits as 32x32 shards; the first process packs them."""
    folder = cache_folder()
    digits = folder / "digits-32"
    try:
        if not (digits / INDEX_FILE).exists():
            with locked(folder / ".digits.lock", busy=None):
                if not (digits / INDEX_FILE).exists():
                    from shards.pack import pack

                    pack("digits", digits, workers=1)
    except OSError as error:
        raise UserError(
            f"cannot write to the cache {folder}: {error.strerror}; "
            "set DISTGAN_CACHE to another folder"
        ) from None
    return digits


# ---------------------------------------------------------------------------------- micro-batches


@dataclass(frozen=True)
class MicroBatch:
    """Part of a batch that passes through the networks at once.

    reals [b, C, H, W] in [-1, 1], latents [b, Z], and positions int64 [b], the number of images of
    the run that precede each real. All other random draws for these images derive from `seed` and
    `positions`. labels int64 [b] are those of the reals, and of the fakes at the same places; None
    if the networks are not conditional.
    """

    reals: Tensor
    latents: Tensor
    positions: Tensor
    seed: int
    labels: Tensor | None = None

    @property
    def condition(self) -> tuple[Tensor, ...]:
        """Further inputs of both networks beside latents or images: the labels, or nothing."""
        return () if self.labels is None else (self.labels,)


class TrainingBatches:
    """This rank's part of each global batch, in micro-batches."""

    def __init__(
        self,
        reader: ShardReader,
        config: Config,
        *,
        start: int,
        rank: int,
        world_size: int,
        device: torch.device,
        labels: Labels | None = None,
    ) -> None:
        train = config.train
        self.config, self.device = config, device
        self.batch_size_per_rank = train.batch_size // world_size
        self.offset = rank * self.batch_size_per_rank  # of this rank's part in a global batch
        self.micro_batch_size = self.batch_size_per_rank // train.accumulate
        self.wait_seconds = 0.0  # spent waiting for images
        self.draws: Draws | None = None
        key = order_key(reader.index.fingerprint, train.seed)
        self.labels_at: LabelsAt | None = None
        if labels is not None:
            order = reader.make_order(key, batch_size=train.batch_size)
            self.labels_at = lambda positions: labels.of_samples(order.ids(positions))
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

    def __enter__(self) -> "TrainingBatches":
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.close()

    def next(self, position: int, *, rollbacks: int) -> list[MicroBatch]:
        """Return the next batch; `position` is that of the global batch's first image.

        Each rollback changes the latents, so that training does not repeat the collapse.
        """
        if self.draws is None or not self.draws.has(position, rollbacks):
            self.draws = self.draw(position, rollbacks)
        drawn, seed = self.draws.of_batch(position), self.config.train.seed
        reals = self.next_reals(drawn.mirrored)
        parts = (
            tensor.split(self.micro_batch_size)
            for tensor in (reals, drawn.latents, drawn.positions)
        )
        batches = [MicroBatch(r, z, p, seed) for r, z, p in zip(*parts, strict=True)]
        if drawn.labels is None:
            return batches
        labels = drawn.labels.split(self.micro_batch_size)
        return [replace(batch, labels=own) for batch, own in zip(batches, labels, strict=True)]

    def draw(self, position: int, rollbacks: int) -> Draws:
        """Draw latents, flips and labels for the batches from this position on."""
        return draw(
            self.config,
            position,
            rollbacks=rollbacks,
            offset=self.offset,
            batch_size_per_rank=self.batch_size_per_rank,
            device=self.device,
            labels_at=self.labels_at,
        )

    def next_reals(self, mirrored: Tensor | None) -> Tensor:
        """Return the next images [b, C, H, W] in [-1, 1], channels last; `mirrored` is bool [b]."""
        began = time.monotonic()
        pixels = next(self.stream)
        self.wait_seconds += time.monotonic() - began
        images = normalize(pixels)
        if mirrored is not None:
            images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
        return images


def normalize(pixels: Tensor) -> Tensor:
    """Return uint8 images, or the bits of uint16 in int16, as floats in [-1, 1], channels last."""
    pixels = pixels.to(memory_format=torch.channels_last)
    if pixels.dtype == torch.uint8:
        return pixels / 127.5 - 1.0
    return (pixels.int() & 0xFFFF) / 32767.5 - 1.0


# ---------------------------------------------------------------------------------------- streams


class ImageStream(Protocol):
    """Endless batches [b, C, H, W] on the device, as in `normalize`."""

    def __next__(self) -> Tensor: ...

    def close(self) -> None:
        """Stop reading ahead."""


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
    """Open this rank's stream, beginning with the global batch at position `start`.

    All images are kept in the device's memory if they can be loaded quickly and need at most the
    fraction `resident_share` of its free memory. `workers` processes decode compressed shards; None
    chooses their number.
    """
    num_bytes = reader.num_samples * reader.index.raw_layout.image_bytes
    fits = num_bytes <= resident_share * free_bytes(device)
    if reader.order_settings.kind == "permutation" and fits and is_quick_to_load(reader):
        order = reader.make_order(key, batch_size=batch_size)
        slices = RankSlice.of_rank(rank, world_size, start=start, batch_size=batch_size)
        return ResidentStream(resident_images(reader, device), slices.batches(order))
    stream = BatchStream(
        reader,
        key=key,
        start=start,
        batch_size=batch_size,
        rank=rank,
        world_size=world_size,
        workers=default_num_workers() if workers is None else workers,
        pin_memory=device.type == "cuda",
    )
    if device.type == "cpu":
        return stream
    return CopiedAhead(stream, device) if device.type == "cuda" else Copied(stream, device)


def is_quick_to_load(reader: ShardReader) -> bool:
    """Return whether all images can be loaded before training begins.

    Loading is done by one thread, without prefetching, while other ranks may wait.
    """
    num_decoded = reader.num_samples if reader.index.is_compressed else 0
    return not reader.files.remote and num_decoded <= MAX_DECODED


def free_bytes(device: torch.device) -> int:
    """Return the free memory of a GPU, or 0 on a CPU, which reads the memory map as fast."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0


def resident_images(reader: ShardReader, device: torch.device) -> Tensor:
    """Load all images [N, C, H, W] into the device's memory, channels last, as in `normalize`."""
    carrier = TENSOR_TYPE[reader.dtype]
    images = torch.empty(
        (reader.num_samples, *reader.image_shape),
        dtype=carrier,
        device=device,
        memory_format=torch.channels_last,
    )
    for first in range(0, reader.num_samples, CHUNK):
        ids = np.arange(first, min(first + CHUNK, reader.num_samples))
        part = torch.from_numpy(reader.gather(ids).view(f"i{carrier.itemsize}")).view(carrier)
        images[first : first + len(ids)] = part.to(device)
    return images


class ResidentStream:
    """Batches of images that are all in the device's memory."""

    def __init__(self, images: Tensor, ids: Iterator[np.ndarray]) -> None:
        self.images, self.ids = images, ids

    def __next__(self) -> Tensor:
        ids = torch.from_numpy(next(self.ids))
        return self.images[ids.to(self.images.device, non_blocking=True)]

    def close(self) -> None:
        """Do nothing: no thread reads ahead."""


class Copied:
    """Batches of another stream, copied to a device on demand."""

    def __init__(self, stream: BatchStream, device: torch.device) -> None:
        self.stream, self.device = stream, device

    def __next__(self) -> Tensor:
        return next(self.stream).to(self.device)

    def close(self) -> None:
        """Close the stream that is copied."""
        self.stream.close()


class CopiedAhead:
    """Batches of another stream, copied to a GPU one batch ahead on a side stream."""

    def __init__(self, stream: BatchStream, device: torch.device) -> None:
        self.stream, self.device = stream, device
        self.side_stream = torch.cuda.Stream(device)
        self.ahead = self.start_copy()

    def start_copy(self) -> Tensor:
        """Start the copy of the next batch."""
        with torch.cuda.stream(self.side_stream):
            return next(self.stream).to(self.device, non_blocking=True)

    def __next__(self) -> Tensor:
        user = torch.cuda.current_stream(self.device)
        user.wait_stream(self.side_stream)
        batch = self.ahead
        batch.record_stream(user)  # so that a later copy does not reuse the memory too early
        self.ahead = self.start_copy()
        return batch

    def close(self) -> None:
        """Close the stream that is copied."""
        self.stream.close()
