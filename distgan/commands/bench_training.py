"""The speed of training steps, measured in processes of their own.

A new process for each measurement keeps precision, threads, memory and compiled code of one from
affecting the next.
"""

import multiprocessing
import os
import socket
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

from distgan.commands.timing import Rate, measure_rate
from distgan.config.schema import Config
from distgan.data import MicroBatch, TrainingBatches
from distgan.gan import GAN, build_gan, generator_spec
from distgan.labels import stand_in_labels
from distgan.run.forecast import synchronize
from distgan.runtime.accelerator import build_accelerator, reset_accelerator
from distgan.runtime.flops import FlopCounter
from distgan.runtime.provenance import hardware, peak_memory_gb
from distgan.steps import NextBatch, train_step
from distgan.text import first_line
from shards.reader import ShardReader

MATRIX_SIZE = 4096  # rows and columns on a GPU; a CPU multiplies matrices of half the size
COPY_BYTES = 2**28
WARM_UP_STEPS = 3  # networks are compiled, and algorithms chosen, in the first steps


@dataclass(frozen=True)
class TrainingBenchmark:
    """The settings of one measurement of training."""

    config: Config
    image_shape: tuple[int, int, int]  # C, H, W
    precision: str = "bf16"
    processes: int = 1
    shards: Path | None = None  # None: every step trains on the same batch of noise
    repeats: int = 5
    seconds: float = 1.0  # approximate length of one repeat


@dataclass(frozen=True)
class TrainingSpeed:
    """The result of a measurement: images per second over all processes, or an error."""

    images_per_sec: Rate | None
    waiting_fraction: float = 0.0  # of the time, spent waiting for images
    peak_gb: float = 0.0  # of one process
    flops_per_image: float = 0.0
    matrix_tflops: float = 0.0
    copy_gb_per_sec: float = 0.0
    hardware: str = ""
    error: str = ""


# ---------------------------------------------------------------------------- in several processes


def measure_in_processes(benchmark: TrainingBenchmark) -> TrainingSpeed:
    """Measure training in new processes. A failure is returned as an error, not raised."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    spawn = multiprocessing.get_context("spawn")
    receiver, sender = spawn.Pipe(duplex=False)
    ranks = [
        spawn.Process(target=_measure_rank, args=(benchmark, rank, port, sender))
        for rank in range(benchmark.processes)
    ]
    for process in ranks:
        process.start()
    speed = _first_result(receiver, ranks)
    for process in ranks:
        if speed.images_per_sec is None:
            process.terminate()
        process.join()
    return speed


def _first_result(receiver: Connection, ranks: list[Any]) -> TrainingSpeed:
    """Return what a rank sends first, or which of them ended without: the others wait for it."""
    running = list(ranks)
    while True:
        ready = wait([receiver, *(process.sentinel for process in running)])
        if receiver in ready:
            result: TrainingSpeed = receiver.recv()
            return result
        for rank, process in enumerate(ranks):
            if process.sentinel not in ready:
                continue
            process.join()  # its sentinel is ready shortly before its exit code is
            if process.exitcode:
                ended = f"rank {rank} ended with exit code {process.exitcode}"
                return TrainingSpeed(None, error=ended)
        running = [process for process in running if process.sentinel not in ready]


def _measure_rank(benchmark: TrainingBenchmark, rank: int, port: int, results: Connection) -> None:
    """Measure as one rank; rank zero sends the result, and every rank its error."""
    os.environ["ACCELERATE_MIXED_PRECISION"] = benchmark.precision
    # As launchers do; `build_accelerator` then divides the cores among the processes.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if benchmark.processes > 1:
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(benchmark.processes),
            "LOCAL_WORLD_SIZE": str(benchmark.processes),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
    try:
        speed = measure_training(benchmark)
    except Exception as error:  # such as too little memory for the batch, or no compiler
        speed = TrainingSpeed(None, error=first_line(error))
    if rank == 0 or speed.images_per_sec is None:
        results.send(speed)
    reset_accelerator()


# --------------------------------------------------------------------------------- in this process


def measure_training(benchmark: TrainingBenchmark) -> TrainingSpeed:
    """Measure training in this process, which is one rank. Collective."""
    gan = make_gan(benchmark.config, benchmark.image_shape)
    device, is_alone = gan.accelerator.device, gan.accelerator.num_processes == 1
    flops = 0.0
    if is_alone and gan.compilation.mode == "eager":
        flops = flops_per_image(gan, benchmark.config, benchmark.image_shape)
    with open_batches(benchmark, gan) as batches:
        rate, waiting_fraction = measure_steps(benchmark, gan, batches)
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16}
    dtype = dtypes.get(benchmark.precision, torch.float32)
    measures_machine = is_alone and batches is None
    return TrainingSpeed(
        rate,
        waiting_fraction=waiting_fraction,
        peak_gb=peak_memory_gb(device),
        flops_per_image=flops,
        matrix_tflops=matrix_tflops(device, dtype) if measures_machine else 0.0,
        copy_gb_per_sec=copy_gb_per_sec(device) if measures_machine else 0.0,
        hardware=hardware(device),
    )


def make_gan(config: Config, image_shape: tuple[int, int, int]) -> GAN:
    """Build a GAN for images [C, H, W] on the device of this process."""
    accelerator, _ = build_accelerator(config.train)
    labels = stand_in_labels(config.networks)
    spec = generator_spec(config.networks, image_shape, labels=labels)
    return build_gan(accelerator, spec, config)


def open_batches(
    benchmark: TrainingBenchmark, gan: GAN
) -> AbstractContextManager[TrainingBatches | None]:
    """Open this rank's batches from the shards; None if there are no shards."""
    if benchmark.shards is None:
        return nullcontext()
    return TrainingBatches(
        ShardReader(benchmark.shards),
        benchmark.config,
        start=0,
        rank=gan.accelerator.process_index,
        world_size=gan.accelerator.num_processes,
        device=gan.accelerator.device,
        labels=stand_in_labels(benchmark.config.networks),
    )


