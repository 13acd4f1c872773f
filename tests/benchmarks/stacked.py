"""Modes of stacked digits: how many of 1,000 each remedy captures, and how evenly it uses them.

    python -m tests.benchmarks.stacked digits [--seeds 3] [--kimg 128] [--remedy bce] [SETTING ...]
    python -m tests.benchmarks.stacked mnist --root FOLDER_OF_THE_OFFICIAL_FILES

26,000 samples are named by a classifier of single digits, one channel at a time. One sample is
enough to capture a mode (Srivastava et al. 2017, Lin et al. 2018). The networks are small and fast,
a setting in which a plain GAN loses modes. The same command resumes after an interruption.
"""

import json
import statistics
from pathlib import Path
from typing import Any

from distgan.evaluation.probe import probe_path
from distgan.run.files import read_rows
from shards.format.index import read_index
from shards.pack import pack
from tests.benchmarks.common import command_line, distgan, train

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
    "--preset", "classic",
    "networks.generator_width=32", "networks.discriminator_width=16",
    "networks.discriminator_norm=none", "train.batch_size=64", "optim.lr_g=1e-3", "optim.lr_d=1e-3",
    "optim.betas=[0.5,0.999]", "optim.scaling=none", "log.wandb=disabled",
    "evaluation.every_kimg=1000", "log.samples_every_kimg=1000",
)  # fmt: skip
CALM = "optim.betas=[0.0,0.99]"
# The settings that differ from those of a plain GAN.
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


def pack_and_probe(digits: str, folder: Path, *, root: Path | None) -> tuple[Path, Path]:
    """Pack single and stacked digits and train the classifier of single ones.

    Returns the stacked shards and the classifier's file.
    """
    # scikit-learn's digits were scanned at 8 pixels, so 16 are enough and four times as fast.
    size = 16 if digits == "digits" else None
    source = ("--root", root) if root else ()
    pack(digits, folder / "singles", size=size, root=root)
    distgan("pack", f"stacked-{digits}", folder / "stacks", *source)
    probe = probe_path(read_index(folder / "singles").fingerprint)
    if not probe.exists():
        distgan("probe", folder / "singles")
    return folder / "stacks", probe


def score(run: Path, stacks: Path, probe: Path, overrides: list[str]) -> dict[str, Any]:
    """Train a run unless that is done; return its scores and its images per second."""
    scores = run / "scores.json"
    if not scores.exists():
        options = ("--data", stacks, "--run-dir", run, f"evaluation.extractor={probe}")
        train(*options, *overrides)
        counts = ("--num", NUM_SAMPLES, "--reference", 10_000, "--metrics", ",".join(COLUMNS))
        options = ("--data", stacks, "--extractor", probe, "--json", scores)
        distgan("evaluate", run, *options, *counts)
    rows = read_rows(run / "metrics.jsonl")
    speed = statistics.median(
        row["time/images_per_sec"] for row in rows if "time/images_per_sec" in row
    )
    return json.loads(scores.read_text())[0] | {"images_per_sec": speed}


def cells(values: list[dict[str, float]]) -> str:
    """Return the table's cells of some scores, with one value for each of them."""
    columns = (
        ", ".join(f"{value[name]:{form}}" for value in values) for name, form in COLUMNS.items()
    )
    return " | ".join(columns)


def main() -> None:
    """Train and score every remedy with every seed, and print one row per remedy."""
    parser = command_line(__doc__)
    parser.add_argument("digits", choices=["digits", "mnist"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--kimg", type=float, default=128)
    remedies = "; ".join(REMEDIES)
    parser.add_argument(
        "--remedy", action="append", choices=list(REMEDIES), metavar="NAME", help=remedies
    )
    parser.add_argument("--root", type=Path, help="folder of the official MNIST files")
    parser.add_argument("--folder", type=Path, default=Path("runs/stacked"))
    parser.add_argument("overrides", nargs="*", metavar="section.field=value")
    options = parser.parse_intermixed_args()
    folder = options.folder / options.digits
    stacks, probe = pack_and_probe(options.digits, folder, root=options.root)
    table, plain_speed = [], None
    for remedy in options.remedy or REMEDIES:
        found = []
        for seed in range(options.seeds):
            run = folder / f"{''.join(c if c.isalnum() else '-' for c in remedy)}-{seed}"
            length = [f"train.kimg={options.kimg}", f"train.seed={seed}"]
            settings = [*PLAIN, *REMEDIES[remedy], *length, *options.overrides]
            found.append(score(run, stacks, probe, settings))
        speed = statistics.median(result["images_per_sec"] for result in found)
        plain_speed = plain_speed or speed
        values = cells([result["values"] for result in found])
        table.append(f"| {remedy} | {values} | {plain_speed / speed:.1f} |")
    print("| objective | modes | reverse KL | coverage | Frechet | time a step |")
    print("| --- | --- | --- | --- | --- | --- |")
    print("\n".join(table))
    print(f"| reals | {cells([found[0]['reals']])} | |")
    print(f"\n{NUM_SAMPLES:,} samples, {options.kimg:g} kimg; published: {PUBLISHED}")


if __name__ == "__main__":
    main()
