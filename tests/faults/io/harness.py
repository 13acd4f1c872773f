"""Disturb every file operation of a command in every way, and see that repeating it mends all.

python -m tests.faults.io.harness                      a whole pass, with a table at the end
python -m tests.faults.io.harness pack cache           some commands only
python -m tests.faults.io.harness train --every 10     each tenth operation only


Operation n = 1, 2, 3, ... of a command fails once, fails from there on, is cut short, or the
process is killed before or in the middle of it; or the power fails after it, and all or a random
half of what was not synced is lost. Then the same command is run undisturbed. It must end with
the files of a command that was never disturbed.
"""

import argparse
import errno
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from distgan.run.files import read_rows
from shards.pack import pack
from tests.faults.io.disk import cut_power, read_trace
from tests.faults.ledger import IO_ROWS, io_table, record_operations

HERE = Path(__file__).parent
ROOT = HERE.parent.parent.parent
COUNT, FAIL_ONCE, FAIL_FROM, SHORT, KILL_BEFORE, KILL_INSIDE, RECORD = range(7)
FAULTS = {
    "EIO once": (FAIL_ONCE, errno.EIO),
    "ENOSPC once": (FAIL_ONCE, errno.ENOSPC),
    "EMFILE once": (FAIL_ONCE, errno.EMFILE),
    "EINTR once": (FAIL_ONCE, errno.EINTR),
    "EIO from there on": (FAIL_FROM, errno.EIO),
    "ENOSPC from there on": (FAIL_FROM, errno.ENOSPC),
    "short write": (SHORT, 0),
    "SIGKILL before": (KILL_BEFORE, 0),
    "SIGKILL in the middle": (KILL_INSIDE, 0),
}
POWER_CUTS = {"power cut": 0.0, "power cut, half is lost": 0.5}  # chance that unsynced data survive
ALL_FAULTS = (*FAULTS, *POWER_CUTS)
COMMANDS = ("pack", "checkpoint", "train", "resume", "report", "export", "cache")
# What differs between two runs of one command: times, process ids, warnings and resumes.
VARYING = (".lock", "lock", "status.json", "events.jsonl", "provenance.json", "state.json",
           "manifest.json", "report.html", "losses.png")  # fmt: skip


def compiler() -> str | None:
    """Return the C compiler, if there is one."""
    return next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)


