"""distgan beside the usual way of doing the same work, by turns in one run.

    python -m tests.benchmarks.speed [--images32 SOURCE] [--images64 SOURCE] [--only step] [--write]

SOURCE is anything that `distgan pack` takes; without it images are generated. Every figure is the
median of `--repeats` (five), with least and most. The ratio by the clock is followed by that of CPU
seconds, which other work on the machine changes little. The usual way is in `textbook.py`.
`--write` puts the table into docs/lab/speed.md.
"""

import shutil
import statistics
import sys
import tempfile
import textwrap
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import psutil
from PIL import Image
from torch import Tensor

from distgan.commands.bench import write_images
from distgan.commands.bench_training import make_gan, noise_batch, take_step
from distgan.config.load import with_overrides
from distgan.config.schema import Config
from distgan.data import TrainingBatches
from shards.images import decode_image
from shards.pack import pack
from shards.reader import ShardReader
from shards.sources.registry import open_source
from shards.stream import BatchStream
from tests.benchmarks import scaling, textbook
from tests.benchmarks.common import Rates, command_line, distgan, machine, measure_by_turns

DOC = Path(__file__).parents[2] / "docs" / "lab" / "speed.md"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
BATCH = 128
PARTS = ("pack", "loader", "step")
HEAD = (
    "| what | the usual way | distgan | ratio, clock | ratio, CPU time | bar |",
    "| --- | ---: | ---: | ---: | ---: | ---: |",
)


@dataclass(frozen=True)
class Row:
    """The usual way and distgan at one task, and the ratio to reach."""

    what: str
    usual: Rates
    ours: Rates
    bar: float
    per_cpu_second: bool = False  # whether rates and bar are those of one core

    def ratio(self, *, by_cpu: bool) -> float:
        """Return distgan's median over the usual way's."""
        ours, usual = (r.by_cpu if by_cpu else r.by_clock for r in (self.ours, self.usual))
        return statistics.median(ours) / statistics.median(usual)

    def line(self) -> str:
        """Return the row in Markdown."""
        usual, ours = (
            spread(rates.by_cpu if self.per_cpu_second else rates.by_clock)
            for rates in (self.usual, self.ours)
        )
        by_clock, by_cpu = (f"{self.ratio(by_cpu=by_cpu):.2f}" for by_cpu in (False, True))
        outcome = "met" if self.ratio(by_cpu=self.per_cpu_second) >= self.bar else "missed"
        return (
            f"| {self.what} | {usual} | {ours} | {by_clock} | {by_cpu} | {self.bar:g}: {outcome} |"
        )


def spread(values: list[float]) -> str:
    """Return the median with least and most."""
    return f"{statistics.median(values):,.0f} ({min(values):,.0f} to {max(values):,.0f})"


def image_folder(source: str | None, size: int, folder: Path, num: int) -> Path:
    """Write at most `num` JPEG images of `size` pixels into a class folder, or generate them."""
    if source is None:
        return write_images(folder, num, size=size)
    opened = open_source(source)
    (folder / "images").mkdir(parents=True)
    for number in np.random.default_rng(0).permutation(len(opened))[:num].tolist():
        pixels = decode_image(opened.read(number), size=size, channels=3)
        image = Image.fromarray(pixels.transpose(1, 2, 0))
        image.save(folder / "images" / f"{number:06d}.jpg", quality=95)
    return folder


def repeat_step(step: Callable[[], object], num: int) -> int:
    """Take `num` steps; return the number of images."""
    for _ in range(num):
        step()
    return num * BATCH


def step_rows(size: int, *, threads: int, repeats: int, shards: Path, folder: Path) -> list[Row]:
    """Compare the step alone, and training with its loader, with the textbook's."""
    overrides = [f"train.batch_size={BATCH}", f"train.cpu_threads={threads}"]
    config = with_overrides(Config(), overrides)
    gan = make_gan(config, (3, size, size))
    device = gan.accelerator.device
    noise = noise_batch(config, (3, size, size), size=BATCH, device=device)
    usual_step = textbook.TextbookGAN(size).step
    usual_batches = textbook.folder_batches(folder, size, batch_size=BATCH, workers=0)
    reals = noise.reals.contiguous()
    position = 0

    def train_with_loader() -> None:
        nonlocal position
        batch = batches.next(position, rollbacks=0)
        take_step(gan, lambda _: batch, config, number=0)
        position += BATCH

    place = {"rank": 0, "world_size": 1, "device": device}
    with TrainingBatches(ShardReader(shards), config, start=0, **place) as batches:
        usual_num, num = {32: (2, 8), 64: (1, 3)}[size]
        steps = {
            "usual": (lambda: usual_step(reals), usual_num),
            "ours": (lambda: take_step(gan, lambda _: [noise], config, number=0), num),
            "usual training": (lambda: usual_step(next(usual_batches)), usual_num),
            "training": (train_with_loader, num),
        }
        works = {name: partial(repeat_step, *arguments) for name, arguments in steps.items()}
        found = measure_by_turns(works, repeats=repeats)
    bar = {32: 3.5, 64: 4.0}[size]  # on a CPU with AMX
    name = f"training with its loader, {size} px"
    return [
        Row(f"step, {size} px, batch {BATCH}", found["usual"], found["ours"], bar),
        Row(name, found["usual training"], found["training"], bar),
        Row(f"training over step alone, {size} px", found["ours"], found["training"], 0.95),
    ]


