"""`distgan bench`: how fast this machine packs, loads and trains, on generated images.

images -> pack -> load, in each encoding -> train, by precision, compilation, processes, batch size

Rates are medians of several repeats after a warm-up. The training step is compared with the
machine's matrix product.
"""

import itertools
import math
import platform
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from PIL import Image

from distgan.commands.bench_training import (
    TrainingBenchmark,
    TrainingSpeed,
    measure_in_processes,
)
from distgan.commands.timing import Rate, measure_rate
from distgan.config.load import build_config, load_config, with_overrides
from distgan.config.recipe import recipe_for
from distgan.config.schema import Config
from distgan.errors import UserError
from distgan.networks.sizes import pyramid
from distgan.reporting.console import say, show_columns
from distgan.run.folder import write_json
from distgan.run.preflight import group_sizes, settings_for
from distgan.runtime.accelerator import choose_precision, default_num_threads
from distgan.text import format_number
from shards.pack import Encoding, pack
from shards.reader import ShardReader
from shards.stream import BatchStream

Progress = Callable[[str], None]
# Batch sizes to try on a GPU. A CPU gains nothing from a larger batch.
GPU_BATCH_SIZES = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)


@dataclass
class Results:
    """Everything measured: table rows for the console, and the same as plain values for JSON."""

    machine: dict[str, Any]
    rows: list[tuple[str, str, str]] = field(default_factory=list)  # name, figure, remark
    values: dict[str, Any] = field(default_factory=dict)

    def add(self, name: str, unit: str, measured: Rate | float, remark: str = "") -> None:
        """Add one measurement."""
        if isinstance(measured, Rate):
            figure, numbers = str(measured), asdict(measured)
        else:
            figure, numbers = format_number(measured, digits=3), {"value": measured}
        self.rows.append((name, f"{figure} {unit}", remark))
        self.values[name] = {"unit": unit, "remark": remark} | numbers

    def add_training(self, name: str, speed: TrainingSpeed, remark: str = "") -> None:
        """Add a rate of training, or the error that prevented it."""
        if speed.images_per_sec is None:
            self.rows.append((name, "failed", speed.error))
            self.values[name] = {"error": speed.error}
        else:
            remark = remark or f"{speed.peak_gb:.2f} GB at most"
            self.add(name, "images/s", speed.images_per_sec, remark)


def settings_to_measure(preset: str | None, overrides: Sequence[str], *, size: int) -> Config:
    """Return the settings of a preset, or those that a run without preset has for this size."""
    if preset is not None:
        return load_config(preset, overrides)
    return build_config(recipe_for(size, size, num_images=0), overrides)


def show_bench(config: Config, *, size: int, channels: int, quick: bool, json: Path | None) -> None:
    """Measure this machine as `bench` does, print the results, and write them to a JSON file."""
    results = bench(
        config, size=size, channels=channels, quick=quick, progress=lambda what: say(f"{what} ...")
    )
    show_columns(["", "median (least to most)", ""], [list(row) for row in results.rows])
    say(", ".join(f"{name} {value}" for name, value in results.machine.items()))
    if json is not None:
        write_json(json, {"machine": results.machine, "measured": results.values})
        say(f"wrote {json}")


def bench(config: Config, *, size: int, channels: int, quick: bool, progress: Progress) -> Results:
    """Measure this machine with a run's settings, on generated images of `size` pixels.

    `quick` repeats less and does not compile. Raises UserError for an unusual shape.
    """
    check_shape(size, channels)
    repeats, num_images = (3, 1000) if quick else (5, 6000)
    machine = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "host_cores": default_num_threads(),
    }
    results = Results(machine)
    on_gpu = torch.cuda.is_available()
    precision, _ = choose_precision("auto", "no", on_cpu=not on_gpu)
    with tempfile.TemporaryDirectory(prefix="distgan-bench-") as temporary:
        folder = Path(temporary)
        source = write_images(folder / "source", num_images, size=size)
        progress("packing")
        rate = packing_rate(source, folder, size=size, channels=channels, repeats=repeats)
        results.add("pack", "images/s", rate, f"JPEG of {size} px, all cores")
        for encoding in get_args(Encoding):
            progress(f"loading {encoding}")
            shards = folder / encoding
            index = pack(source, shards, size=size, channels=channels, encoding=encoding)
            rate = loading_rate(shards, config, repeats=repeats)
            remark = f"one thread, {index.num_bytes / 1e6:,.1f} MB"
            results.add(f"loader, {encoding}", "images/s", rate, remark)
        benchmark = TrainingBenchmark(
            with_overrides(
                settings_for(config, num_processes=1),
                ["train.precision=launcher", "train.compile=never"],
            ),
            (channels, size, size),
            precision=precision,
            repeats=repeats,
            seconds=0.5 if quick else 1.5,
        )
        add_step(results, benchmark, progress)
        add_training_with_loader(results, benchmark, folder / "raw", progress)
        if not quick:
            add_compiled_steps(results, benchmark, progress, on_gpu=on_gpu)
        add_process_counts(results, benchmark, progress, on_gpu=on_gpu)
        if on_gpu:
            add_batch_sizes(results, benchmark, progress)
    return results


def check_shape(size: int, channels: int) -> None:
    """Raise UserError if there are no networks for images of this shape."""
    try:
        pyramid(size)
    except ValueError as error:
        raise UserError(f"--size {size}: {error}") from None
    if channels not in (1, 3):
        raise UserError(f"--channels {channels}: give 1 or 3")


