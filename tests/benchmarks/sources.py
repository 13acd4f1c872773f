"""Packing from Parquet beside a folder of the same files, and in two parts beside one process.

    python -m tests.benchmarks.sources SOURCE [--size 64] [--num 4000] [--repeats 5] [--only parts]

SOURCE is anything that `distgan pack` takes; its files are copied as they are, several times if it
has fewer than `--num`. All run by turns in processes of their own, each with one worker. By the
clock a rate counts from the start of the first process to the end of the last; by CPU time it
counts the busiest process, which other work on the machine changes little.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pyarrow
import pyarrow.parquet

from shards.sources.registry import open_source
from tests.benchmarks.common import Rates, command_line, machine
from tests.benchmarks.speed import spread

BARS = {"parquet": 0.9, "parts": 1.8}
SHARD_SIZE_MB = 4  # so that parts have equally many shards, or nearly so
HEAD = (
    "| what | folder, images/s | images/s | ratio | folder, per CPU s | per CPU s | ratio | bar |",
    "| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
)
CODE = "import json, os, sys; from distgan.cli import app; app(sys.argv[1:], standalone_mode=False)"
CODE += "; print(json.dumps(sum(os.times()[:2])), file=sys.stderr)"


def copy_files(source: str, num: int, folder: Path) -> tuple[Path, Path]:
    """Write `num` files into a folder and into a Parquet file: a source's, again and again."""
    opened = open_source(source, with_labels=False)
    files = [opened.read(number % len(opened)) for number in range(num)]
    images = folder / "images"
    images.mkdir()
    rows = []
    for number, data in enumerate(files):
        assert isinstance(data, bytes), f"{source} holds no files"
        (images / f"{number:06d}.jpg").write_bytes(data)
        rows.append({"bytes": data, "path": f"{number:06d}.jpg"})
    table = folder / "images.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"image": rows}), table, row_group_size=100)
    return images, table


def pack(commands: Sequence[Sequence[object]]) -> tuple[float, float]:
    """Run `distgan pack` with one worker, all at once; return seconds by clock and of CPU."""
    began = time.perf_counter()
    running = [
        subprocess.Popen(
            [sys.executable, "-c", CODE, "pack", *map(str, words), "--workers", "1"],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )
        for words in commands
    ]  # fmt: skip
    said = [process.communicate()[1] for process in running]
    seconds = time.perf_counter() - began
    assert not any(process.returncode for process in running), said
    return seconds, max(json.loads(text.splitlines()[-1]) for text in said)


def measure(commands: dict[str, list[list[object]]], num: int, repeats: int) -> dict[str, Rates]:
    """Time all commands in turn, each into a new folder, after one turn that is not counted."""
    found = {name: Rates() for name in commands}
    for repeat in range(repeats + 1):
        for name, words in commands.items():
            with tempfile.TemporaryDirectory(prefix="distgan-packed-") as out:
                by_clock, by_cpu = pack([[each[0], Path(out) / "out", *each[1:]] for each in words])
            if repeat:
                found[name].by_clock.append(num / by_clock)
                found[name].by_cpu.append(num / by_cpu)
    return found


def row(name: str, rates: dict[str, Rates], bar: float) -> str:
    """Return a row in Markdown: a way beside `folder`, the usual one."""
    cells, reached = [], []
    for kind in ("by_clock", "by_cpu"):
        usual, ours = (getattr(rates[each], kind) for each in ("folder", name))
        reached.append(statistics.median(ours) / statistics.median(usual))
        cells.append(f"{spread(usual)} | {spread(ours)} | {reached[-1]:.2f}")
    outcome = "met" if reached[0] >= bar else "missed"
    return f"| {' | '.join([name, *cells])} | {bar:g}: {outcome} |"


def main() -> None:
    """Measure, and print a table."""
    parser = command_line(__doc__)
    parser.add_argument("source")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--num", type=int, default=4000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", choices=BARS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="distgan-sources-") as folder:
        images, table = copy_files(arguments.source, arguments.num, Path(folder))
        options = ["--size", arguments.size, "--shard-size-mb", SHARD_SIZE_MB]
        commands = {
            "folder": [[images, *options]],
            "parquet": [[table, *options]],
            "parts": [[images, *options, "--part", part] for part in ("1/2", "2/2")],
        }
        if arguments.only:
            commands = {name: commands[name] for name in ("folder", arguments.only)}
        print(f"{arguments.num:,} images of {arguments.size} px; {machine()}\n", *HEAD, sep="\n")
        rates = measure(commands, arguments.num, arguments.repeats)
        for name in list(commands)[1:]:
            print(row(name, rates, BARS[name]))


if __name__ == "__main__":
    main()
