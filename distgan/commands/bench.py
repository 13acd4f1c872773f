"""How fast this machine packs, loads and trains: every figure from one run, warm-up left out, median with least and most.

generated images -> pack -> loader by encoding -> step by precision and compile mode, by batch size, by processes
                                               -> training with its loader, beside matrix product and copy
Steps run in processes of their own, so that one's precision, threads and memory are not the next one's.
"""

import multiprocessing
import os
import platform
import socket
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from distgan.config.load import with_overrides
from distgan.config.schema import Config
from distgan.data import MicroBatch, TrainingBatches
from distgan.gan import GAN, build_gan, generator_spec
from distgan.runtime.accelerator import (
    build_accelerator,
    choose_precision,
    default_num_threads,
    reset_accelerator,
)
from distgan.runtime.provenance import hardware, peak_memory_gb
from distgan.steps import NextBatch, train_step
from shards.pack import Encoding, pack
from shards.reader import ShardReader
from shards.stream import BatchStream

Progress = Callable[[str], None]
MATRIX_SIDE = 4096
COPY_BYTES = 2**28
LADDER = (
    64,
    128,
    256,
    512,
    1024,
    2048,
    4096,
    8192,
    16384,
)  # batch sizes on a GPU; a CPU is full at the first


@dataclass(frozen=True)
class Spread:
    """Median, least and most of some repeats."""

    median: float
    least: float
    most: float

    def __str__(self) -> str:
        return f"{shown(self.median)} ({shown(self.least)} to {shown(self.most)})"


def shown(number: float) -> str:
    """A number as a person reads it."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def spread(values: list[float]) -> Spread:
    """Of at least one value."""
    return Spread(statistics.median(values), min(values), max(values))


def rates(work: Callable[[], int], *, repeats: int) -> Spread:
    """Images per second of `work`, which says how many it did; the first call is warm-up."""
    found = []
    for repeat in range(repeats + 1):
        began = time.perf_counter()
        num = work()
        if repeat:
            found.append(num / (time.perf_counter() - began))
    return spread(found)


def write_images(folder: Path, num: int, *, size: int, seed: int = 0) -> Path:
    """`num` coloured JPEG images of smooth shapes, which compress as photographs do, in class folder `images`."""
    draw, folder = np.random.default_rng(seed), folder / "images"
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(num):
        coarse = Image.fromarray(draw.integers(0, 256, (8, 8, 3), np.uint8))
        fine = draw.integers(-8, 9, (size, size, 3))
        pixels = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC)) + fine
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(
            folder / f"{number:06d}.jpg", quality=95
        )
    return folder.parent


# --------------------------------------------------------------------------------------------------------- the step


@dataclass(frozen=True)
class Trial:
    """A way to train, measured by `run_trial` in a world of its own."""

    config: Config
    image_shape: tuple[int, int, int]  # C, H, W
    precision: str = "bf16"
    processes: int = 1
    shards: Path | None = (
        None  # images come through the loader; None: the same batch again and again
    )
    repeats: int = 5
    seconds: float = 1.0  # about so long is one repeat


@dataclass(frozen=True)
class Trained:
    """What a trial gave: images per second over all processes, or why there are none."""

    images_per_sec: Spread | None
    wait_share: float = 0.0  # of the time, spent waiting for images
    peak_gb: float = 0.0  # of one process
    flops_per_image: float = 0.0
    matrix_tflops: float = 0.0
    copy_gb_per_sec: float = 0.0
    hardware: str = ""
    error: str = ""


def one_step(gan: GAN, next_batch: NextBatch, config: Config, *, step: int) -> None:
    """Train for step number `step`, as the trainer does at the start of a long run."""
    images_seen = step * config.train.batch_size * config.train.d_steps
    train_step(gan, next_batch, config, images_seen=images_seen, progress=0.0)


def held_batch(
    config: Config, image_shape: tuple[int, int, int], *, size: int, device: torch.device
) -> MicroBatch:
    """A batch of noise that lies on the device."""
    reals = (
        (torch.rand(size, *image_shape) * 2 - 1).to(device).to(memory_format=torch.channels_last)
    )
    latents = torch.randn(size, config.networks.latent_dim).to(device)
    return MicroBatch(reals, latents, torch.arange(size, device=device), seed=0)


def make_gan(config: Config, image_shape: tuple[int, int, int]) -> GAN:
    """Build a GAN for images [C, H, W] in the world of this process."""
    accelerator, _ = build_accelerator(config.train)
    return build_gan(accelerator, generator_spec(config.networks, image_shape), config)


def synchronize(device: torch.device) -> None:
    """Wait for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matrix_tflops(device: torch.device, dtype: torch.dtype) -> float:
    """The rate of a large matrix product, the most a network can come near."""
    side = MATRIX_SIDE if device.type == "cuda" else MATRIX_SIDE // 2
    matrix = torch.randn(side, side, dtype=dtype, device=device)

    def multiply() -> int:
        for _ in range(4):
            matrix @ matrix
        synchronize(device)
        return 4

    return rates(multiply, repeats=5).most * 2 * side**3 / 1e12


