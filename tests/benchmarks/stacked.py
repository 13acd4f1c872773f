"""Modes of stacked digits: how many of 1,000 each remedy captures, and how far from uniform it uses them.

    python -m tests.benchmarks.stacked digits [--seeds 3] [--kimg 128] [--remedy bce] [section.field=value ...]
    python -m tests.benchmarks.stacked mnist --root FOLDER_OF_THE_OFFICIAL_FILES

26,000 samples are named by a classifier of the single digits, one channel at a time; a mode is captured by one sample
(Srivastava et al. 2017, Lin et al. 2018). The networks are small and fast, a setting in which a plain GAN collapses.
The same command goes on where it was stopped.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from distgan.evaluation.probe import probe_path
from shards.format.index import read_index

DOOR = Path(__file__).parents[2] / "distgan" / "train.py"
NUM_SAMPLES = 26_000
COLUMNS = {
    "diversity/modes": "g",
    "diversity/reverse_kl": ".2f",
    "quality/coverage": ".2f",
    "quality/frechet": ".1f",
}
PUBLISHED = (
    "DCGAN 99 modes, 3.40; Unrolled GAN 48.7, 4.32; VEEGAN 150, 2.95; PacDCGAN2 1000, 0.06 "
    "(Lin et al. 2018, table 2: MNIST at 28 pixels, 100k steps)"
)
PLAIN = (
    "networks.generator_width=32", "networks.discriminator_width=16", "networks.discriminator_norm=none",
    "train.batch_size=64", "optim.lr_g=1e-3", "optim.lr_d=1e-3", "optim.betas=[0.5,0.999]", "log.wandb=disabled",
    "evaluation.every_kimg=1000", "log.samples_every_kimg=1000",
)  # fmt: skip
CALM = "optim.betas=[0.0,0.99]"
REMEDIES: dict[str, tuple[str, ...]] = {
    "bce": (),
    "bce, betas (0, 0.99)": (CALM,),
    "twice the discriminator": ("networks.discriminator_width=32",),
    "hinge, spectral norm": ("loss.adversarial=hinge", "networks.discriminator_norm=spectral"),
    "relativistic, R1 + R2, betas (0, 0.99)": (
        "loss.adversarial=relativistic",
        "loss.r1=0.05",
        "loss.r2=0.05",
        CALM,
    ),
    "minibatch stddev": ("networks.minibatch_stddev=4",),
    "minibatch stddev, betas (0, 0.99)": ("networks.minibatch_stddev=4", CALM),
    "packing": ("networks.packing=2",),
    "mode seeking": ("loss.diversity.mode_seeking=5",),
    "feature distance": ("loss.diversity.feature_distance=5",),
    "unrolled, 5 steps": ("loss.unroll_steps=5",),
    "unrolled, 5 steps, non-saturating": (
        "loss.unroll_steps=5",
        "loss.unroll_value=non_saturating",
    ),
    "lookahead": ("optim.lookahead_steps=5",),
}


def distgan(*words: object) -> None:
    """One distgan command that must succeed."""
    subprocess.run(
        [sys.executable, "-c", "from distgan.cli import app; app()", *map(str, words)], check=True
    )


def score(run: Path, stacks: Path, probe: Path, words: list[str]) -> dict[str, Any]:
    """Train a run, score 26,000 samples of it, and say how long an image took."""
    scores = run / "scores.json"
    if not scores.exists():
        words = [*words, f"evaluation.extractor={probe}"]
        subprocess.run(
            [sys.executable, str(DOOR), "--data", str(stacks), "--run-dir", str(run), *words],
            check=True,
        )
        options = (
            "--num",
            NUM_SAMPLES,
            "--reference",
            10_000,
            "--extractor",
            probe,
            "--json",
            scores,
        )
        distgan("evaluate", run, "--data", stacks, *options, "--metrics", ",".join(COLUMNS))
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    speed = statistics.median(
        row["time/images_per_sec"] for row in rows if "time/images_per_sec" in row
    )
    return json.loads(scores.read_text())[0] | {"images_per_sec": speed}


def main() -> None:
    """Pack, train the probe, then train and score a run a remedy and seed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("digits", choices=["digits", "mnist"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--kimg", type=float, default=128)
    parser.add_argument(
        "--remedy",
        action="append",
        choices=list(REMEDIES),
        metavar="NAME",
        help="; ".join(REMEDIES),
    )
    parser.add_argument("--root", type=Path)
    parser.add_argument("--folder", type=Path, default=Path("runs/stacked"))
    parser.add_argument("words", nargs="*", metavar="section.field=value")
    arguments = parser.parse_intermixed_args()
    root = ["--root", arguments.root] if arguments.root else []
    folder = arguments.folder / arguments.digits
    singles, stacks = folder / "singles", folder / "stacks"
    small = (
        ["--size", 16] if arguments.digits == "digits" else []
    )  # scanned at 8 pixels: a probe of 16 is four times as fast
    distgan("pack", arguments.digits, singles, *small, *root)
    distgan("pack", f"stacked-{arguments.digits}", stacks, *root)
    probe = probe_path(read_index(singles).fingerprint)
    if not probe.exists():
        distgan("probe", singles)
    lines, plain_speed = [], None
    for remedy in arguments.remedy or REMEDIES:
        found = []
        for seed in range(arguments.seeds):
            run = folder / f"{''.join(c if c.isalnum() else '-' for c in remedy)}-{seed}"
            words = [
                *PLAIN,
                *REMEDIES[remedy],
                f"train.kimg={arguments.kimg}",
                f"train.seed={seed}",
                *arguments.words,
            ]
            found.append(score(run, stacks, probe, words))
        columns = [
            ", ".join(f"{result['values'][name]:{form}}" for result in found)
            for name, form in COLUMNS.items()
        ]
        speed = statistics.median(result["images_per_sec"] for result in found)
        plain_speed = plain_speed or speed
        lines.append(f"| {remedy} | {' | '.join(columns)} | {plain_speed / speed:.1f} |")
    reals = found[0]["reals"]
    print(
        "| objective | modes | reverse KL | coverage | Frechet | time a step |\n| --- | --- | --- | --- | --- | --- |"
    )
    print("\n".join(lines))
    print(
        f"| reals | {reals['diversity/modes']:g} | {reals['diversity/reverse_kl']:.2f} "
        f"| {reals['quality/coverage']:.2f} | {reals['quality/frechet']:.1f} | |"
    )
    print(f"\n{NUM_SAMPLES:,} samples, {arguments.kimg:g} kimg; published: {PUBLISHED}")


if __name__ == "__main__":
    main()