@dataclass
class Server:
    """A process that runs commands in children of its own, with the shim loaded."""

    folder: Path
    commands: tuple[str, ...]
    process: subprocess.Popen[str] = field(init=False)

    def __post_init__(self) -> None:
        shim = self.folder / "shim.so"
        command = [
            compiler() or "cc",
            "-shared",
            "-fPIC",
            "-O1",
            "-o",
            shim,
            HERE / "shim.c",
            "-ldl",
        ]
        subprocess.run(list(map(str, command)), check=True)
        environment = os.environ | {
            "LD_PRELOAD": str(shim), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1",
            "DISTGAN_CACHE": str(self.folder / "distgan-cache"),
        }  # fmt: skip
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.io.server", *self.commands], cwd=ROOT,
            env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def run(
        self, command: str, place: Path, *, kind: int = COUNT, number: int = 0, error: int = 0,
        trace: Path | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """Run a command in a folder under a fault; return its code, operations and last words."""
        job = {"command": command, "place": str(place), "kind": kind, "number": number,
               "errno": error, "trace": str(trace) if trace else ""}  # fmt: skip
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        reply: dict[str, Any] = json.loads(self.process.stdout.readline())
        return reply

    def close(self) -> None:
        """End the server."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(60)
        self.process.stdout.close()


class Harness:
    """The undisturbed results of all commands, and trials that are compared with them."""

    def __init__(self, folder: Path, commands: tuple[str, ...] = COMMANDS) -> None:
        self.folder, self.server = folder, Server(folder, commands)
        images = folder / "images"
        images.mkdir()
        draw = np.random.default_rng(0)
        for number in range(6):
            pixels = draw.integers(0, 256, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(images / f"{number}.png")
        if {"train", "resume", "report", "export"} & set(commands):
            self.make_runs(draw)

    def make_runs(self, draw: np.random.Generator) -> None:
        """Train a run to its end, and another until it is killed half-way."""
        folder = self.folder
        for number in range(30):
            pixels = draw.integers(0, 256, (32, 32), dtype=np.uint8)
            (folder / "grey").mkdir(exist_ok=True)
            Image.fromarray(pixels).save(folder / "grey" / f"{number:02d}.png")
        pack(folder / "grey", folder / "shards", size=32, channels=1, workers=1)
        self.finished, self.interrupted = folder / "finished", folder / "interrupted"
        self.finished.mkdir()
        self.interrupted.mkdir()
        whole = self.server.run("train", self.finished)
        assert whole["code"] == 0, whole
        self.server.run(
            "train", self.interrupted, kind=KILL_BEFORE, number=whole["operations"] // 2
        )

    def prepare(self, command: str) -> Path:
        """Return a new folder with the input of a command."""
        place = Path(tempfile.mkdtemp(dir=self.folder, prefix=f"{command}-"))
        if command == "pack":
            shutil.copytree(self.folder / "images", place / "images")
        elif command in ("report", "export"):
            shutil.copytree(self.finished / "run", place / "run")
        elif command == "resume":
            shutil.copytree(self.interrupted / "run", place / "run")
        return place

    def undisturbed(self, command: str) -> tuple[dict[str, str], int]:
        """Run a command undisturbed; return its files and its number of operations."""
        place = self.prepare(command)
        answer = self.server.run(command, place)
        assert answer["code"] == 0, answer
        files = contents(place)
        shutil.rmtree(place)
        return files, answer["operations"]

    def trials(
        self, command: str, faults: Sequence[str] = ALL_FAULTS, *, first: int = 1, every: int = 1
    ) -> Iterator[dict[str, Any]]:
        """Yield a row for each fault of each operation, or of each `every`-th from the `first`."""
        expected, num_operations = self.undisturbed(command)
        for fault in faults:
            if fault in POWER_CUTS:
                yield from self.power_cuts(command, fault, expected, first=first, every=every)
                continue
            kind, error = FAULTS[fault]
            for number in range(first, num_operations + 1, every):
                place = self.prepare(command)
                answer = self.server.run(command, place, kind=kind, number=number, error=error)
                yield self.judge(command, fault, number, place, answer, expected)

    def power_cuts(
        self, command: str, fault: str, expected: dict[str, str], *, first: int, every: int
    ) -> Iterator[dict[str, Any]]:
        """Yield a row for a power cut after each change of a file or folder."""
        place, trace = self.prepare(command), self.folder / "trace"
        before = self.folder / "before"
        shutil.rmtree(before, ignore_errors=True)
        shutil.copytree(place, before)
        self.server.run(command, place, kind=RECORD, trace=trace)
        records = read_trace(trace)
        for number in range(first, len(records) + 1, every):
            after = Path(tempfile.mkdtemp(dir=self.folder, prefix=f"{command}-"))
            cut_power(
                before, records[:number], recorded_at=place, after=after,
                survives=POWER_CUTS[fault], draw=random.Random(number),
            )  # fmt: skip
            yield self.judge(command, fault, number, after, {"code": 0, "said": ""}, expected)
        shutil.rmtree(place)

    def judge(
        self, command: str, fault: str, number: int, place: Path, first: dict[str, Any],
        expected: dict[str, str],
    ) -> dict[str, Any]:  # fmt: skip
        """Repeat a disturbed command, and say what differs from an undisturbed one."""
        again = self.server.run(command, place)
        found = contents(place)
        differing = sorted(
            name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name)
        )
        row = {
            "command": command,
            "fault": fault,
            "operation": number,
            "survived": again["code"] == 0 and not differing and first["code"] != 99,
            "traceback": 99 in (first["code"], again["code"]),
            "repeated_rows": count_repeated(place / "run"),
            "differing": differing[:4],
            "said": [each["said"][-300:] for each in (first, again)],
        }
        shutil.rmtree(place)
        return row

    def close(self) -> None:
        """End the server."""
        self.server.close()


def contents(place: Path) -> dict[str, str]:
    """Return what must be equal of each file: its sha256, its rows, or only that it exists.

    An empty lock of a file of the cache may remain until the next file is fetched. Of checkpoints
    only the newest counts: a run that cannot write an earlier one warns and continues.
    """
    older = sorted(place.glob("run/checkpoints/[0-9]*"))[:-1]
    return {
        str(path.relative_to(place)): content_of(path)
        for path in sorted(place.rglob("*"))
        if path.is_file() and path.suffix != ".lock" and not set(older) & set(path.parents)
    }


def content_of(path: Path) -> str:
    """Return what must be equal of a file."""
    if path.name in VARYING:
        return "exists"
    if path.name == "metrics.jsonl":
        rows = read_rows(path)
        return json.dumps(
            [
                {n: x for n, x in row.items() if not n.startswith(("time/", "memory/"))}
                for row in rows
            ]
        )
    return hashlib.sha256(path.read_bytes()).hexdigest()


def count_repeated(run: Path) -> int:
    """Return how many rows of metrics a run has twice."""
    rows = [row.get("progress/images") for row in read_rows(run / "metrics.jsonl")]
    return len(rows) - len(set(rows))


def summarize(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each command and fault: operations tried, and what became of them."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[row["command"], row["fault"]].append(row)
    return [
        {
            "command": command,
            "fault": fault,
            "operations": len(group),
            "survived": sum(row["survived"] for row in group),
            "repeated_rows": sum(row["repeated_rows"] for row in group),
            "tracebacks": sum(row["traceback"] for row in group),
        }
        for (command, fault), group in groups.items()
    ]


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("commands", nargs="*", help=f"of {', '.join(COMMANDS)}; default: all")
    parser.add_argument("--faults", nargs="*", default=ALL_FAULTS)
    parser.add_argument("--every", type=int, default=1, help="try each n-th operation only")
    parser.add_argument(
        "--record", action="store_true", help=f"add the sums to {IO_ROWS}, for the page of faults"
    )
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(prefix="io-") as temporary:
        commands = tuple(options.commands or COMMANDS)
        harness = Harness(Path(temporary), commands)
        for command in commands:
            for row in harness.trials(command, options.faults, every=options.every):
                rows.append(row)
                if not row["survived"]:
                    print(json.dumps(row), flush=True)
        harness.close()
    sums = summarize(rows)
    print(io_table([row | {"every": options.every} for row in sums]))
    if options.record:
        for row in sums:
            record_operations(row | {"every": options.every})


if __name__ == "__main__":
    main()
