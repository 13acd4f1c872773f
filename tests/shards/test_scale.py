"""Ten million images: opening, describing and packing them takes little time and memory."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

from shards.format.index import ShardIndex, ShardRecord
from shards.format.raw import RawLayout, npy_of_labels
from shards.processes import SharedTask, run
from shards.sources.texts import Texts
from tests.shards.test_parts import ROOT

NUM_IMAGES = 10_000_000


def test_texts_are_a_list_of_texts() -> None:
    """Also with names that are no UTF-8, empty ones, and from the end."""
    texts = ["a", "", "é/b.png", os.fsdecode(b"\xff.png"), "last"]
    packed = Texts(texts)
    assert (list(packed), len(packed), packed[3], packed[-1]) == (texts, 5, texts[3], "last")
    assert packed[1:4] == texts[1:4]
    with pytest.raises(IndexError):
        packed[5]
    assert list(Texts()) == []


class Names:
    """A task that holds very many names, and returns one together with the memory of its process.

    Memory is that of this process alone: what it has written, not what it maps from files.
    """

    def __init__(self, num: int) -> None:
        self.names = Texts(f"{number:09d}.png" for number in range(num))

    def __call__(self, number: int) -> tuple[str, int]:
        own = psutil.Process().memory_full_info().uss
        return self.names[number], own


def test_memory_of_workers_does_not_grow_with_the_images() -> None:
    """Names of 100 times as many images add almost nothing to a worker's own memory."""
    found = []
    for num in (20_000, 2_000_000):
        ((_, (name, memory)), *_) = list(run(Names(num), [num - 1, 0], workers=2))
        assert name == f"{num - 1:09d}.png"
        found.append(memory)
    assert found[1] - found[0] < 8_000_000, "the names take 42 MB"


def test_small_tasks_need_no_file() -> None:
    """They are copied, and large ones are mapped; both do the same."""
    for num in (10, 200_000):
        shared = SharedTask(Names(num))
        assert shared.load()(3)[0] == "000000003.png"
        shared.close()


OPEN = """
import sys, time
began = time.monotonic()
from shards.format.index import read_index
from shards.reader import ShardReader
import numpy as np, psutil
before, loaded = psutil.Process().memory_info().rss, time.process_time()
reader = ShardReader(read_index(sys.argv[1]))
order = reader.make_order(1, batch_size=64)
labels = reader.labels(order.ids(np.arange(64)))
assert len(labels) == 64
seconds = time.process_time() - loaded
print(seconds, psutil.Process().memory_info().rss)
"""


def write_many(folder: Path, num_images: int = NUM_IMAGES) -> ShardIndex:
    """Write the index and the labels of very many images, and shards that take no space."""
    layout = RawLayout((3, 64, 64), cls=True)
    per_shard = (32 * 2**20 - 1024) // layout.stride
    records, left = [], num_images
    while left:
        count = min(left, per_shard)
        file = f"{len(records):06d}.tar"
        with open(folder / file, "wb") as shard:
            shard.truncate(layout.shard_bytes(count))
        sha256 = hashlib.sha256(file.encode()).hexdigest()
        records.append(ShardRecord(file, count, layout.shard_bytes(count), sha256))
        left -= count
    labels = npy_of_labels(np.arange(num_images, dtype=np.int32) % 1000)
    (folder / "labels.npy").write_bytes(labels)
    index = ShardIndex(
        path=folder, image_shape=(3, 64, 64), num_samples=num_images,
        class_names=tuple(map(str, range(1000))), class_counts=(num_images // 1000,) * 1000,
        labels_sha256=hashlib.sha256(labels).hexdigest(), cls=True, num_rejected=0,
        shards=tuple(records), plan="0" * 64,
    )  # fmt: skip
    (folder / "index.json").write_bytes(index.to_json())
    return index


@pytest.mark.slow
def test_ten_million_images_are_opened_quickly(tmp_path: Path) -> None:
    """Under 2 s of processor time and 300 MB of memory; `info` under 1 s."""
    index = write_many(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", OPEN, str(tmp_path)], capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    seconds, memory = map(float, done.stdout.split())
    print(f"{len(index.shards)} shards opened in {seconds:.2f} s, {memory / 1e6:.0f} MB")
    assert seconds < 2
    assert memory < 300e6
    code = (
        "import sys, time; from shards.format.index import read_index; from distgan.commands.info "
    )
    code += "import describe; describe(read_index(sys.argv[1])); print(time.process_time())"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    print(f"described in {float(done.stdout):.2f} s")
    assert float(done.stdout) < 1
