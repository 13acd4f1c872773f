"""What a run is going to do: how its batch is split, when things are due, and the table that says so at the start."""

import json
import math
from pathlib import Path
from typing import Any

import torch

from distgan.config.flat import changed_from_defaults, flat_values, identity_hash
from distgan.config.load import with_overrides
from distgan.config.schema import Config
from distgan.errors import UserError
from distgan.evaluation.evaluator import Evaluator
from distgan.gan import GAN
from distgan.losses.diversity import GROUP
from distgan.runtime.distributed import World
from distgan.runtime.provenance import hardware
from shards.reader import ShardReader

MACHINE_LOCAL = (  # settings that may differ between the machines of a run
    "data.shards", "data.cache_gb", "data.workers", "data.resident_share", "train.cpu_threads", "evaluation.extractor",
    "evaluation.inception_weights",
)  # fmt: skip


def default_run_dir(name: str, config: Config, fingerprint: str) -> Path:
    """Where a run lies that was given no folder: the same for the same settings and data, so that it goes on there."""
    return Path("runs") / f"{name}-{identity_hash(config, fingerprint)}"


def check_batch(config: Config, world: World) -> None:
    """Raise UserError where the batch, now or after a rollback, cannot be split over processes, micro-batches and groups."""
    check_split(config, world)
    if config.collapse.action == "rollback":
        try:
            check_split(with_overrides(config, config.collapse.remedy), world)
        except UserError as error:
            raise UserError(f"collapse.remedy: {error}") from None


def check_split(config: Config, world: World) -> None:
    """Raise UserError where the batch cannot be split evenly over processes, micro-batches and groups of images."""
    train, networks = config.train, config.networks
    groups = {
        "networks.minibatch_stddev": networks.minibatch_stddev * networks.packing,
        "networks.packing": networks.packing,
        "loss.diversity.mode_seeking": GROUP if config.loss.diversity.mode_seeking else 0,
        "loss.diversity.feature_distance": GROUP * networks.packing
        if config.loss.diversity.feature_distance
        else 0,
    }
    group = math.lcm(*(size for size in groups.values() if size))
    parts = world.size * train.accumulate * group
    if train.batch_size % parts:
        below, above = train.batch_size // parts * parts, (train.batch_size // parts + 1) * parts
        near = f"{below} or {above}" if below else str(above)
        grouped = (
            ""
            if group == 1
            else f" in groups of {group} ({', '.join(n for n, size in groups.items() if size > 1)})"
        )
        raise UserError(
            f"train.batch_size={train.batch_size} cannot be split over {world.size} processes x "
            f"{train.accumulate} micro-batches{grouped}; use {near}"
        )


def check_agreement(config: Config, fingerprint: str, quality: Evaluator, world: World) -> None:
    """Raise UserError on all ranks where one has other data or settings than rank zero: ranks decide alike by them."""
    settings = {
        name: json.dumps(value)
        for name, value in flat_values(config).items()
        if name not in MACHINE_LOCAL
    }
    facts = {
        "dataset": fingerprint,
        "extractor of evaluations": quality.extractor.version,
    } | settings
    zeros = world.broadcast_object(facts)
    differs = torch.tensor(
        [[zeros[name] != facts[name] for name in facts]], dtype=torch.int32, device=quality.device
    )
    for name, column in zip(facts, world.all_gather(differs).T.tolist(), strict=True):
        if ranks := [str(rank) for rank, other in enumerate(column) if other]:
            raise UserError(
                f"rank {', '.join(ranks)}: another {name} than on rank 0; "
                "every machine needs the same shards, the same command and, if `distgan probe` was run, its probe"
            )


def start_table(
    config: Config,
    *,
    reader: ShardReader,
    gan: GAN,
    quality: Evaluator,
    world: World,
    total_images: int,
    precision_reason: str,
) -> list[tuple[str, Any]]:
    """The rows that tell a person what is about to run: the main facts, then what differs from the defaults."""
    spec, train, accelerator = gan.spec, config.train, gan.accelerator
    millions = [
        sum(p.numel() for p in network.parameters()) / 1e6
        for network in (gan.raw_generator, gan.raw_discriminator)
    ]
    batch = str(train.batch_size)
    if world.size * train.accumulate > 1:
        batch += f" = {world.size} processes x {train.accumulate} x {train.batch_size // world.size // train.accumulate}"
    size = f"{spec.image_size}x{spec.image_size}, {spec.channels} channel{'s' if spec.channels > 1 else ''}"
    epochs = total_images / reader.num_samples
    rows = [
        (
            "data",
            f"{reader.num_samples:,} images, {size}, {reader.files.source}",
        ),
        ("length", f"{total_images / 1000:,g} kimg, {epochs:.4g} epochs"),
        (
            "world",
            f"{world.size} process{'es' if world.size > 1 else ''} on {hardware(accelerator.device)}",
        ),
        ("precision", f"{accelerator.mixed_precision}: {precision_reason}"),
        ("compilation", f"{gan.compilation.mode}: {gan.compilation.reason}"),
        ("networks", f"generator {millions[0]:.2f}M, discriminator {millions[1]:.2f}M parameters"),
        ("batch", batch),
        ("quality", f"in features of {quality.extractor_phrase}"),
        *changed_from_defaults(config).items(),
    ]
    if accelerator.device.type == "cuda" and world.size == 1 < torch.cuda.device_count():
        count = torch.cuda.device_count()
        rows.append(("idle", f"{count - 1} GPUs; add --multi_gpu --num_processes {count}"))
    return rows
