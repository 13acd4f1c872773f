"""How often the verdict is wrong on digits: false alarms and missed collapses.

    python -m tests.benchmarks.alarms [--runs 10] [--folder runs/alarms]

Every run is a real one with its own seed; the same command resumes after an interruption. A healthy
run is the `digits` preset over 54 kimg. In a collapsing run the generator learns far too fast and
the discriminator far too slowly. Any verdict of a collapse, at any time, is an alarm. Whether a
collapsing run did collapse is decided by the missing classes and the coverage at its end alone.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distgan.evaluation.probe import probe_path
from distgan.run.files import read_rows
from shards.format.index import read_index
from tests.benchmarks.common import command_line, distgan, train

HEALTHY = ("--preset", "digits", "train.kimg=54", "evaluation.every_kimg=5.4")
COLLAPSING = (
    "--preset", "digits", "train.kimg=27", "evaluation.every_kimg=4.5",
    "networks.generator_width=32", "networks.discriminator_width=32",
    "optim.lr_g=2e-3", "optim.lr_d=1e-5", "optim.betas=[0.5,0.999]",
)  # fmt: skip
ALARMS = ("partial collapse", "complete collapse", "diverged")


@dataclass(frozen=True)
class Outcome:
    """How a run ended, and the first alarm that it raised."""

    state: str
    coverage: float
    num_missing: int  # classes
    alarm: dict[str, Any] | None  # its event

    @property
    def collapsed(self) -> bool:
        """Whether the run did collapse, whatever the verdict says."""
        return self.num_missing > 0 or self.coverage < 0.2 or self.state == "failed"

    def __str__(self) -> str:
        alarm = "none"
        if self.alarm is not None:
            alarm = f"at {self.alarm['images_seen'] / 1000:.1f} kimg: {self.alarm['what']}"
        return (
            f"{self.state} with coverage {self.coverage:.2f}, {self.num_missing} classes missing; "
            f"alarm: {alarm}"
        )


def run(folder: Path, settings: tuple[str, ...], *, seed: int) -> Outcome:
    """Train one run, or resume it, and return how it ended."""
    options = ("--data", folder.parent / "digits", "--run-dir", folder, f"train.seed={seed}")
    train(*settings, *options, "log.wandb=disabled", check=False)
    events = read_rows(folder / "events.jsonl")
    last = read_rows(folder / "evaluations.jsonl")[-1]
    return Outcome(
        state=json.loads((folder / "status.json").read_text())["state"],
        coverage=last["values"]["quality/coverage"],
        num_missing=len(last["missing"]),
        alarm=next((event for event in events if event.get("verdict") in ALARMS), None),
    )


def main() -> None:
    """Print one line per run, then the number of false alarms and of misses."""
    parser = command_line(__doc__)
    parser.add_argument("--runs", type=int, default=10, help="of each kind")
    parser.add_argument("--folder", type=Path, default=Path("runs/alarms"))
    options = parser.parse_args()
    shards = options.folder / "digits"
    distgan("pack", "digits", shards)
    if not probe_path(read_index(shards).fingerprint).exists():
        distgan("probe", shards)
    outcomes: dict[str, list[Outcome]] = {}
    for kind, settings in (("healthy", HEALTHY), ("collapsing", COLLAPSING)):
        outcomes[kind] = []
        for seed in range(options.runs):
            outcome = run(options.folder / f"{kind}-{seed}", settings, seed=seed)
            outcomes[kind].append(outcome)
            print(f"{kind} {seed}: {outcome}", flush=True)
    false_alarms = [outcome for outcome in outcomes["healthy"] if outcome.alarm]
    collapsed = [outcome for outcome in outcomes["collapsing"] if outcome.collapsed]
    misses = [outcome for outcome in collapsed if not outcome.alarm]
    print(f"false alarms: {len(false_alarms)} of {options.runs}")
    print(f"misses: {len(misses)} of {len(collapsed)}")


if __name__ == "__main__":
    main()
