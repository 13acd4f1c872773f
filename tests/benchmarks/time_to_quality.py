"""Seconds until distgan's samples are as good as those that the textbook loop ends with.

    python -m tests.benchmarks.time_to_quality [--data data/cifar10] [--epochs 20] [--threads 2]

The textbook loop trains for `--epochs`; the preset `cifar10-strong` trains on the same images with
the same cores, until it is as good. They take turns: one epoch of the textbook loop, then half an
epoch of distgan unless it is as good already. So other work on the machine slows both, and their
speeds are compared within each turn. Quality is the Frechet distance of `--num` fakes in the
features of the dataset's probe, measured after every epoch of the textbook loop and ten times per
epoch of distgan. Neither evaluations nor starting processes count as training time; distgan's
checkpoints do.

The result so far is printed after every turn. The same command resumes after an interruption, and
prints the result again once both are done.
"""

import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
import torch
from PIL import Image
from torch import Tensor

from distgan.config.load import load_config
from distgan.evaluation.evaluator import choose_extractor, real_images
from distgan.evaluation.metrics import frechet_values
from distgan.evaluation.probe import probe_path
from distgan.evaluation.reference import extract_sample, prepare_reference
from distgan.networks.generator_file import checkpoint_folders, load_generator
from distgan.run.files import append_row, read_rows, read_status
from distgan.runtime.distributed import World
from shards.reader import ShardReader
from tests.benchmarks import textbook
from tests.benchmarks.common import TRAIN, command_line, distgan, machine

BATCH = 128  # of the textbook loop
CHECKPOINTS_PER_EPOCH = 10
TURNS_PER_EPOCH = 2  # of distgan
QUIET = (
    "log.wandb=disabled", "log.report=false", "log.samples_every_kimg=1e6",
    "evaluation.every_kimg=1e6", f"checkpoint.keep={CHECKPOINTS_PER_EPOCH + 2}",
)  # fmt: skip


@dataclass(frozen=True)
class Point:
    """The quality reached after some training, in a turn counted from 1."""

    turn: int
    images: int
    train_sec: float
    frechet: float


class Quality:
    """The Frechet distance of fakes from a dataset, in the features of its probe."""

    def __init__(self, reader: ShardReader, *, extractor: str, num: int) -> None:
        self.world, self.num = World(0, 1), num
        settings = load_config(None, [f"evaluation.extractor={extractor}"]).evaluation
        self.extractor, _ = choose_extractor(settings, reader, world=self.world)
        reals = real_images(reader, None, num_samples=num)
        self.prepared = prepare_reference(reals, self.extractor, world=self.world, num_samples=num)

    def __call__(self, sample: Callable[[int], Tensor]) -> float:
        """Score `num` images; `sample` takes their number and returns uint8 [n, C, H, W]."""
        images, protocol = sample(self.num), self.prepared.protocol
        fakes = extract_sample(
            lambda start, stop: images[start:stop],
            protocol.num_fakes,
            self.extractor,
            self.world,
            settings=protocol.settings,
        )
        return frechet_values(fakes, self.prepared.reference)["quality/frechet"]


class Textbook:
    """The textbook loop, saved after every epoch."""

    def __init__(self, folder: Path, images: Path, *, size: int, quality: Quality) -> None:
        self.path, self.quality, self.points = folder / "textbook.pt", quality, list[Point]()
        self.gan = textbook.TextbookGAN(size)
        self.num_batches = len(list(images.glob("*/*"))) // BATCH
        self.batches = textbook.folder_batches(images, size, batch_size=BATCH, workers=0)
        if self.path.exists():
            saved = torch.load(self.path, weights_only=True)
            self.points = [Point(**point) for point in saved["points"]]
            self.gan.load_state(saved["gan"])
        torch.manual_seed(len(self.points))  # so that a resumed loop does not repeat its draws

    def train_epoch(self) -> Point:
        """Train for one epoch, score the generator and save both."""
        began = time.perf_counter()
        for _ in range(self.num_batches):
            self.gan.step(next(self.batches))
        seconds = time.perf_counter() - began
        last = self.points[-1] if self.points else Point(0, 0, 0.0, 0.0)
        point = Point(
            last.turn + 1,
            last.images + self.num_batches * BATCH,
            last.train_sec + seconds,
            self.quality(self.gan.sample),
        )
        self.points.append(point)
        temporary = self.path.with_suffix(".tmp")
        points = [asdict(point) for point in self.points]
        torch.save({"points": points, "gan": self.gan.state()}, temporary)
        temporary.replace(self.path)
        return point


class Distgan:
    """A run of the preset, trained piece by piece: it is interrupted, and resumes exactly."""

    def __init__(self, folder: Path, settings: list[str], *, quality: Quality) -> None:
        self.run, self.settings, self.quality = folder / "run", settings, quality
        self.path = folder / "distgan.jsonl"
        self.points = [Point(**row) for row in read_rows(self.path)] if self.path.exists() else []

    def images_seen(self) -> int:
        """Return the images of the newest row of metrics."""
        with suppress(OSError):
            rows = read_rows(self.run / "metrics.jsonl")
            return rows[-1]["progress/images"] if rows else 0
        return 0

    def train_until(self, num_images: int) -> None:
        """Train until a row of metrics has so many images, then interrupt the run."""
        command = [sys.executable, str(TRAIN), "--run-dir", str(self.run), *self.settings]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while process.poll() is None:
            if self.images_seen() >= num_images:
                process.send_signal(signal.SIGTERM)
                process.wait()
            time.sleep(0.2)
        assert process.returncode in (0, 75), read_status(self.run)

    def score(self, turn: int) -> None:
        """Score all checkpoints that have no point yet."""
        seconds = {
            row["progress/images"]: row["time/train_sec"]
            for row in read_rows(self.run / "metrics.jsonl")
        }
        for checkpoint in checkpoint_folders(self.run):
            images = round(float(checkpoint.name) * 1000)
            if images in seconds and images > (self.points[-1].images if self.points else 0):
                frechet = self.quality(load_generator(checkpoint).sample)
                point = Point(turn, images, seconds[images], frechet)
                append_row(self.path, asdict(point))
                self.points.append(point)


