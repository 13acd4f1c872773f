"""distgan beside the usual way, each pair interleaved in one run; writes what it found into docs/lab/speed.md.

    python -m tests.benchmarks.speed [--images32 SOURCE] [--images64 SOURCE] [--only WORD ...] [--write]

SOURCE is anything that `distgan pack` takes; without it images are generated. Every figure is the median of `--repeats`
(five), with least and most. Beside the clock's ratio stands that of CPU seconds, which other work on the machine changes
little. The usual way is in `tests/benchmarks/textbook.py`.
"""

import argparse
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path

import numpy as np
import psutil
import torch
from PIL import Image
from torch import Tensor

from distgan.commands.bench import held_batch, make_gan, one_step, write_images
from distgan.config.load import with_overrides
from distgan.config.schema import Config
from distgan.data import TrainingBatches
from distgan.runtime.provenance import hardware
from shards.images import decode_image
from shards.pack import pack
from shards.reader import ShardReader
from shards.sources.open import open_source
from shards.stream import BatchStream
from tests.benchmarks import textbook

DOC = Path(__file__).parents[2] / "docs" / "lab" / "speed.md"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
BATCH = 128


@dataclass(frozen=True)
class Measured:
    """Images per second by the clock, and images per CPU second of this process and those it waited for."""

    by_clock: list[float]
    by_cpu: list[float]


@dataclass(frozen=True)
class Row:
    """A pair: the usual way and ours, and the bar for their ratio."""

    what: str
    usual: Measured
    ours: Measured
    bar: float
    in_cpu_time: bool  # whether the bar is on images per CPU second: "a core"

    def ratio(self, *, cpu: bool) -> float:
        """Ours over the usual, of the medians."""
        ours, usual = (m.by_cpu if cpu else m.by_clock for m in (self.ours, self.usual))
        return statistics.median(ours) / statistics.median(usual)

    def line(self) -> str:
        """A row of the table in Markdown."""
        cells = []
        for measured in (self.usual, self.ours):
            values = measured.by_cpu if self.in_cpu_time else measured.by_clock
            cells.append(
                f"{statistics.median(values):,.0f} ({min(values):,.0f} to {max(values):,.0f})"
            )
        by_clock, by_cpu = (f"{self.ratio(cpu=cpu):.2f}" for cpu in (False, True))
        verdict = "met" if self.ratio(cpu=self.in_cpu_time) >= self.bar else "missed"
        return f"| {self.what} | {cells[0]} | {cells[1]} | {by_clock} | {by_cpu} | {self.bar:g}: {verdict} |"


def cpu_seconds() -> float:
    """Of this process and the children that have ended."""
    times = psutil.Process().cpu_times()
    return times.user + times.system + times.children_user + times.children_system


def side_by_side(works: dict[str, Callable[[], int]], *, repeats: int) -> dict[str, Measured]:
    """Every work in turn, `repeats` times after one warm-up; a work says how many images it did."""
    found = {name: Measured([], []) for name in works}
    for repeat in range(repeats + 1):
        for name, work in works.items():
            began, began_cpu = time.perf_counter(), cpu_seconds()
            num = work()
            if repeat:
                found[name].by_clock.append(num / (time.perf_counter() - began))
                found[name].by_cpu.append(num / max(cpu_seconds() - began_cpu, 1e-3))
    return found


def image_folder(source: str | None, size: int, folder: Path, num: int) -> Path:
    """At most `num` JPEG images of `size` pixels in a class folder: of the source, or generated."""
    if source is None:
        return write_images(folder, num, size=size)
    opened = open_source(source)
    (folder / "images").mkdir(parents=True)
    for number in np.random.default_rng(0).permutation(len(opened))[:num].tolist():
        pixels = decode_image(opened.read(number), size=size, channels=3)
        Image.fromarray(pixels.transpose(1, 2, 0)).save(
            folder / "images" / f"{number:06d}.jpg", quality=95
        )
    return folder


def configured(threads: int) -> Config:
    """The default networks and batch."""
    return with_overrides(Config(), [f"train.batch_size={BATCH}", f"train.cpu_threads={threads}"])


