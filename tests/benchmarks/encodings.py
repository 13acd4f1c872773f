"""Raw, PNG and JPEG shards of the same images, interleaved in one run: how large they are, and what reading them takes.

python -m tests.benchmarks.encodings SOURCE [--root FOLDER] [--size PIXELS] [--num IMAGES]

SOURCE is anything that `distgan pack` takes. Packing and reading are in images per CPU second of one thread; medians of
five, with least and most.
"""

import argparse
import statistics
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
from shards.sources.open import open_source
from shards.stream import BatchStream
from tests.benchmarks.speed import BATCH, Measured, machine, side_by_side

WAYS = {"raw": ("raw", None), "png": ("png", None)} | {
    f"jpeg, quality {quality}": ("jpeg", quality) for quality in (DEFAULT_QUALITY, 85)
}


def sample(source: str, *, root: Path | None, size: int, num: int) -> ArraySource:
    """At most `num` images of a source at the training size, without their labels."""
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
    """How many images that many batches have."""
    return sum(len(next(stream)) for _ in range(num_batches))


def packed(source: ArraySource, folder: Path) -> tuple[dict[str, ShardIndex], dict[str, float]]:
    """The source in every encoding, and how many of its images that took a CPU second."""
    indices, rates = {}, {}
    for name, (encoding, quality) in WAYS.items():
        began = time.process_time()
        indices[name] = pack(source, folder / name, encoding=encoding, quality=quality, workers=1)
        rates[name] = len(source) / (time.process_time() - began)
    return indices, rates


def row(name: str, index: ShardIndex, packing: float, reading: Measured) -> str:
    """A row of the table in Markdown."""
    rates = reading.by_cpu
    return (
        f"| {name} | {index.num_bytes / index.num_samples:,.0f} | {index.num_bytes / index.raw_num_bytes:.0%} | {packing:,.0f} "
        f"| {statistics.median(rates):,.0f} ({min(rates):,.0f} to {max(rates):,.0f}) |"
    )


def by_workers(index: ShardIndex, workers: int) -> str:
    """What a stream gives whose images are decoded by so many processes, these included; by the thread where none."""

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
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
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
            works[name] = partial(read, stream, num_batches=100 if index.is_encoded else 2000)
        reading = side_by_side(works, repeats=5)
        print(f"{len(source):,} images of {arguments.size} px; {machine()}\n")
        print("| encoding | bytes an image | of raw | packed a CPU second | read a CPU second |")
        print("| --- | ---: | ---: | ---: | ---: |")
        for name, index in indices.items():
            print(row(name, index, packing[name], reading[name]))
        index = next(index for index in indices.values() if index.encoding == "jpeg")
        print(
            f"\n| {index.encoding}, data.workers | read a second | read a CPU second |\n| ---: | ---: | ---: |"
        )
        for workers in (0, 1, 2):
            print(by_workers(index, workers))


if __name__ == "__main__":
    main()