def read(batches: Callable[[], Tensor], num: int) -> int:
    """Read `num` batches; return the number of images."""
    return sum(len(batches()) for _ in range(num))


def loader_row(what: str, shards: Path, tars: list[str], *, size: int, repeats: int) -> Row:
    """Compare reading shards with a stock pipeline over tars of JPEG, in images per CPU second."""
    reader = ShardReader(shards)
    num, bar = (160, 1.0) if reader.index.is_compressed else (1600, 40.0)
    with (
        BatchStream(reader, key=0, start=0, batch_size=BATCH) as stream,
        closing(textbook.webdataset_batches(tars, size, batch_size=BATCH)) as usual,
    ):
        works = {
            "usual": partial(read, lambda: next(usual), 16),
            "ours": partial(read, lambda: next(stream), num),
        }
        found = measure_by_turns(works, repeats=repeats)
    return Row(f"{what}, {size} px, a core", found["usual"], found["ours"], bar, True)


def loader_rows(size: int, *, repeats: int, folder: Path, shards: Path, work: Path) -> list[Row]:
    """Compare reading raw shards and JPEG shards with a stock pipeline."""
    tars = textbook.write_jpegs(folder, work / "tars")
    raw = loader_row("loader", shards, tars, size=size, repeats=repeats)
    out = work / "jpeg"
    index = pack(folder, out, size=size, channels=3, workers=1, encoding="jpeg")
    tars = [str(out / shard.file) for shard in index.shards]
    return [raw, loader_row("loader of JPEG shards", out, tars, size=size, repeats=repeats)]


def pack_row(size: int, *, repeats: int, folder: Path, work: Path) -> Row:
    """Compare the command, with the start of its processes, with a warm loop in this process."""

    def fresh(name: str) -> Path:
        shutil.rmtree(work / name, ignore_errors=True)
        return work / name

    def ours() -> int:
        distgan("pack", folder, fresh("ours"), "--size", size, "--channels", 3, quiet=True)
        return len(list(folder.glob("*/*")))

    works = {"usual": lambda: textbook.pack_folder(folder, fresh("usual"), size), "ours": ours}
    found = measure_by_turns(works, repeats=repeats)
    return Row(f"packing, {size} px", found["usual"], found["ours"], 2.5)


def write_page(lines: list[str]) -> None:
    """Put the lines between the marks of docs/lab/speed.md."""
    head, rest = DOC.read_text().split(BEGIN)
    DOC.write_text("\n".join([head + BEGIN, *lines, END]) + rest.split(END)[1])


def main() -> None:
    """Measure and print; write the page if asked to."""
    parser = command_line(__doc__)
    parser.add_argument("--images32")
    parser.add_argument("--images64")
    parser.add_argument("--only", nargs="*", choices=PARTS, default=PARTS)
    parser.add_argument("--sizes", nargs="*", type=int, choices=[32, 64], default=[32, 64])
    parser.add_argument("--num", type=int, default=10_000, help="images")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=psutil.cpu_count())
    parser.add_argument("--write", action="store_true", help="write docs/lab/speed.md")
    options = parser.parse_args()
    command = " ".join(Path(word).name for word in sys.argv[1:])
    conditions = (
        f"{machine()}. Medians of {options.repeats}, least and most in brackets; images per "
        "second, for the loader per CPU second."
    )
    lines = [
        f"    python -m tests.benchmarks.speed {command}",
        "",
        textwrap.fill(conditions, 120),
        "",
        *HEAD,
    ]
    print("\n".join(lines))
    repeats = options.repeats
    for size in options.sizes:
        with tempfile.TemporaryDirectory(prefix="distgan-speed-") as temporary:
            work, source = Path(temporary), {32: options.images32, 64: options.images64}[size]
            folder, shards = image_folder(source, size, work / "folder", options.num), work / "raw"
            pack(folder, shards, size=size, channels=3, workers=1)
            rows = []
            if "pack" in options.only:
                rows.append(pack_row(size, repeats=repeats, folder=folder, work=work))
            places = {"repeats": repeats, "folder": folder, "shards": shards}
            if "loader" in options.only:
                rows += loader_rows(size, **places, work=work)
            if "step" in options.only:
                rows += step_rows(size, **places, threads=options.threads)
            for row in rows:
                lines.append(row.line())
                print(lines[-1], flush=True)
    model = ["", "### A model of many GPUs", "", *scaling.describe()]
    print("\n".join(model))
    if options.write:
        write_page(lines + model)


if __name__ == "__main__":
    main()
