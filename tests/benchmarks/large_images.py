"""Memory and time of training, sampling and exporting at 256 pixels, on two threads.

    python -m tests.benchmarks.large_images [--size 256] [--recipe classic ...] [SETTING ...]

Every command runs in a process of its own, whose largest resident memory is measured. Images are
generated. `default` is the recipe of a run without a preset; SETTINGs are added to each recipe.
"""

import sys
import tempfile
from pathlib import Path

from distgan.commands.bench import write_images
from shards.pack import pack
from tests.benchmarks.common import DISTGAN, TRAIN, Cost, command_line, machine, measure_command

RECIPES = ("default", "classic")
LIMIT_GB = 8
QUIET = ("log.wandb=disabled", "log.report=false", "train.cpu_threads=2", "train.compile=never")


def measure_recipe(recipe: str, shards: Path, run: Path, settings: list[str]) -> dict[str, Cost]:
    """Train one step, which has the penalties, draw a grid and export."""
    preset = () if recipe == "default" else ("--preset", recipe)
    words = (*preset, "--data", shards, "--run-dir", run, "train.kimg=0.001", *QUIET, *settings)
    return {
        "train": measure_command(sys.executable, TRAIN, *words),
        "sample": measure_command(*DISTGAN, "sample", run, "--num", 64, "--out", run / "grid.png"),
        "export": measure_command(*DISTGAN, "export", run, "--out", run / "export"),
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