def step_rows(size: int, *, threads: int, repeats: int, shards: Path, folder: Path) -> list[Row]:
    """The step alone against the textbook's, and whole training against the step alone and the textbook's whole loop."""
    config = configured(threads)
    gan = make_gan(config, (3, size, size))
    device = gan.accelerator.device
    held = held_batch(config, (3, size, size), share=BATCH, device=device)
    textbook_step, reals = textbook.make_step(size), held.reals.contiguous()
    num_usual, num, position = {32: 2, 64: 1}[size], {32: 8, 64: 3}[size], 0

    def usual() -> int:
        for _ in range(num_usual):
            textbook_step(reals)
        return num_usual * BATCH

    def ours() -> int:
        for _ in range(num):
            one_step(gan, lambda _: [held], config, step=0)
        return num * BATCH

    with TrainingBatches(
        ShardReader(shards), config, start=0, rank=0, world_size=1, device=device
    ) as batches:
        loaded = textbook.folder_batches(folder, size, batch_size=BATCH, workers=0)

        def usual_training() -> int:
            for _ in range(num_usual):
                textbook_step(next(loaded))
            return num_usual * BATCH

        def our_training() -> int:
            nonlocal position
            for _ in range(num):
                batch = batches.next(position, rollbacks=0)
                one_step(gan, lambda _, batch=batch: batch, config, step=0)
                position += BATCH
            return num * BATCH

        works = {
            "usual": usual,
            "ours": ours,
            "usual training": usual_training,
            "training": our_training,
        }
        found = side_by_side(works, repeats=repeats)
    bar = {32: 4.0, 64: 3.5}[size]
    return [
        Row(f"step, {size} px, batch {BATCH}", found["usual"], found["ours"], bar, False),
        Row(
            f"training with its loader, {size} px",
            found["usual training"],
            found["training"],
            bar,
            False,
        ),
        Row(f"training over step alone, {size} px", found["ours"], found["training"], 0.95, False),
    ]


def loader_row(size: int, *, repeats: int, shards: Path, tars: list[str]) -> Row:
    """Raw shards against a stock pipeline over JPEG, images per CPU second."""
    with (
        BatchStream(ShardReader(shards), key=0, start=0, batch_size=BATCH) as stream,
        closing(textbook.webdataset_batches(tars, size, batch_size=BATCH)) as usual,
    ):

        def read(batches: Callable[[], Tensor], num: int) -> Callable[[], int]:
            def work() -> int:
                return sum(len(batches()) for _ in range(num))

            return work

        works = {"usual": read(lambda: next(usual), 16), "ours": read(lambda: next(stream), 1600)}
        found = side_by_side(works, repeats=repeats)
    return Row(f"loader, {size} px, a core", found["usual"], found["ours"], 40.0, True)


def decoding_row(size: int, *, repeats: int, folder: Path, room: Path) -> Row:
    """JPEG shards by torchvision in this thread against a stock pipeline over the same tars, images per CPU second."""
    index = pack(folder, room, size=size, channels=3, workers=1, encoding="jpeg")
    tars = [str(room / shard.file) for shard in index.shards]
    with (
        BatchStream(ShardReader(index), key=0, start=0, batch_size=BATCH) as stream,
        closing(textbook.webdataset_batches(tars, size, batch_size=BATCH)) as usual,
    ):
        works = {
            "usual": lambda: sum(len(next(usual)) for _ in range(16)),
            "ours": lambda: sum(len(next(stream)) for _ in range(160)),
        }
        found = side_by_side(works, repeats=repeats)
    return Row(
        f"loader of JPEG shards, {size} px, a core", found["usual"], found["ours"], 1.0, True
    )


