"""Kill training and packing at random moments, restart it, and compare it with undisturbed runs.

python -m tests.faults.campaign --kills 20     appends one row per kill to tests/faults/rows.jsonl
python -m tests.faults.campaign --report       writes docs/reliability.md from all rows
"""

import argparse
import hashlib
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from distgan.run.files import read_rows
from shards.pack import pack
from tests.faults.ledger import PAGE, ROWS, count_images, page, record_fault
from tests.worlds import CONTEXT, SMALL, checkpoint_digest, free_port, run_rank, train_run

BATCH, TOTAL, CHECKPOINT = 12, 2400, 120  # images
OVERRIDES = [
    f"train.kimg={TOTAL / 1000}",
    f"checkpoint.every_kimg={CHECKPOINT / 1000}",
    "log.samples_every_kimg=0.6",
]
assert f"train.batch_size={BATCH}" in SMALL
TIMEOUT_SEC = 300.0


def make_images(folder: Path, *, number: int, size: int) -> Path:
    """Write PNG files of grey noise, the same every time."""
    noise = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for i in range(number):
        Image.fromarray(noise.integers(0, 256, (size, size), dtype=np.uint8)).save(
            folder / f"{i:04d}.png"
        )
    return folder


class NoResults:
    """A queue that drops what it gets. A real one would stay locked if its holder is killed."""

    def put(self, result: Any) -> None:
        """Drop the result."""


class World:
    """Processes that train together, without a launcher that stops the others when one dies."""

    def __init__(self, size: int, shards: Path, run_dir: Path) -> None:
        port, arguments = free_port(), (shards, run_dir, OVERRIDES)
        self.processes: list[BaseProcess] = [
            CONTEXT.Process(
                target=run_rank,
                args=(rank, size, port, NoResults(), dict(os.environ), train_run, arguments),
            )
            for rank in range(size)
        ]
        for process in self.processes:
            process.start()

    def wait_until(self, condition: Callable[[], bool], *, pause: float = 0.01) -> None:
        """Wait until the condition holds or all processes have ended."""
        began = time.monotonic()
        while not condition() and any(process.is_alive() for process in self.processes):
            assert time.monotonic() - began < TIMEOUT_SEC, "the run hangs"
            time.sleep(pause)

    def kill(self, ranks: list[int]) -> bool:
        """Send SIGKILL to the ranks; return whether all of them were still alive."""
        alive = all(self.processes[rank].is_alive() for rank in ranks)
        for rank in ranks:
            self.processes[rank].kill()
        return alive

    def join(self) -> None:
        """Wait until all processes have ended."""
        self.wait_until(lambda: False)


def images_seen(run_dir: Path) -> int:
    """Return the images seen according to the newest row of metrics.jsonl."""
    rows = read_rows(run_dir / "metrics.jsonl")
    return rows[-1]["progress/images"] if rows else 0


def undisturbed_run(shards: Path, folder: Path) -> str:
    """Train with two undisturbed processes; return the sha256 of their last checkpoint."""
    World(2, shards, folder).join()
    return checkpoint_digest(folder)


def kill_training(
    shards: Path, run_dir: Path, digest: str, *, draw: random.Random, victims: str
) -> dict[str, Any] | None:
    """Kill `one` or `all` of two training ranks, or rank zero `at a checkpoint`; start them again.

    Returns the row for the record, or None if the run had ended before the kill.
    """
    world = World(2, shards, run_dir)
    point = draw.randrange(TOTAL)
    world.wait_until(lambda: images_seen(run_dir) >= point)
    if victims == "at a checkpoint":
        world.wait_until(lambda: any((run_dir / "checkpoints").glob(".*.tmp")), pause=0.0)
        time.sleep(draw.random() * 0.01)
    else:
        time.sleep(draw.random() * 0.2)
    ranks = {"one": [draw.randrange(2)], "all": [0, 1], "at a checkpoint": [0]}[victims]
    if not world.kill(ranks):
        world.join()
        return None
    began = time.monotonic()
    world.join()
    detect = time.monotonic() - began if len(ranks) == 1 else None
    images = images_seen(run_dir)
    checkpoints = [
        round(float(path.name) * 1000) for path in (run_dir / "checkpoints").glob("[0-9]*")
    ]
    began = time.monotonic()
    again = World(2, shards, run_dir)
    again.wait_until(lambda: images_seen(run_dir) > images)
    resume = time.monotonic() - began
    again.join()
    counted = count_images(run_dir, batch_size=BATCH, total=TOTAL)
    return {
        "survived": checkpoint_digest(run_dir) == digest and not any(counted.values()),
        **counted,
        "images_again": images - max(checkpoints, default=0),
        "detect_sec": detect,
        "resume_sec": resume,
    }


