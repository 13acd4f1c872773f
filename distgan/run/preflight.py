"""Checks before the first step, and the table that describes the run."""

import json
import math
from typing import Any

import torch

from distgan.config.flat import changed_from_defaults, flat_values, flatten, to_overrides
from distgan.config.load import parse_override, with_overrides
from distgan.config.scaling import adaptations, scale_to_batch, share_batch
from distgan.config.schema import Config
from distgan.errors import UserError
from distgan.evaluation.evaluator import Evaluator
from distgan.gan import GAN
from distgan.losses.diversity import GROUP
from distgan.networks.sizes import image_size, pyramid, size_text
from distgan.run.session import Session
from distgan.runtime.distributed import World
from distgan.runtime.provenance import hardware
from distgan.text import format_epochs
from shards.reader import ShardReader

MACHINE_LOCAL = (  # settings that may differ between the machines of a run
    "data.shards",
    "data.cache_gb",
    "data.workers",
    "data.resident_share",
    "train.cpu_threads",
    "evaluation.extractor",
    "evaluation.inception_weights",
)


def check_run(session: Session, config: Config) -> None:
    """Raise UserError if the images, the processes or the length do not suit the settings."""
    check_image_size(session.reader)
    check_batch(config, session.world)
    check_label_start(config, session.total_images)


def check_image_size(reader: ShardReader) -> None:
    """Raise UserError if the networks are not built for images of this size."""
    try:
        pyramid(image_size(*reader.image_shape[1:]))
    except ValueError as error:
        raise UserError(f"{reader.files.source}: {error}; pack again with --size") from None


def settings_for(config: Config, num_processes: int) -> Config:
    """Return the settings with which this many processes train; raises UserError.

    Processes that cannot share the batch of a preset get a larger one. Settings that follow the
    batch size are derived from it, also those of `collapse.remedy`.
    """
    group = math.lcm(*group_sizes(config).values())
    shared = share_batch(config, num_processes, group=group)
    adapted = scale_to_batch(shared, parts=parts_of_batch(config, num_processes))
    remedy = config.collapse.remedy
    if not remedy:
        return adapted
    try:
        other = with_overrides(shared, remedy)
        after = scale_to_batch(other, parts=parts_of_batch(other, num_processes))
    except UserError as error:
        raise UserError(f"collapse.remedy: {error}") from None
    before, values = flat_values(adapted), flat_values(after)
    typed = {name for override in remedy for name in flatten(parse_override(override))}
    changed = {n: v for n, v in values.items() if n in typed or v not in (before[n], None)}
    collapse = adapted.collapse.model_copy(update={"remedy": tuple(to_overrides(changed))})
    return adapted.model_copy(update={"collapse": collapse})


def parts_of_batch(config: Config, num_processes: int) -> int:
    """Return the number by which the batch must be divisible."""
    return num_processes * config.train.accumulate * math.lcm(*group_sizes(config).values())


def remedied(config: Config, world: World) -> Config:
    """Return the settings in force after a rollback, changed by `collapse.remedy`.

    Raises UserError if these processes cannot share the batch then.
    """
    active = with_overrides(config, config.collapse.remedy)
    check_division(active, world)
    return active


def check_label_start(config: Config, total_images: float) -> None:
    """Raise UserError if labels would not be blended in before the run ends."""
    start = config.networks.conditional_start_kimg
    if 2000 * start > total_images:
        raise UserError(
            f"networks.conditional_start_kimg={start:g}: labels have their full effect after twice "
            f"as many images, and the run has {total_images / 1000:g} thousand; use at most "
            f"{math.floor(total_images / 2) / 1000:.10g}"
        )


def check_batch(config: Config, world: World) -> None:
    """Raise UserError if the batch cannot be divided, with or without `collapse.remedy`."""
    check_division(config, world)
    if config.collapse.action == "rollback":
        try:
            remedied(config, world)
        except UserError as error:
            raise UserError(f"collapse.remedy: {error}") from None


def check_division(config: Config, world: World) -> None:
    """Raise UserError unless processes, micro-batches and groups of images divide the batch."""
    train = config.train
    groups = group_sizes(config)
    group = math.lcm(*groups.values())
    parts = parts_of_batch(config, world.size)
    if train.batch_size % parts == 0:
        return
    below, above = train.batch_size // parts * parts, (train.batch_size // parts + 1) * parts
    suggestion = f"{below} or {above}" if below else str(above)
    grouped = f" in groups of {group} ({', '.join(groups)})" if group > 1 else ""
    raise UserError(
        f"train.batch_size={train.batch_size} cannot be split over {world.size} processes x "
        f"{train.accumulate} micro-batches{grouped}; use {suggestion}"
    )


