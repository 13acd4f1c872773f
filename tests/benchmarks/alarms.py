"""How often the verdict is wrong: false alarms over healthy runs, misses over collapsing ones, on the digits.

    python -m tests.benchmarks.alarms [--runs 10] [--folder runs/alarms]

Every run is a real one, through the door, with its own seed; the same command goes on where it was stopped. A healthy run
is the `digits` preset over 54 kimg, in a collapsing one the generator learns far too fast and the discriminator far too slowly.
An alarm is any verdict of a collapse at any time. Whether a collapsing run did collapse is asked of the class histogram
and the coverage at its end alone.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from distgan.evaluation.probe import probe_path
from distgan.run.files import read_rows
from shards.format.index import read_index
from tests.benchmarks.stacked import DOOR, distgan

HEALTHY = ["--preset", "digits", "train.kimg=54", "evaluation.every_kimg=5.4"]
COLLAPSING = [
    "--preset", "digits", "train.kimg=27", "evaluation.every_kimg=4.5", "networks.generator_width=32",
    "networks.discriminator_width=32", "optim.lr_g=2e-3", "optim.lr_d=1e-5", "optim.betas=[0.5,0.999]",
]  # fmt: skip
ALARMS = ("partial collapse", "complete collapse", "diverged")


def train(folder: Path, words: list[str], seed: int) -> dict[str, Any]:
    """Train one run, or go on with it; what it ended with."""
    words = [
        *words,
        "--data",
        str(folder.parent / "digits"),
        "--run-dir",
        str(folder),
        f"train.seed={seed}",
    ]
    words.append("log.wandb=disabled")
    subprocess.run([sys.executable, str(DOOR), *words], check=False, stdout=subprocess.DEVNULL)
    alarms = [
        event for event in read_rows(folder / "events.jsonl") if event.get("verdict") in ALARMS
    ]
    last = read_rows(folder / "evaluations.jsonl")[-1]
    return {
        "state": json.loads((folder / "status.json").read_text())["state"],
        "first_alarm": alarms[0] if alarms else None,
        "coverage": last["values"]["quality/coverage"],
        "missing": len(last["missing"]),
    }


def main() -> None:
    """Print a line a run, and the two counts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--folder", type=Path, default=Path("runs/alarms"))
    arguments = parser.parse_args()
    shards = arguments.folder / "digits"
    distgan("pack", "digits", shards)
    if not probe_path(read_index(shards).fingerprint).exists():
        distgan("probe", shards)
    wrong = {}
    for kind, words in (("healthy", HEALTHY), ("collapsing", COLLAPSING)):
        found = [
            train(arguments.folder / f"{kind}-{seed}", words, seed)
            for seed in range(arguments.runs)
        ]
        for seed, run in enumerate(found):
            first = run["first_alarm"]
            alarm = (
                f"at {first['images_seen'] / 1000:.1f} kimg: {first['what']}" if first else "none"
            )
            end = (
                f"coverage {run['coverage']:.2f}, {run['missing']} classes missing, {run['state']}"
            )
            print(f"{kind} {seed}: ended with {end}; alarm {alarm}")
        if kind == "healthy":
            wrong["false alarms"] = sum(run["first_alarm"] is not None for run in found), len(found)
        else:
            collapsed = [
                run
                for run in found
                if run["missing"] or run["coverage"] < 0.2 or run["state"] == "failed"
            ]
            wrong["misses"] = sum(run["first_alarm"] is None for run in collapsed), len(collapsed)
    for what, (count, out_of) in wrong.items():
        print(f"{what}: {count} of {out_of}")


if __name__ == "__main__":
    main()