def digest_of(folder: Path) -> str:
    """Return the sha256 over the names and contents of a folder's files."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digest.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return digest.hexdigest()


def pack_images(source: Path, out: Path) -> None:
    """Pack with this process and two workers."""
    pack(str(source), out, size=64, channels=1, shard_size_mb=1, workers=2)


def kill_packing(
    source: Path, out: Path, whole: Path, *, draw: random.Random, seconds: float
) -> dict[str, Any] | None:
    """Kill a pack at a random moment of the `seconds` that it takes, and start it again.

    Returns the row for the record, or None if the pack had ended before the kill.
    """
    process = CONTEXT.Process(target=pack_images, args=(source, out))
    process.start()
    time.sleep(draw.random() * seconds)
    if not process.is_alive():
        process.join()
        return None
    process.kill()
    process.join()
    began = time.monotonic()
    again = CONTEXT.Process(target=pack_images, args=(source, out))
    again.start()
    again.join(TIMEOUT_SEC)
    same = again.exitcode == 0 and digest_of(out) == digest_of(whole)
    counts = dict.fromkeys(("images_lost", "images_repeated"), 0 if same else None)
    return {"survived": same, **counts, "resume_sec": time.monotonic() - began}


KINDS = {
    "SIGKILL of one rank": "one",
    "SIGKILL of all ranks": "all",
    "SIGKILL while a checkpoint is written": "at a checkpoint",
    "SIGKILL while packing": None,
}


class Campaign:
    """Shards, an undisturbed run and an undisturbed pack, against which each kill is compared."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shards = folder / "shards"
        pack(
            str(make_images(folder / "images", number=30, size=32)),
            self.shards,
            size=32,
            channels=1,
            workers=1,
        )
        self.digest = undisturbed_run(self.shards, folder / "undisturbed")
        self.many = make_images(folder / "many", number=1000, size=64)
        began = time.monotonic()
        first = CONTEXT.Process(target=pack_images, args=(self.many, folder / "packed"))
        first.start()
        first.join()
        self.pack_sec = time.monotonic() - began

    def kill(self, kind: str, draw: random.Random) -> dict[str, Any]:
        """Carry out one kill and return its row; repeat it if the victim had ended before."""
        victims, row = KINDS[kind], None
        while row is None:
            place = Path(tempfile.mkdtemp(dir=self.folder)) / "place"
            if victims is None:
                row = kill_packing(
                    self.many, place, self.folder / "packed", draw=draw, seconds=self.pack_sec
                )
            else:
                row = kill_training(self.shards, place, self.digest, draw=draw, victims=victims)
            if row is None or row["survived"]:
                shutil.rmtree(place.parent)  # what did not survive is kept for inspection
        return row


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=0, help="number of kills to add")
    parser.add_argument(
        "--rows", type=Path, default=ROWS, help="file that the rows are appended to"
    )
    parser.add_argument("--report", action="store_true", help=f"write {PAGE}")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if options.kills:
        folder = Path(tempfile.mkdtemp(prefix="kills-"))
        campaign, draw = Campaign(folder), random.Random(os.urandom(8))
        for number in range(options.kills):
            kind = list(KINDS)[number % len(KINDS)]
            row = campaign.kill(kind, draw)
            record_fault(kind, options.rows, **row)
            outcome = "survived" if row["survived"] else f"NOT SURVIVED, see {folder}"
            print(f"{number + 1}: {kind}: {outcome}", flush=True)
        if all(row["survived"] for row in read_rows(options.rows)):
            shutil.rmtree(folder)
    if options.report:
        PAGE.write_text(page(read_rows(options.rows)))


if __name__ == "__main__":
    main()