def write_images(reader: ShardReader, folder: Path) -> Path:
    """Write a dataset as a class folder of PNG files, as the textbook loop reads it."""
    if not folder.exists():
        temporary = folder.with_suffix(".tmp")
        (temporary / "images").mkdir(parents=True, exist_ok=True)
        for number in range(reader.num_samples):
            pixels = reader.gather(torch.tensor([number]).numpy())[0].transpose(1, 2, 0)
            Image.fromarray(pixels).save(temporary / "images" / f"{number:06d}.png")
        temporary.replace(folder)
    return folder


def take_turn(usual: Textbook, ours: Distgan, *, epochs: int, images_per_epoch: int) -> None:
    """Train the textbook loop for an epoch, and distgan for a part of one if it is not as good.

    After the last epoch of the textbook loop distgan trains until it is as good, or to its end.
    """
    if len(usual.points) < epochs:
        usual.train_epoch()
    turn, total = len(usual.points), epochs * images_per_epoch
    ours.score(turn)  # checkpoints that an interrupted turn has left
    while first_as_good(ours.points, usual.points[-1].frechet) is None:
        seen = ours.images_seen()
        if seen >= total:
            break
        ours.train_until(min(seen + max(images_per_epoch // TURNS_PER_EPOCH, 1), total))
        ours.score(turn)
        if turn < epochs:
            break


def first_as_good(ours: list[Point], frechet: float) -> Point | None:
    """Return the first point of distgan that is at least as good, if there is one."""
    return next((point for point in ours if point.frechet <= frechet), None)


def seconds_per_image(points: list[Point]) -> dict[int, float]:
    """Return the training time of an image by turn."""
    costs, before = {}, Point(0, 0, 0.0, 0.0)
    for turn in sorted({point.turn for point in points}):
        last = max((p for p in points if p.turn == turn), key=lambda point: point.images)
        costs[turn] = (last.train_sec - before.train_sec) / (last.images - before.images)
        before = last
    return costs


def report(usual: list[Point], ours: list[Point]) -> list[str]:
    """Return the result in words: the textbook's end, and when distgan was as good.

    The times are those of the same machine with the same other work: the images that each needed,
    times the median over turns of what an image costs distgan beside the textbook loop.
    """
    end, costs = usual[-1], [seconds_per_image(points) for points in (usual, ours)]
    ratios = [costs[1][turn] / costs[0][turn] for turn in costs[1] if turn in costs[0]]
    lines = [
        f"textbook loop: Frechet distance {end.frechet:.2f} after {end.images:,} images and "
        f"{end.train_sec:,.0f} s"
    ]
    best = min(ours, key=lambda point: point.frechet)
    reached = first_as_good(ours, end.frechet)
    shown = reached or best
    where = f"{shown.frechet:.2f} after {shown.images:,} images and {shown.train_sec:,.0f} s"
    if reached is None:
        return [*lines, f"distgan: not reached; {where}"]
    fewer, dearer = end.images / reached.images, statistics.median(ratios)
    return [
        *lines,
        f"distgan: {where}; {fewer:.1f} times fewer images, each takes {dearer:.2f} times as long "
        f"(median of {len(ratios)} turns): {fewer / dearer:.1f} times as fast",
    ]


def main(arguments: list[str] | None = None) -> list[str]:
    """Train both by turns and print the result; return its lines."""
    parser = command_line(__doc__)
    parser.add_argument("--data", type=Path, default=Path("data/cifar10"), help="packed shards")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--threads", type=int, default=psutil.cpu_count(), help="cores of each")
    parser.add_argument("--num", type=int, default=10_000, help="fakes and reals of a score")
    parser.add_argument("--extractor", default="probe", help="evaluation.extractor")
    parser.add_argument("--folder", type=Path, default=Path("runs/time-to-quality"))
    parser.add_argument("overrides", nargs="*", metavar="section.field=value", help="of distgan")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    reader = ShardReader(options.data)
    if options.extractor == "probe" and not probe_path(reader.index.fingerprint).exists():
        distgan("probe", options.data, "--flip")
    options.folder.mkdir(parents=True, exist_ok=True)
    images = write_images(reader, options.folder / "images")
    quality = Quality(reader, extractor=options.extractor, num=options.num)
    size = reader.image_shape[-1]
    usual = Textbook(options.folder, images, size=size, quality=quality)
    every_kimg = max(reader.num_samples // CHECKPOINTS_PER_EPOCH, 1) / 1000
    settings = [
        "--preset", "cifar10-strong", "--data", str(options.data), f"train.epochs={options.epochs}",
        f"train.cpu_threads={options.threads}", f"log.every_kimg={every_kimg}",
        f"checkpoint.every_kimg={every_kimg}", *QUIET, *options.overrides,
    ]  # fmt: skip
    ours = Distgan(options.folder, settings, quality=quality)
    print(f"{options.threads} threads each, by turns; {machine()}", flush=True)
    lines: list[str] = []
    while len(usual.points) < options.epochs or not lines:
        take_turn(usual, ours, epochs=options.epochs, images_per_epoch=reader.num_samples)
        lines = report(usual.points, ours.points)
        print("\n".join([f"{len(usual.points)} of {options.epochs} epochs", *lines]), flush=True)
    return lines


if __name__ == "__main__":
    main()
