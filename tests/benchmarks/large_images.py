"""Memory and time of training, sampling and exporting at 256 pixels, on two threads.

    python -m tests.benchmarks.large_images [--size 256] [--recipe classic ...] [SETTING ...]

Every command runs in a process of its own, whose largest resident memory is measured. Images are
generated. `default` is the recipe of a run without a preset; SETTINGs are added to each recipe.
"""

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from distgan.commands.bench import write_images
from shards.pack import pack
from tests.benchmarks.common import TRAIN, command_line, machine

RECIPES = ("default", "classic")
LIMIT_GB = 8
QUIET = ("log.wandb=disabled", "log.report=false", "train.cpu_threads=2", "train.compile=never")
DISTGAN = (sys.executable, "-c", "from distgan.cli import app; app()")


class Cost(NamedTuple):
    """What a command took."""

    gigabytes: float  # largest resident memory
    seconds: float


def measure(*command: object) -> Cost:
    """Run a command, which must succeed, with its output in the log of its run."""
    words = list(map(str, command))
    began = time.perf_counter()
    pid = os.posix_spawn(words[0], words, os.environ)
    _, status, usage = os.wait4(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0, f"{' '.join(words)} failed"
    return Cost(usage.ru_maxrss * 1024 / 1e9, time.perf_counter() - began)


def measure_recipe(recipe: str, shards: Path, run: Path, settings: list[str]) -> dict[str, Cost]:
    """Train one step, which has the penalties, draw a grid and export."""
    preset = () if recipe == "default" else ("--preset", recipe)
    words = (*preset, "--data", shards, "--run-dir", run, "train.kimg=0.001", *QUIET, *settings)
    return {
        "train": measure(sys.executable, TRAIN, *words),
        "sample": measure(*DISTGAN, "sample", run, "--num", 64, "--out", run / "grid.png"),
        "export": measure(*DISTGAN, "export", run, "--out", run / "export"),
    }


def row(recipe: str, costs: dict[str, Cost]) -> str:
    """Return the row of a recipe in Markdown."""
    cells = [f"{cost.gigabytes:.1f} GB, {cost.seconds:.0f} s" for cost in costs.values()]
    outcome = "met" if max(cost.gigabytes for cost in costs.values()) < LIMIT_GB else "missed"
    return f"| {' | '.join([recipe, *cells, outcome])} |"


def main() -> None:
    """Measure every recipe, and print a table."""
    parser = command_line(__doc__)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--recipe", nargs="+", default=RECIPES)
    parser.add_argument("settings", nargs="*", metavar="SETTING")
    arguments = parser.parse_args()
    print(f"{arguments.size} px; {machine()}\n")
    with tempfile.TemporaryDirectory(prefix="distgan-large-") as folder:
        images = write_images(Path(folder) / "images", 256, size=arguments.size)
        shards = pack(images, Path(folder) / "shards", size=arguments.size).path
        print(f"| recipe | one step, grid, checkpoint | sample | export | {LIMIT_GB} GB |")
        print("| --- | ---: | ---: | ---: | --- |")
        for number, recipe in enumerate(arguments.recipe):
            run = Path(folder) / f"run{number}"
            print(row(recipe, measure_recipe(recipe, shards, run, arguments.settings)), flush=True)


if __name__ == "__main__":
    main()
