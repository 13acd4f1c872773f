"""Modes of stacked digits: how many of 1,000 a generator captures, and how far from uniform it uses them.

    python -m tests.benchmarks.stacked digits [--seeds 3] [--kimg 200] [section.field=value ...]
    python -m tests.benchmarks.stacked mnist --root FOLDER_OF_THE_OFFICIAL_FILES

26,000 samples are named by a classifier of the single digits, one channel at a time; a mode is captured by one sample
(Srivastava et al. 2017, Lin et al. 2018). The same command goes on where it was stopped.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from distgan.evaluation.probe import probe_path
from shards.index import read_index

DOOR = Path(__file__).parents[2] / "distgan" / "train.py"
NUM_SAMPLES = 26_000
PUBLISHED = (
    "DCGAN 99 modes, 3.40; Unrolled GAN 48.7, 4.32; VEEGAN 150, 2.95; PacDCGAN2 1000, 0.06 "
    "(Lin et al. 2018, table 2: MNIST at 28 pixels, 100k steps)"
)


def distgan(*words: object) -> None:
    """One distgan command that must succeed."""
    subprocess.run([sys.executable, "-c", "from distgan.cli import app; app()", *map(str, words)], check=True)


def main() -> None:
    """Pack, train the probe, then train and score a run a seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("digits", choices=["digits", "mnist"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--kimg", type=float, default=200)
    parser.add_argument("--root", type=Path)
    parser.add_argument("--folder", type=Path, default=Path("runs/stacked"))
    parser.add_argument("words", nargs="*", metavar="section.field=value")
    arguments = parser.parse_intermixed_args()
    root = ["--root", arguments.root] if arguments.root else []
    folder = arguments.folder / arguments.digits
    singles, stacks = folder / "singles", folder / "stacks"
    distgan("pack", arguments.digits, singles, *root)
    distgan("pack", f"stacked-{arguments.digits}", stacks, *root)
    probe = probe_path(read_index(singles).fingerprint)
    if not probe.exists():
        distgan("probe", singles)
    for seed in range(arguments.seeds):
        run, scores = folder / f"seed-{seed}", folder / f"seed-{seed}.json"
        fixed = [
            f"train.kimg={arguments.kimg}",
            f"train.seed={seed}",
            "log.wandb=disabled",
            f"evaluation.extractor={probe}",
        ]
        door = [sys.executable, str(DOOR), "--data", str(stacks), "--run-dir", str(run)]
        subprocess.run([*door, *fixed, *arguments.words], check=True)
        distgan(
            "evaluate",
            run,
            "--data",
            stacks,
            "--num",
            NUM_SAMPLES,
            "--reference",
            10_000,
            "--extractor",
            probe,
            "--json",
            scores,
        )
    for seed in range(arguments.seeds):
        result = json.loads((folder / f"seed-{seed}.json").read_text())[0]
        values, reals = result["values"], result["reals"]
        print(
            f"seed {seed}: {values['diversity/modes']:g} modes of 1,000 (reals {reals['diversity/modes']:g}), reverse KL "
            f"{values['diversity/reverse_kl']:.3f} (reals {reals['diversity/reverse_kl']:.3f}), "
            f"{result['protocol']['num_fakes']:,} samples"
        )
    print(f"published: {PUBLISHED}")


if __name__ == "__main__":
    main()