def pack_row(size: int, *, num: int, repeats: int, folder: Path, room: Path) -> Row:
    """The command, start of its interpreter and workers included, against a loop in this process that is warm."""

    def fresh(name: str) -> Path:
        shutil.rmtree(room / name, ignore_errors=True)
        return room / name

    def ours() -> int:
        command = [
            sys.executable,
            "-c",
            "from distgan.cli import app; app()",
            "pack",
            str(folder),
            str(fresh("ours")),
        ]
        subprocess.run(
            [*command, "--size", str(size), "--channels", "3"],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        return num

    works = {"usual": lambda: textbook.pack_folder(folder, fresh("usual"), size), "ours": ours}
    found = side_by_side(works, repeats=repeats)
    return Row(f"packing, {size} px", found["usual"], found["ours"], 2.5, False)


# ------------------------------------------------------------------------------------------------ the scaling model


@dataclass(frozen=True)
class Network:
    """What lies between GPUs, at the share of its speed that a reduction gets."""

    gpus_per_node: int = 8
    nvlink_gb_per_sec: float = 450 * 0.8  # one direction of one GPU
    fabric_gb_per_sec: float = 50 * 0.8  # 400 Gb/s for each GPU
    nvlink_latency_us: float = 3.0  # of one hop
    fabric_latency_us: float = 10.0


def reduction_ms(num_bytes: float, gpus: int, network: Network = Network()) -> float:
    """Time of one all-reduce: rings inside each node, and among nodes rings of the shares of each GPU.

    A ring of n sends 2 (n - 1) / n of the bytes over each link in 2 (n - 1) hops; between nodes, where hops are dear, a
    tree takes 2 log2(n) of them.
    """
    inside = min(gpus, network.gpus_per_node)
    nodes = -(-gpus // network.gpus_per_node)
    seconds = 2 * (inside - 1) / inside * num_bytes / (network.nvlink_gb_per_sec * 1e9)
    seconds += 2 * (inside - 1) * network.nvlink_latency_us * 1e-6
    if nodes > 1:
        seconds += 2 * (nodes - 1) / nodes * num_bytes / inside / (network.fabric_gb_per_sec * 1e9)
        seconds += 2 * float(np.log2(nodes)) * network.fabric_latency_us * 1e-6
    return seconds * 1e3


def scaling_table(step_ms: float, reduced_bytes: list[float], batch: int) -> list[str]:
    """Rows of Markdown: step time and efficiency for 1 to 1,024 GPUs, nothing of a reduction hidden behind arithmetic."""
    lines = [
        "| GPUs | reductions | step | images/s | efficiency |",
        "| ---: | ---: | ---: | ---: | ---: |",
    ]
    for gpus in (1, 2, 4, 8, 16, 64, 256, 1024):
        waiting = (
            sum(reduction_ms(num_bytes, gpus) for num_bytes in reduced_bytes) if gpus > 1 else 0.0
        )
        step = step_ms + waiting
        lines.append(
            f"| {gpus:,} | {waiting:.3f} ms | {step:.2f} ms | {gpus * batch / step * 1e3:,.0f} | {step_ms / step:.0%} |"
        )
    return lines


def modelled(images_per_sec: float, batch: int) -> list[str]:
    """The model for the default networks at 64 px, and what it assumes."""
    gan = make_gan(configured(1), (3, 64, 64))
    sizes = [
        4.0 * sum(parameter.numel() for parameter in network.parameters())
        for network in (gan.raw_generator, gan.raw_discriminator)
    ]
    network = Network()
    return [
        f"Assumed, not measured: one GPU at {images_per_sec:,.0f} images/s with {batch} images a GPU; "
        f"{sizes[0] / 1e6:.1f} MB and {sizes[1] / 1e6:.1f} MB of fp32 gradients, one reduction each, none of it behind "
        f"arithmetic; {network.nvlink_gb_per_sec:.0f} GB/s and {network.nvlink_latency_us:g} us a hop among "
        f"{network.gpus_per_node} GPUs of a node, {network.fabric_gb_per_sec:.0f} GB/s a GPU and "
        f"{network.fabric_latency_us:g} us between nodes.",
        "",
        *scaling_table(batch / images_per_sec * 1e3, sizes, batch),
    ]


# --------------------------------------------------------------------------------------------------------- the page


def machine() -> str:
    """What the numbers belong to."""
    packages = ", ".join(
        f"{name} {version(name)}" for name in ("torch", "torchvision", "webdataset", "pillow")
    )
    busy = psutil.cpu_percent(2.0)
    cores = psutil.cpu_count()
    return (
        f"{date.today()}, {cores}-core {hardware(torch.device('cpu'))}, python {platform.python_version()}, {packages}; "
        f"other work took {busy:.0f} % of the cores just before"
    )


def write_page(lines: list[str]) -> None:
    """Put the lines between the marks of docs/lab/speed.md."""
    head, rest = DOC.read_text().split(BEGIN)
    DOC.write_text("\n".join([head + BEGIN, *lines, END]) + rest.split(END)[1])


def main() -> None:
    """Measure, print, and write the page where asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images32")
    parser.add_argument("--images64")
    parser.add_argument(
        "--only", nargs="*", choices=["step", "loader", "pack"], default=["step", "loader", "pack"]
    )
    parser.add_argument("--sizes", nargs="*", type=int, choices=[32, 64], default=[32, 64])
    parser.add_argument("--num", type=int, default=10_000, help="images")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=psutil.cpu_count())
    parser.add_argument("--write", action="store_true", help="write docs/lab/speed.md")
    arguments = parser.parse_args()
    lines = [
        f"`python -m tests.benchmarks.speed {' '.join(Path(word).name for word in sys.argv[1:])}`, {machine()}. Medians of "
        f"{arguments.repeats}, least and most in brackets; images per second, for the loader per CPU second.",
        "",
        "| what | the usual way | distgan | ratio, clock | ratio, CPU time | bar |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    print("\n".join(lines))
    for size in arguments.sizes:
        with tempfile.TemporaryDirectory(prefix="distgan-speed-") as temporary:
            room, source = Path(temporary), {32: arguments.images32, 64: arguments.images64}[size]
            folder = image_folder(source, size, room / "folder", arguments.num)
            rows = []
            if "pack" in arguments.only:
                num = len(list(folder.glob("*/*")))
                rows.append(
                    pack_row(size, num=num, repeats=arguments.repeats, folder=folder, room=room)
                )
            pack(folder, room / "shards", size=size, channels=3, workers=1)
            if "loader" in arguments.only:
                tars = textbook.write_jpegs(folder, room / "tars")
                rows.append(
                    loader_row(size, repeats=arguments.repeats, shards=room / "shards", tars=tars)
                )
                rows.append(
                    decoding_row(size, repeats=arguments.repeats, folder=folder, room=room / "jpeg")
                )
            if "step" in arguments.only:
                options = {"threads": arguments.threads, "repeats": arguments.repeats}
                rows += step_rows(size, **options, shards=room / "shards", folder=folder)
            for row in rows:
                lines.append(row.line())
                print(lines[-1], flush=True)
    lines += ["", "### A model of many GPUs", "", *modelled(100_000, BATCH)]
    print("\n".join(lines[-12:]))
    if arguments.write:
        write_page(lines)


if __name__ == "__main__":
    main()
