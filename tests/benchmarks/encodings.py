"""Raw, PNG and JPEG shards of the same images: their size, and the speed of packing and reading.

python -m tests.benchmarks.encodings SOURCE [--root FOLDER] [--size PIXELS] [--num IMAGES]

SOURCE is anything that `distgan pack` takes. Packing and reading are in images per CPU second of
one thread; reading by turns, medians of five with least and most.
"""

import tempfile
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
import psutil

from shards.format.compressed import DEFAULT_QUALITY
from shards.format.index import ShardIndex
from shards.images import decode_image
from shards.pack import pack
from shards.reader import ShardReader
from shards.sources.official import ArraySource
from shards.sources.registry import open_source
from shards.stream import BatchStream
from tests.benchmarks.common import Rates, command_line, machine, measure_by_turns
from tests.benchmarks.speed import BATCH, spread

ENCODINGS = {"raw": ("raw", None), "png": ("png", None)} | {
    f"jpeg, quality {quality}": ("jpeg", quality) for quality in (DEFAULT_QUALITY, 85)
}


def sample(source: str, *, root: Path | None, size: int, num: int) -> ArraySource:
    """Return at most `num` images of a source at the training size, without their labels."""
    opened = open_source(source, root=root)
    chosen = np.random.default_rng(0).permutation(len(opened))[:num].tolist()
    images = np.stack(
        [
            decode_image(opened.read(item), size=size, channels=3).transpose(1, 2, 0)
            for item in chosen
        ]
    )
    return ArraySource(
        names=[opened.names[item] for item in chosen],
        sizes=np.full(len(images), images[0].size, np.int64),
        labels=None,
        class_names=None,
        digest=opened.digest,
        default_size=size,
        in_memory=True,
        images=images,
    )


def read(stream: BatchStream, *, num_batches: int) -> int:
    """Read so many batches; return the number of images."""
    return sum(len(next(stream)) for _ in range(num_batches))


def packed(source: ArraySource, folder: Path) -> tuple[dict[str, ShardIndex], dict[str, float]]:
    """Pack the source in every encoding; return the indices and the images per CPU second."""
    indices, rates = {}, {}
    for name, (encoding, quality) in ENCODINGS.items():
        began = time.process_time()
        indices[name] = pack(source, folder / name, encoding=encoding, quality=quality, workers=1)
        rates[name] = len(source) / (time.process_time() - began)
    return indices, rates


def row(name: str, index: ShardIndex, packing: float, reading: Rates) -> str:
    """Return a row of the table in Markdown."""
    return (
        f"| {name} | {index.num_bytes / index.num_samples:,.0f} "
        f"| {index.num_bytes / index.raw_num_bytes:.0%} "
        f"| {packing:,.0f} | {spread(reading.by_cpu)} |"
    )


def by_workers(index: ShardIndex, workers: int) -> str:
    """Return a row with the rate of a stream that decodes in `workers` processes."""

    def cpu_seconds() -> float:
        own = psutil.Process()
        times = [process.cpu_times() for process in (own, *own.children(recursive=True))]
        return sum(each.user + each.system for each in times)

    with BatchStream(
        ShardReader(index), key=0, start=0, batch_size=BATCH, workers=workers
    ) as stream:
        read(stream, num_batches=20)
        began, began_cpu = time.perf_counter(), cpu_seconds()
        num = read(stream, num_batches=300)
        by_clock, by_cpu = num / (time.perf_counter() - began), num / (cpu_seconds() - began_cpu)
    return f"| {workers} | {by_clock:,.0f} | {by_cpu:,.0f} |"


def main() -> None:
    """Measure and print both tables."""
    parser = command_line(__doc__)
    parser.add_argument("source")
    parser.add_argument("--root", type=Path)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--num", type=int, default=4000)
    arguments = parser.parse_args()
    source = sample(arguments.source, root=arguments.root, size=arguments.size, num=arguments.num)
    with tempfile.TemporaryDirectory(prefix="distgan-encodings-") as folder, ExitStack() as stack:
        indices, packing = packed(source, Path(folder))
        works = {}
        for name, index in indices.items():
            stream = stack.enter_context(
                BatchStream(ShardReader(index), key=0, start=0, batch_size=BATCH, prefetch=1)
            )
            works[name] = partial(read, stream, num_batches=100 if index.is_compressed else 2000)
        reading = measure_by_turns(works, repeats=5)
        print(f"{len(source):,} images of {arguments.size} px; {machine()}\n")
        print("| encoding | bytes per image | of raw | packed per CPU s | read per CPU s |")
        print("| --- | ---: | ---: | ---: | ---: |")
        for name, index in indices.items():
            print(row(name, index, packing[name], reading[name]))
        index = next(index for index in indices.values() if index.encoding == "jpeg")
        print(f"\n| {index.encoding}, data.workers | read per second | read per CPU second |")
        print("| ---: | ---: | ---: |")
        for workers in (0, 1, 2):
            print(by_workers(index, workers))


if __name__ == "__main__":
    main()