def copy_gb_per_sec(device: torch.device) -> float:
    """Bytes read and written a second by a plain copy in the device's memory."""
    source = torch.ones(COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.ones_like(source)

    def copy() -> int:
        target.copy_(source)
        synchronize(device)
        return 2 * COPY_BYTES

    return rates(copy, repeats=5).most / 1e9


def flops_per_image(gan: GAN, config: Config, image_shape: tuple[int, int, int]) -> float:
    """Count the multiplications and additions of a step per image, the mean over a penalty interval."""
    train, num_steps = config.train, config.loss.penalty_period
    size, device = train.batch_size // train.accumulate, gan.accelerator.device
    batches = [held_batch(config, image_shape, size=size, device=device)] * train.accumulate
    with FlopCounterMode(display=False) as counter:
        for step in range(num_steps):
            one_step(gan, lambda _: batches, config, step=step)
    return counter.get_total_flops() / (train.batch_size * train.d_steps) / num_steps


def train_trial(trial: Trial) -> Trained:
    """Measure a trial in this process, which is one of its world."""
    config, train = trial.config, trial.config.train
    gan = make_gan(config, trial.image_shape)
    device, world_size = gan.accelerator.device, gan.accelerator.num_processes
    batches, num_steps = None, 0
    if trial.shards is not None:
        rank = gan.accelerator.process_index
        batches = TrainingBatches(
            ShardReader(trial.shards),
            config,
            start=0,
            rank=rank,
            world_size=world_size,
            device=device,
        )
    micro_batch_size = train.batch_size // world_size // train.accumulate
    period = config.loss.penalty_period
    held = held_batch(config, trial.image_shape, size=micro_batch_size, device=device)

    def next_batch(position: int) -> list[MicroBatch]:
        if batches is None:
            return [held] * train.accumulate
        return batches.next(position, rollbacks=0)

    def steps(num: int) -> int:
        nonlocal num_steps
        for _ in range(num):
            one_step(gan, next_batch, config, step=num_steps)
            num_steps += 1
        synchronize(device)
        return num * train.batch_size * train.d_steps

    flops = 0.0
    if world_size == 1 and gan.compilation.mode == "eager":
        flops = flops_per_image(gan, config, trial.image_shape)
    steps(3)  # the first are slow, and compile
    began = time.perf_counter()
    steps(2)
    second = torch.tensor(time.perf_counter() - began)
    second = gan.accelerator.gather(
        second.to(device)[None]
    ).max()  # so that all ranks take as many steps
    num = max(1, round(trial.seconds / (float(second) / 2) / period)) * period
    if batches is not None:
        batches.wait_seconds = 0.0
    began = time.perf_counter()
    found = rates(lambda: steps(num), repeats=trial.repeats)
    waited = 0.0 if batches is None else batches.wait_seconds / (time.perf_counter() - began)
    if batches is not None:
        batches.stream.close()
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(trial.precision, torch.float32)
    alone = world_size == 1 and batches is None
    return Trained(
        found,
        wait_share=waited,
        peak_gb=peak_memory_gb(device),
        flops_per_image=flops,
        matrix_tflops=matrix_tflops(device, dtype) if alone else 0.0,
        copy_gb_per_sec=copy_gb_per_sec(device) if alone else 0.0,
        hardware=hardware(device),
    )


def _rank_of_trial(trial: Trial, rank: int, port: int, results: Any) -> None:
    os.environ["ACCELERATE_MIXED_PRECISION"] = trial.precision
    os.environ.setdefault(
        "OMP_NUM_THREADS", "1"
    )  # as a launcher does; `build_accelerator` shares the cores out
    if trial.processes > 1:
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(trial.processes),
            "LOCAL_WORLD_SIZE": str(trial.processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }  # fmt: skip
    try:
        trained = train_trial(trial)
    except Exception as error:  # no memory for the batch, no compiler: told in the table
        trained = Trained(None, error=(str(error) or type(error).__name__).splitlines()[0][:200])
    if rank == 0:
        results.put(trained)
    reset_accelerator()


def run_trial(trial: Trial) -> Trained:
    """Measure a trial in processes of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    spawn = multiprocessing.get_context("spawn")
    results = spawn.SimpleQueue()
    ranks = [
        spawn.Process(target=_rank_of_trial, args=(trial, rank, port, results))
        for rank in range(trial.processes)
    ]
    for process in ranks:
        process.start()
    ranks[0].join()  # a result is small enough for the pipe to hold
    trained = (
        Trained(None, error=f"ended with code {ranks[0].exitcode}")
        if results.empty()
        else results.get()
    )
    for process in ranks[1:]:
        if trained.images_per_sec is None:
            process.terminate()
        process.join()
    return trained


# ---------------------------------------------------------------------------------------------------------- the table


@dataclass
class Bench:
    """All that was measured: rows for a person, and the same as plain values."""

    machine: dict[str, Any]
    rows: list[tuple[str, str, str]] = field(default_factory=list)  # what, figure, remark
    values: dict[str, Any] = field(default_factory=dict)

    def add(self, name: str, unit: str, found: Spread | float, remark: str = "") -> None:
        """One figure."""
        self.rows.append(
            (name, f"{found if isinstance(found, Spread) else shown(found)} {unit}", remark)
        )
        self.values[name] = {"unit": unit, "remark": remark} | (
            asdict(found) if isinstance(found, Spread) else {"value": found}
        )

    def add_step(self, name: str, trained: Trained, remark: str = "") -> None:
        """The rate of a trial, or why there is none."""
        if trained.images_per_sec is None:
            self.rows.append((name, "none", trained.error))
            self.values[name] = {"error": trained.error}
        else:
            self.add(
                name,
                "images/s",
                trained.images_per_sec,
                remark or f"{trained.peak_gb:.2f} GB at most",
            )


def bench(config: Config, *, size: int, channels: int, quick: bool, progress: Progress) -> Bench:
    """Measure this machine with the settings of a run, on generated images of `size` pixels; `quick` leaves most out."""
    repeats, num_images = (3, 1000) if quick else (5, 6000)
    image_shape = (channels, size, size)
    on_gpu = torch.cuda.is_available()
    best, _ = choose_precision("auto", "no", on_cpu=not on_gpu)
    found = Bench(
        {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "host_cores": default_num_threads(),
        }
    )
    with tempfile.TemporaryDirectory(prefix="distgan-bench-") as folder:
        images = write_images(Path(folder) / "source", num_images, size=size)
        progress("packing")
        packed = iter(range(10**6))

        def pack_again() -> int:
            return pack(
                images, Path(folder) / f"packed-{next(packed)}", size=size, channels=channels
            ).num_samples

        found.add(
            "pack", "images/s", rates(pack_again, repeats=repeats), f"JPEG of {size} px, all cores"
        )
        shards = Path(folder) / "packed-0"
        for encoding in get_args(Encoding):
            progress(f"loading {encoding}")
            place = Path(folder) / encoding
            megabytes = (
                pack(images, place, size=size, channels=channels, encoding=encoding).num_bytes / 1e6
            )
            rate = loader_rate(
                place, config, repeats=repeats, num_batches=200 if encoding == "raw" else 20
            )
            found.add(f"loader, {encoding}", "images/s", rate, f"one thread, {megabytes:,.1f} MB")
        trial = Trial(
            with_overrides(config, ["train.precision=launcher", "train.compile=never"]),
            image_shape,
            precision=best,
            repeats=repeats,
            seconds=0.5 if quick else 1.5,
        )
        add_steps(found, trial, shards=shards, quick=quick, on_gpu=on_gpu, progress=progress)
    return found


def loader_rate(shards: Path, config: Config, *, repeats: int, num_batches: int) -> Spread:
    """Images per second that one process's loader gives when nobody does anything with them."""
    batch_size = config.train.batch_size
    with BatchStream(ShardReader(shards), key=0, start=0, batch_size=batch_size) as stream:

        def read() -> int:
            return sum(len(next(stream)) for _ in range(num_batches))

        return rates(read, repeats=repeats)


def add_steps(
    found: Bench, trial: Trial, *, shards: Path, quick: bool, on_gpu: bool, progress: Progress
) -> None:
    """Every figure that needs the two networks."""

    def run(words: list[str], **changes: Any) -> Trained:
        progress(
            ", ".join(["training", *words, *(f"{name} {value}" for name, value in changes.items())])
        )
        return run_trial(
            Trial(**(vars(trial) | {"config": with_overrides(trial.config, words)} | changes))
        )

    step = run([])
    found.machine["device"] = step.hardware
    found.add_step(f"step, {trial.precision}", step)
    if step.images_per_sec is not None:
        tflops = step.images_per_sec.median * step.flops_per_image / 1e12
        share = f"{tflops / step.matrix_tflops:.0%} of the matrix product; {step.flops_per_image / 1e9:.2f} GFLOP an image"
        found.add("step, arithmetic", "TFLOP/s", tflops, share)
        found.add(
            f"matrix product, {trial.precision}", "TFLOP/s", step.matrix_tflops, "the best of five"
        )
        found.add(
            "copy in memory", "GB/s", step.copy_gb_per_sec, "read and written, the best of five"
        )
    if trial.precision != "no":
        found.add_step("step, no (fp32)", run([], precision="no"))
    trained = run([], shards=shards)
    found.add_step(
        "training with its loader", trained, f"{trained.wait_share:.1%} of it waiting for images"
    )
    ways = {"compiled": "always"} | ({"CUDA graphs": "graphs"} if on_gpu else {})
    for name, setting in () if quick else ways.items():
        found.add_step(f"step, {trial.precision}, {name}", run([f"train.compile={setting}"]))
    most = torch.cuda.device_count() if on_gpu else default_num_threads()
    for processes in range(2, most + 1):
        if (
            trial.config.train.batch_size % (processes * trial.config.train.accumulate) == 0
            and processes & (processes - 1) == 0
        ):
            of = "GPUs" if on_gpu else "processes, the cores shared out"
            found.add_step(f"step, {processes} {of}", run([], processes=processes))
    for batch_size in LADDER if on_gpu else ():
        rung = run([f"train.batch_size={batch_size}"], repeats=3)
        found.add_step(f"step, batch {batch_size}", rung)
        if rung.images_per_sec is None:
            break
