"""The rate of reading raw shards beside that of another checkout of distgan, by turns.

    git worktree add ../before COMMIT
    python -m tests.benchmarks.loader SHARDS ../before [--batches 4000] [--repeats 9]

Each turn is a process of its own with one thread of torch, which reads batches of 128 images after
100 that are not counted. Rates are in images per second of the clock and of CPU time.
"""

import os
import statistics
import subprocess
import sys
from pathlib import Path

from tests.benchmarks.common import Rates, command_line, machine
from tests.benchmarks.speed import spread

ROOT = Path(__file__).parents[2]
CODE = """
import sys, time
import torch
from shards.reader import ShardReader
from shards.stream import BatchStream
torch.set_num_threads(1)
num = int(sys.argv[2])
with BatchStream(ShardReader(sys.argv[1]), key=1, start=0, batch_size=128) as stream:
    for _ in range(100):
        next(stream)
    began, began_cpu = time.perf_counter(), time.process_time()
    for _ in range(num):
        next(stream)
    took = time.perf_counter() - began, time.process_time() - began_cpu
print(128 * num / took[0], 128 * num / took[1])
"""


def measure(checkout: Path, shards: Path, num_batches: int, rates: Rates) -> None:
    """Read with the code of a checkout, and add the rates."""
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(shards.absolute()), str(num_batches)],
        env=os.environ | {"PYTHONPATH": str(checkout.absolute())}, cwd=checkout, check=True,
        capture_output=True, text=True,
    )  # fmt: skip
    by_clock, by_cpu = map(float, done.stdout.split())
    rates.by_clock.append(by_clock)
    rates.by_cpu.append(by_cpu)


def main() -> None:
    """Measure both by turns, and print their rates and ratios."""
    parser = command_line(__doc__)
    parser.add_argument("shards", type=Path)
    parser.add_argument("other", type=Path)
    parser.add_argument("--batches", type=int, default=4000)
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    print(f"{arguments.shards}; {machine()}\n")
    checkouts = {"before": arguments.other, "now": ROOT}
    found = {name: Rates() for name in checkouts}
    for _ in range(arguments.repeats):
        for name, checkout in checkouts.items():
            measure(checkout, arguments.shards, arguments.batches, found[name])
    print("| images per | before | now | ratio |", "| --- | ---: | ---: | ---: |", sep="\n")
    for unit, kind in (("second", "by_clock"), ("CPU second", "by_cpu")):
        before, now = (getattr(found[name], kind) for name in checkouts)
        ratio = statistics.median(now) / statistics.median(before)
        print(f"| {unit} | {spread(before)} | {spread(now)} | {ratio:.3f} |")


if __name__ == "__main__":
    main()
