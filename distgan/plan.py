"""What a run is going to do: how its batch is split, when things are due, and the table that says so at the start."""

import math
from typing import Any

import torch

from distgan.config import Config, Train, changed_from_defaults
from distgan.distributed import World
from distgan.errors import UserError
from distgan.players import Players
from distgan.quality import QualityWatch
from distgan.runtime import hardware
from shards.reader import ShardReader


def due(interval: float, before: int, now: int) -> bool:
    """Whether a multiple of the interval (in images) lies after `before` and not after `now`."""
    return math.floor(now / interval) > math.floor(before / interval)


def check_batch(train: Train, world: World) -> None:
    """Raise UserError where the batch cannot be split evenly over processes and micro-batches."""
    parts = world.size * train.accumulate
    if train.batch_size % parts:
        below, above = train.batch_size // parts * parts, (train.batch_size // parts + 1) * parts
        near = f"{below} or {above}" if below else str(above)
        raise UserError(
            f"train.batch_size={train.batch_size} cannot be split over {world.size} processes x "
            f"{train.accumulate} micro-batches; use {near}"
        )


def start_table(
    config: Config,
    *,
    reader: ShardReader,
    players: Players,
    quality: QualityWatch,
    world: World,
    total_images: int,
    precision_reason: str,
) -> list[tuple[str, Any]]:
    """The rows that tell a person what is about to run: the main facts, then what differs from the defaults."""
    spec, train, accelerator = players.spec, config.train, players.accelerator
    millions = [
        sum(p.numel() for p in network.parameters()) / 1e6
        for network in (players.bare_generator, players.bare_discriminator)
    ]
    batch = str(train.batch_size)
    if world.size * train.accumulate > 1:
        batch += (
            f" = {world.size} processes x {train.accumulate} x {train.batch_size // world.size // train.accumulate}"
        )
    size = f"{spec.image_size}x{spec.image_size}, {spec.channels} channel{'s' if spec.channels > 1 else ''}"
    epochs = total_images / reader.num_samples
    rows = [
        (
            "data",
            f"{reader.num_samples:,} images, {size}, {reader.files.source}",
        ),
        ("length", f"{total_images / 1000:,g} kimg, {epochs:.4g} epochs"),
        ("world", f"{world.size} process{'es' if world.size > 1 else ''} on {hardware(accelerator.device)}"),
        ("precision", f"{accelerator.mixed_precision}: {precision_reason}"),
        ("networks", f"generator {millions[0]:.2f}M, discriminator {millions[1]:.2f}M parameters"),
        ("batch", batch),
        ("quality", f"in features of {quality.extractor_phrase}"),
        *changed_from_defaults(config).items(),
    ]
    if accelerator.device.type == "cuda" and world.size == 1 < torch.cuda.device_count():
        count = torch.cuda.device_count()
        rows.append(("idle", f"{count - 1} GPUs; add --multi_gpu --num_processes {count}"))
    return rows
