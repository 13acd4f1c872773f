"""How often the verdict on a run is wrong: false alarms, and troubles that are missed, on digits.

    python -m tests.benchmarks.alarms [--runs 10] [--folder runs/alarms]

Every run is a real one with its own seed; the same command resumes after an interruption. Each is
judged with labels while it trains, in the features of the dataset's probe, and afterwards as if
there were none: its checkpoints are evaluated in those of the random convolution, and its metrics
reported, in the order of training. Evaluations do not change what is trained.

healthy      small networks, plainer than those of `cifar10-strong`, with its other settings
complete     the generator learns fast, the discriminator too slowly
partial      a generator of half of the classes goes on with all of them, but hardly learns
winning      a healthy run goes on with a fast discriminator and a generator that hardly learns
diverged     learning rates of 10

Whether a run has the trouble that its settings should cause is decided by its classes, coverage,
accuracies and losses, not by the verdict. Any verdict of trouble, at any time, is an alarm.
"""

import json
import math
from collections import Counter
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import mean

import torch

from distgan.config.load import load_config
from distgan.evaluation.evaluator import Evaluator
from distgan.evaluation.probe import probe_path
from distgan.networks.generator_file import checkpoint_folders, load_generator
from distgan.run.files import read_rows
from distgan.runtime.distributed import World
from shards.format.index import read_index
from shards.reader import ShardReader
from tests.benchmarks.common import command_line, distgan, machine, train

SHARED = (
    "--preset", "cifar10-strong", "data.flip=false", "train.kimg=24", "evaluation.every_kimg=3",
    "networks.generator_width=16", "networks.discriminator_width=16", "train.cpu_threads=1",
    "log.wandb=disabled", "log.report=false", "log.samples_every_kimg=24",
    "checkpoint.every_kimg=3", "checkpoint.keep=20", "networks.generator_refinements=0",
    "networks.self_modulation=false", "networks.san=false",
)  # fmt: skip
PLAIN = ("networks.minibatch_stddev=0", "loss.adversarial=bce", "loss.r1=0", "loss.r2=0")
KINDS: dict[str, tuple[str, ...]] = {
    "healthy": (),
    "complete": (*PLAIN, "optim.lr_g=1e-3", "optim.lr_d=1e-4"),
    "partial": ("optim.lr_g=1e-6", "optim.lr_d=1e-6"),
    "winning": (*PLAIN, "optim.lr_g=1e-6", "optim.lr_d=2e-3", "optim.schedule=constant"),
    "diverged": ("loss.adversarial=wasserstein", "loss.r1=0", "loss.r2=0",
                 "optim.lr_g=10", "optim.lr_d=10"),
}  # fmt: skip
HALF = ("data.classes=['0','1','2','3','4']",)
BEGINNINGS = {"partial": "half", "winning": "healthy"}
"""The runs, with the same seed, whose weights the runs of a kind begin with."""
RIGHT = {
    "complete": ("complete collapse", "partial collapse"),
    "partial": ("partial collapse",),
    "winning": ("unbalanced",),
    "diverged": ("diverged",),
}
FEATURES = ("labelled", "unlabelled")
NO_TROUBLE = ("healthy", "learning")


@dataclass(frozen=True)
class Outcome:
    """What a run did, and its first alarm: its verdict and when it was raised, in kimg."""

    is_in_trouble: bool
    alarm: str
    kimg: float

    def is_caught(self, kind: str) -> bool:
        """Whether the first alarm names the trouble."""
        return self.alarm in RIGHT[kind]


def run(folder: Path, name: str, *, seed: int) -> None:
    """Train one run, or resume it, unless it has ended."""
    out = folder / f"{name}-{seed}"
    start = []
    if name in BEGINNINGS:
        start = [f"train.init_from={folder / f'{BEGINNINGS[name]}-{seed}'}"]
    options = ("--data", folder / "digits", "--run-dir", out, f"train.seed={seed}")
    if not is_over(out):
        settings = HALF if name == "half" else KINDS[name]
        train(*SHARED, *settings, *start, *options, "evaluation.extractor=probe", check=False)


def is_over(folder: Path) -> bool:
    """Return whether a run has ended, well or not."""
    status = folder / "status.json"
    return status.exists() and json.loads(status.read_text())["state"] in ("done", "failed")


def outcome(folder: Path, kind: str, features: str) -> Outcome:
    """Return what a run did."""
    verdicts = judge_again(folder) if features == "unlabelled" else verdicts_of(folder)
    alarms = (each for each in verdicts if each[1] not in NO_TROUBLE)
    images_seen, name = next(alarms, (math.nan, "none"))
    return Outcome(has_trouble(kind, folder), name, images_seen / 1000)