def measure_steps(
    benchmark: TrainingBenchmark, gan: GAN, batches: TrainingBatches | None
) -> tuple[Rate, float]:
    """Return images per second over all ranks, and the fraction of the time spent waiting."""
    config, train, device = benchmark.config, benchmark.config.train, gan.accelerator.device
    size = train.batch_size // gan.accelerator.num_processes // train.accumulate
    noise = noise_batch(config, benchmark.image_shape, size=size, device=device)
    steps_taken = 0

    def next_batch(position: int) -> list[MicroBatch]:
        if batches is None:
            return [noise] * train.accumulate
        return batches.next(position, rollbacks=0)

    def take_steps(num_steps: int) -> int:
        nonlocal steps_taken
        for _ in range(num_steps):
            take_step(gan, next_batch, config, number=steps_taken)
            steps_taken += 1
        synchronize(device)
        return num_steps * train.batch_size * train.d_steps

    take_steps(WARM_UP_STEPS)
    began = time.perf_counter()
    take_steps(2)
    step_seconds = torch.tensor([(time.perf_counter() - began) / 2]).to(device)
    # All ranks must take the same number of steps, so the slowest one decides.
    slowest = float(gan.accelerator.gather(step_seconds).max())
    period = config.loss.penalty_period
    num_steps = max(1, round(benchmark.seconds / slowest / period)) * period
    if batches is not None:
        batches.wait_seconds = 0.0
    began = time.perf_counter()
    rate = measure_rate(lambda: take_steps(num_steps), repeats=benchmark.repeats)
    waited = 0.0 if batches is None else batches.wait_seconds
    return rate, waited / (time.perf_counter() - began)


def take_step(gan: GAN, next_batch: NextBatch, config: Config, *, number: int) -> None:
    """Take training step `number`, counted from 0, with the schedules at the start of the run."""
    images_seen = number * config.train.batch_size * config.train.d_steps
    train_step(gan, next_batch, config, images_seen=images_seen, progress=0.0)


def noise_batch(
    config: Config, image_shape: tuple[int, int, int], *, size: int, device: torch.device
) -> MicroBatch:
    """Return `size` images of noise [size, C, H, W], latents and labels, in the device's memory."""
    noise = (torch.rand(size, *image_shape) * 2 - 1).to(device)
    reals = noise.to(memory_format=torch.channels_last)
    latents = torch.randn(size, config.networks.latent_dim).to(device)
    positions, stand_in = torch.arange(size, device=device), stand_in_labels(config.networks)
    labels = None if stand_in is None else positions % len(stand_in.names)
    return MicroBatch(reals, latents, positions, seed=0, labels=labels)


# -------------------------------------------------------------------------- arithmetic and machine


def flops_per_image(gan: GAN, config: Config, image_shape: tuple[int, int, int]) -> float:
    """Return the FLOPs of training per real image, with penalties at their average cost."""
    train, num_steps = config.train, config.loss.penalty_period
    size, device = train.batch_size // train.accumulate, gan.accelerator.device
    batches = [noise_batch(config, image_shape, size=size, device=device)] * train.accumulate
    with FlopCounter() as counter:
        for number in range(num_steps):
            take_step(gan, lambda _: batches, config, number=number)
    return counter.total / (train.batch_size * train.d_steps) / num_steps


def matrix_tflops(device: torch.device, dtype: torch.dtype) -> float:
    """Return the TFLOP/s of a large matrix product, which no network exceeds in practice."""
    size = MATRIX_SIZE if device.type == "cuda" else MATRIX_SIZE // 2
    matrix = torch.randn(size, size, dtype=dtype, device=device)

    def multiply() -> int:
        for _ in range(4):
            matrix @ matrix
        synchronize(device)
        return 4

    return measure_rate(multiply, repeats=5).most * 2 * size**3 / 1e12


def copy_gb_per_sec(device: torch.device) -> float:
    """Return the rate of a copy within the device's memory, counting both reads and writes."""
    source = torch.ones(COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.ones_like(source)

    def copy() -> int:
        target.copy_(source)
        synchronize(device)
        return 2 * COPY_BYTES

    return measure_rate(copy, repeats=5).most / 1e9