def group_sizes(config: Config) -> dict[str, int]:
    """Return the settings that need consecutive images in one micro-batch, and how many."""
    networks, diversity = config.networks, config.loss.diversity
    sizes = {
        "networks.minibatch_stddev": networks.minibatch_stddev * networks.packing,
        "networks.packing": networks.packing,
        "loss.diversity.mode_seeking": GROUP if diversity.mode_seeking else 0,
        "loss.diversity.feature_distance": (
            GROUP * networks.packing if diversity.feature_distance else 0
        ),
    }
    return {name: size for name, size in sizes.items() if size > 1}


def check_agreement(session: Session, config: Config, evaluator: Evaluator) -> None:
    """Raise UserError on all ranks if any rank has other data or settings. Collective."""
    world = session.world
    settings = {
        name: json.dumps(value)
        for name, value in flat_values(config).items()
        if name not in MACHINE_LOCAL
    }
    facts = {
        "dataset": session.fingerprint,
        "precision": session.accelerator.mixed_precision,  # chosen by each rank for its hardware
        "extractor of evaluations": evaluator.extractor.version,
    } | settings
    expected = world.broadcast_object(facts)
    differs = torch.tensor(
        [[expected[name] != facts[name] for name in facts]],
        dtype=torch.int32,
        device=evaluator.device,
    )
    for name, column in zip(facts, world.all_gather(differs).T.tolist(), strict=True):
        if ranks := [str(rank) for rank, other in enumerate(column) if other]:
            raise UserError(
                f"rank {', '.join(ranks)}: {name} differs from rank 0; "
                "every machine needs the same shards, the same command, GPUs of one generation or "
                "else --mixed_precision, and, if `distgan probe` was run, its probe"
            )


def start_table(
    session: Session,
    config: Config,
    *,
    given: Config,
    recipe: str = "",
    gan: GAN,
    evaluator: Evaluator,
) -> list[tuple[str, Any]]:
    """Return the rows to show before training: main facts, then settings that are not defaults.

    `given` are the settings before they were adapted to the processes and the batch size, and
    `recipe` says why they were chosen if the user named no preset.
    """
    reader, world, spec = session.reader, session.world, gan.spec
    size = size_text(spec.image_size)
    channels = f"{spec.channels} channel{'s' if spec.channels > 1 else ''}"
    epochs = format_epochs(session.total_images / reader.num_samples)
    processes = f"{world.size} process{'es' if world.size > 1 else ''}"
    adapted = adaptations(given, config)
    rows = [
        ("run folder", str(session.run_dir)),
        *([("recipe", recipe)] if recipe else []),
        ("data", f"{reader.num_samples:,} images, {size}, {channels}, {reader.files.source}"),
        ("length", f"{session.total_images / 1000:,g} kimg, {epochs}"),
        ("world", f"{processes} on {hardware(session.device)}"),
        ("precision", f"{session.accelerator.mixed_precision}: {session.precision_reason}"),
        ("compilation", f"{gan.compilation.mode}: {gan.compilation.reason}"),
        ("networks", network_sizes(gan)),
        ("batch", batch_division(config, world)),
        *([("adapted", adapted)] if adapted else []),
        ("quality", f"in features of {evaluator.extractor_phrase}"),
        *changed_from_defaults(config).items(),
    ]
    if session.device.type == "cuda" and world.size == 1 < torch.cuda.device_count():
        count = torch.cuda.device_count()
        launcher = f"accelerate launch --multi_gpu --num_processes {count} distgan/train.py"
        rows.append(("idle", f"{count - 1} GPUs; to use them too: {launcher} ..."))
    return rows


def network_sizes(gan: GAN) -> str:
    """Describe how many parameters the networks have."""
    generator, discriminator = (
        sum(p.numel() for p in network.parameters()) / 1e6
        for network in (gan.raw_generator, gan.raw_discriminator)
    )
    return f"generator {generator:.2f}M, discriminator {discriminator:.2f}M parameters"


def batch_division(config: Config, world: World) -> str:
    """Describe the batch and how it is divided."""
    size, accumulate = config.train.batch_size, config.train.accumulate
    if world.size * accumulate == 1:
        return str(size)
    micro_batch_size = size // world.size // accumulate
    return f"{size} = {world.size} processes x {accumulate} x {micro_batch_size}"