# ----------------------------------------------------------------------------- packing and loading


def write_images(folder: Path, num: int, *, size: int) -> Path:
    """Write `num` colored JPEG images into `folder`/images, and return `folder`.

    They are smooth shapes with a little noise, which JPEG compresses about as well as photographs.
    """
    rng, images = np.random.default_rng(0), folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    for number in range(num):
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
        noise = rng.integers(-8, 9, (size, size, 3))
        pixels = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC)) + noise
        image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        image.save(images / f"{number:06d}.jpg", quality=95)
    return folder


def packing_rate(source: Path, folder: Path, *, size: int, channels: int, repeats: int) -> Rate:
    """Return images per second of packing; each repeat writes a new folder inside `folder`."""
    numbers = itertools.count()

    def pack_again() -> int:
        out = folder / f"packed-{next(numbers)}"
        return pack(source, out, size=size, channels=channels).num_samples

    return measure_rate(pack_again, repeats=repeats)


def loading_rate(shards: Path, config: Config, *, repeats: int) -> Rate:
    """Return images per second of one process that only loads."""
    reader, batch_size = ShardReader(shards), config.train.batch_size
    num_batches = 20 if reader.index.is_compressed else 200
    with BatchStream(reader, key=0, start=0, batch_size=batch_size) as stream:

        def read() -> int:
            return sum(len(next(stream)) for _ in range(num_batches))

        return measure_rate(read, repeats=repeats)


# ---------------------------------------------------------------------------------------- training


def measure(
    benchmark: TrainingBenchmark, progress: Progress, *overrides: str, **changes: Any
) -> TrainingSpeed:
    """Measure training with some settings, or fields of the benchmark, changed."""
    settings = [f"{name}={value}" for name, value in changes.items() if name != "shards"]
    progress(" ".join(["training", *overrides, *settings]))
    config = with_overrides(benchmark.config, overrides)
    return measure_in_processes(replace(benchmark, config=config, **changes))


def add_step(results: Results, benchmark: TrainingBenchmark, progress: Progress) -> None:
    """Add the step in the best precision and in fp32, and its arithmetic beside the machine's."""
    precision = benchmark.precision
    speed = measure(benchmark, progress)
    results.machine["device"] = speed.hardware
    results.add_training(f"step, {precision}", speed)
    if speed.images_per_sec is not None:
        tflops = speed.images_per_sec.median * speed.flops_per_image / 1e12
        remark = (
            f"{tflops / speed.matrix_tflops:.0%} of the matrix product; "
            f"{speed.flops_per_image / 1e9:.2f} GFLOP per image"
        )
        results.add("step, arithmetic", "TFLOP/s", tflops, remark)
        name = f"matrix product, {precision}"
        results.add(name, "TFLOP/s", speed.matrix_tflops, "best of five")
        remark = "bytes read plus bytes written, best of five"
        results.add("copy in memory", "GB/s", speed.copy_gb_per_sec, remark)
    if precision != "no":
        results.add_training("step, no (fp32)", measure(benchmark, progress, precision="no"))


def add_training_with_loader(
    results: Results, benchmark: TrainingBenchmark, shards: Path, progress: Progress
) -> None:
    """Add the rate of training on packed images."""
    speed = measure(benchmark, progress, shards=shards)
    remark = f"{speed.waiting_fraction:.1%} of the time spent waiting for images"
    results.add_training("training with its loader", speed, remark)


def add_compiled_steps(
    results: Results, benchmark: TrainingBenchmark, progress: Progress, *, on_gpu: bool
) -> None:
    """Add the step with compiled networks, and on a GPU with CUDA graphs."""
    modes = {"compiled": "always"} | ({"CUDA graphs": "graphs"} if on_gpu else {})
    for name, mode in modes.items():
        speed = measure(benchmark, progress, f"train.compile={mode}")
        results.add_training(f"step, {benchmark.precision}, {name}", speed)


def add_process_counts(
    results: Results, benchmark: TrainingBenchmark, progress: Progress, *, on_gpu: bool
) -> None:
    """Add the step in 2, 4, 8, ... processes, one per GPU or with the cores divided among them."""
    maximum = torch.cuda.device_count() if on_gpu else default_num_threads()
    unit = "GPUs" if on_gpu else "processes"
    for processes in process_counts(benchmark.config, maximum):
        speed = measure(benchmark, progress, processes=processes)
        results.add_training(f"step, {processes} {unit}", speed)


def process_counts(config: Config, maximum: int) -> Iterator[int]:
    """Yield the powers of two up to `maximum` into which the batch can be split."""
    group = math.lcm(*group_sizes(config).values())
    processes = 2
    while processes <= maximum:
        if config.train.batch_size % (processes * config.train.accumulate * group) == 0:
            yield processes
        processes *= 2


def add_batch_sizes(results: Results, benchmark: TrainingBenchmark, progress: Progress) -> None:
    """Add the step with ever larger batches, until one fails."""
    for batch_size in GPU_BATCH_SIZES:
        speed = measure(benchmark, progress, f"train.batch_size={batch_size}", repeats=3)
        results.add_training(f"step, batch {batch_size}", speed)
        if speed.images_per_sec is None:
            return
