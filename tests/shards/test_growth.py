"""What a reader needs does not grow with the dataset."""

import json
import re
import tempfile
from pathlib import Path

import pytest

from shards.format.index import ShardIndex, ShardRecord
from shards.format.raw import RawLayout
from shards.reader import ShardReader
from shards.stream import BatchStream
from tests.worlds import run_world

SAMPLES_PER_SHARD = 8000


def memory_after_reading(folders: list[Path]) -> list[float]:
    """Return the MB of this process's own memory, beside the files it maps, after each dataset."""
    found = []
    for folder in folders:
        with BatchStream(ShardReader(folder), key=1, start=0, batch_size=4) as stream:
            for _ in range(4):
                next(stream)
            status = Path("/proc/self/status").read_text()
            found.append(int(re.search(r"RssAnon:\s+(\d+)", status)[1]) / 1024)
    return found


def indexed(folder: Path, num_samples: int) -> Path:
    """A dataset of black 32x32 images: an index, and shards that are holes on the disk."""
    layout = RawLayout((3, 32, 32), cls=False)
    folder.mkdir()
    records = []
    for first in range(0, num_samples, SAMPLES_PER_SHARD):
        num = min(SAMPLES_PER_SHARD, num_samples - first)
        file = f"{len(records):06d}.tar"
        with (folder / file).open("wb") as shard:
            shard.truncate(layout.shard_bytes(num))
        records.append(ShardRecord(file, num, layout.shard_bytes(num), "0" * 64))
    index = ShardIndex(
        path=folder,
        image_shape=layout.image_shape,
        num_samples=num_samples,
        class_names=None,
        class_counts=None,
        labels_sha256=None,
        cls=False,
        num_rejected=0,
        shards=tuple(records),
        plan="0" * 64,
    )
    (folder / "index.json").write_bytes(index.to_json())
    assert json.loads(index.to_json())["num_samples"] == num_samples
    return folder


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="holes are read at leisure on a disk")
def test_ten_million_samples_take_no_more_memory_than_a_thousand() -> None:
    """A reader and its stream: the same memory but for the open shards' records."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        sets = [indexed(Path(folder) / "few", 1000), indexed(Path(folder) / "many", 10_000_000)]
        [(few, many)] = run_world(1, memory_after_reading, sets)
    print(f"{few:.1f} MB for 1,000 samples, {many:.1f} MB for 10,000,000")
    assert many < few + 16