def verdicts_of(folder: Path) -> list[tuple[int, str]]:
    """Return the verdicts of a run while it trained, each with the images seen."""
    events = read_rows(folder / "events.jsonl")
    return [(each["images_seen"], each["verdict"]) for each in events if "verdict" in each]


def judge_again(folder: Path, extractor: str = "random") -> list[tuple[int, str]]:
    """Return the verdicts that a run on all classes would have had in other features."""
    config = load_config(str(folder / "config.toml"))
    reader = ShardReader(read_index(folder.parent / "digits"))
    evaluator = Evaluator(
        reader,
        evaluation=config.evaluation.model_copy(update={"extractor": extractor}),
        thresholds=config.collapse.thresholds,
        classes=None,
        world=World(0, 1),
        device=torch.device("cpu"),
        seed=config.train.seed,
        total_images=24_000,
        micro_batch_size=config.train.batch_size,
    )
    checkpoints = {round(1000 * float(path.name)): path for path in checkpoint_folders(folder)}
    found = []
    for row in read_rows(folder / "metrics.jsonl"):
        images_seen = row["progress/images"]
        verdict = evaluator.tracker.add_report(row, images_seen=images_seen)
        found.append((images_seen, verdict.name))
        if images_seen in checkpoints and images_seen:
            generator = load_generator(checkpoints[images_seen])
            _, verdict, _ = evaluator.evaluate(
                generator.network, generator.spec.latent_dim, images_seen=images_seen
            )
            found.append((images_seen, verdict.name))
    return found


def has_trouble(kind: str, folder: Path) -> bool:
    """Return whether a run did what its settings should cause."""
    rows = read_rows(folder / "metrics.jsonl")
    if kind == "diverged":
        return any(not math.isfinite(rows[-1][name]) for name in ("loss/d", "loss/g"))
    evaluations = [row["values"] for row in read_rows(folder / "evaluations.jsonl")]
    last = evaluations[-1]
    if kind == "winning":
        late = rows[-len(rows) // 5 :]
        wins = all(mean(row[f"accuracy/d_{x}"] for row in late) > 0.98 for x in ("real", "fake"))
        best = min(values["quality/frechet"] for values in evaluations)
        return wins and best > 0.9 * evaluations[0]["quality/frechet"]
    if kind == "partial":
        return all(3 <= values["diversity/missing_classes"] <= 7 for values in evaluations)
    if kind == "complete":
        return last["diversity/effective_classes"] < 3 and last["quality/coverage"] < 0.1
    return last["diversity/missing_classes"] > 1 or last["quality/coverage"] < 0.2


def table(found: dict[tuple[str, str], list[Outcome]]) -> list[str]:
    """Return a row for each kind and features, in Markdown."""
    lines = [
        "| runs | features | in trouble | first alarm | at kimg | wrong |",
        "| --- | --- | ---: | --- | --- | ---: |",
    ]
    for (kind, features), outcomes in found.items():
        troubled = [each for each in outcomes if each.is_in_trouble]
        alarms: Counter[str] = Counter(each.alarm for each in outcomes)
        times = [each.kimg for each in outcomes if not math.isnan(each.kimg)]
        if kind == "healthy":
            wrong = sum(each.alarm != "none" for each in outcomes if not each.is_in_trouble)
            what = f"{wrong} of {len(outcomes) - len(troubled)} false"
        else:
            missed = sum(not each.is_caught(kind) for each in troubled)
            what = f"{missed} of {len(troubled)} missed"
        named = ", ".join(f"{name} {count}" for name, count in alarms.most_common())
        at = f"{min(times):.1f} to {max(times):.1f}" if times else ""
        lines.append(
            f"| {len(outcomes)} {kind} | {features} | {len(troubled)} | {named} | {at} | {what} |"
        )
    return lines


def main() -> None:
    """Train what is missing, and print the table."""
    parser = command_line(__doc__)
    parser.add_argument("--runs", type=int, default=10, help="of each kind")
    parser.add_argument("--folder", type=Path, default=Path("runs/alarms"))
    options = parser.parse_args()
    shards = options.folder / "digits"
    distgan("pack", "digits", shards)
    if not probe_path(read_index(shards).fingerprint).exists():
        distgan("probe", shards)
    for seed, name in product(range(options.runs), ("half", *KINDS)):
        run(options.folder, name, seed=seed)
    torch.set_num_threads(1)
    print("\n".join([*table(collect(options.folder, options.runs)), "", machine()]))


def collect(folder: Path, runs: int) -> dict[tuple[str, str], list[Outcome]]:
    """Return the outcomes of all runs, by kind and features."""
    return {
        (kind, features): [
            outcome(folder / f"{kind}-{seed}", kind, features) for seed in range(runs)
        ]
        for kind, features in product(KINDS, FEATURES)
    }


if __name__ == "__main__":
    main()
