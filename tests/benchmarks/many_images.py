"""Time and memory of what grows with the number of images: `info`, a rank, a worker, a listing.

    python -m tests.benchmarks.many_images [--num 10000000]

The dataset has an index, labels of 1,000 classes and shards without content. A rank opens it,
shares the labels with a conditional GAN and reads a batch; its memory is that beyond its imports.
"""

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from shards.processes import run
from shards.sources.source import Entry
from tests.benchmarks.common import DISTGAN, command_line, machine, measure_command
from tests.shards.test_scale import Names, write_many

RANK = """
import sys, time
import numpy as np, psutil, torch
from distgan.config.load import load_config
from distgan.data import TrainingBatches, open_dataset
from distgan.labels import labels_of
import distgan.trainer
def memory():
    return psutil.Process().memory_info().rss
before, began = memory(), time.perf_counter()
config = load_config("cifar10-conditional", ["data.shards=" + sys.argv[1]])
_, reader = open_dataset(config.data)
labels = labels_of(config.networks, reader, config.data)
opened = time.perf_counter() - began
place = {"rank": 0, "world_size": 1, "device": torch.device("cpu"), "labels": labels}
with TrainingBatches(reader, config, start=0, **place) as batches:
    batches.next(0, rollbacks=0)
print(f"a rank: opened in {opened:.2f} s, {(memory() - before) / 1e6:.0f} MB with its first batch")
"""
LISTING = """
import sys, time
import psutil
from tests.benchmarks.many_images import entries
from shards.sources.source import list_images
own, num = psutil.Process(), int(sys.argv[1])
before, began = own.memory_info().rss, time.perf_counter()
items, places = list_images(entries(num), with_labels=True)
import resource
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
took = time.perf_counter() - began
print(f"listing {num:,} files: {took:.0f} s, {(peak - before) / 1e6:,.0f} MB at most, ", end="")
print(f"{(own.memory_info().rss - before) / 1e6:,.0f} MB after it")
"""


def entries(num: int) -> Iterator[Entry]:
    """Yield files of 1,000 folders, as a walk finds them."""
    for number in range(num):
        path = f"{number % 1000:03d}/{number:09d}.jpg"
        yield Entry(path, 4000, (path, number))


def main() -> None:
    """Measure, and print a line of each."""
    parser = command_line(__doc__)
    parser.add_argument("--num", type=int, default=10_000_000)
    num = parser.parse_args().num
    print(machine(), flush=True)
    with tempfile.TemporaryDirectory(prefix="distgan-many-") as folder:
        index = write_many(Path(folder), num)
        print(f"{num:,} images in {len(index.shards):,} shards", flush=True)
        info = measure_command(*DISTGAN, "info", folder)
        print(f"info: {info.seconds:.2f} s, {info.cpu_seconds:.2f} s of CPU time", flush=True)
        measure_command(sys.executable, "-c", RANK, folder)
    for some in (num // 100, num):
        ((_, (_, memory)), *_) = list(run(Names(some), [some - 1, 0], workers=2))
        print(f"a worker that knows {some:,} names: {memory / 1e6:.0f} MB of its own", flush=True)
    measure_command(sys.executable, "-c", LISTING, num)


if __name__ == "__main__":
    main()
