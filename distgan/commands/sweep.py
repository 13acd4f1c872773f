"""`distgan sweep`: train the runs of a file one after the other, and rank them in a leaderboard.

Each run is an ordinary one: distgan/train.py in a process and a folder of its own. If one fails,
the others are still trained.
"""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel

from distgan.commands.sweep_file import Run, Sweep, plan_runs, read_sweep
from distgan.config.load import parse_value
from distgan.errors import UserError
from distgan.reporting import leaderboard
from distgan.reporting.console import say, show_columns, show_error, show_warning
from distgan.run.files import read_json, read_status
from distgan.run.folder import FINISHED_STATES
from distgan.runtime.signals import Interrupt
from distgan.text import format_duration, pluralize
from shards.errors import ShardError, without_secrets
from shards.files import write_atomic

TRAIN_SCRIPT = Path(__file__).parents[1] / "train.py"
OVERRIDES_FILE = "sweep.json"
POLL_SEC = 0.1


class Recorded(BaseModel):
    """Contents of sweep.json: the settings with which the sweep was last trained.

    `has_all` is False if passwords or tokens of URLs were left out.
    """

    overrides: list[str] = []
    has_all: bool = True


@dataclass(frozen=True)
class Plan:
    """A sweep with its runs, and the number of the only one to train, if there is one."""

    file: Path
    sweep: Sweep
    folder: Path
    overrides: Sequence[str]
    runs: list[Run]
    index: int | None

    @property
    def chosen(self) -> list[Run]:
        """Return the runs to train."""
        return self.runs if self.index is None else [self.runs[self.index]]


def plan_sweep(
    file: Path,
    overrides: Sequence[str],
    *,
    folder: Path | None = None,
    index: int | None = None,
    board: bool = False,
) -> Plan:
    """Read a sweep and plan its runs; raises UserError.

    With `board` and without overrides, those of the last training in the folder are used, since
    they are part of what identifies its runs.
    """
    sweep = read_sweep(file)
    folder = folder or default_folder(file)
    recorded = read_json(folder / OVERRIDES_FILE, Recorded) if board and not overrides else None
    if recorded and recorded.overrides:
        overrides = recorded.overrides
        say(f"with the settings of the last sweep: {shlex.join(map(hide_secrets, overrides))}")
    try:
        runs = plan_runs(sweep, folder=folder, overrides=overrides)
    except ShardError as error:
        if recorded is None or recorded.has_all:
            raise
        raise UserError(
            f"{error}; passwords and tokens were not recorded: repeat the settings of the sweep"
        ) from None
    if index is not None and index >= len(runs):
        raise UserError(
            f"--index {index}: the sweep has {pluralize(len(runs), 'run')}, numbered "
            f"0 to {len(runs) - 1}; see them with --list"
        )
    return Plan(file, sweep, folder, overrides, runs, index)


def default_folder(file: Path) -> Path:
    """Return the folder of a sweep's runs if none is given."""
    return Path("runs") / file.stem


def record_overrides(plan: Plan) -> None:
    """Save the settings of the command line, so that a later --board finds the same runs."""
    path = plan.folder / OVERRIDES_FILE
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        shown = list(map(hide_secrets, plan.overrides))
        recorded = Recorded(overrides=shown, has_all=shown == list(plan.overrides))
        write_atomic(path, recorded.model_dump_json(indent=1) + "\n", shared=True)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror}; choose another place with --folder"
        ) from None


def hide_secrets(override: str) -> str:
    """Return `section.field=value` without the password and token of a URL, as it may be shown."""
    name, _, text = override.partition("=")
    value = parse_value(text)
    plain = value if isinstance(value, str) else text
    shown = without_secrets(plain)
    return override if shown == plain else f"{name}={shown}"


def arguments_of_run(plan: Plan) -> tuple[str, ...]:
    """Return the arguments of distgan/train.py for the chosen run, which the caller trains."""
    record_overrides(plan)
    return plan.chosen[0].arguments


def list_runs(plan: Plan) -> None:
    """Print all runs with their numbers and states, and how to train them as a SLURM array."""
    entries = [run.entry for run in plan.runs]
    rows = [
        [
            str(number),
            entry.label,
            str(entry.seed),
            read_status(entry.folder).state,
            entry.folder.name,
        ]
        for number, entry in enumerate(entries)
    ]
    say(f"runs in {plan.folder}")
    show_columns(["number", "cell", "seed", "state", "folder"], rows)
    arguments = [str(plan.file), *map(hide_secrets, plan.overrides)]
    if plan.folder != default_folder(plan.file):
        arguments += ["--folder", str(plan.folder)]
    task = shlex.join(["launch/sweep.sbatch", *arguments])
    say(f"as an array: sbatch --array=0-{len(rows) - 1} {task}")


def write_board(plan: Plan) -> bool:
    """Print and write the leaderboard of the runs so far, and return whether it was written.

    It is not written if that would replace results by none. Raises UserError.
    """
    rank_by = plan.sweep.rank_by
    cells = leaderboard.gather_cells([run.entry for run in plan.runs], rank_by=rank_by)
    show_columns(*leaderboard.to_table(cells, rank_by=rank_by))
    if note := leaderboard.difference_note(cells):
        show_warning(note)
    known = leaderboard.evaluated_runs([vars(cell) for cell in cells])
    previous = leaderboard.evaluated_runs(leaderboard.read_leaderboard(plan.folder))
    if dropped := sorted(previous - known):
        show_warning(
            f"the last leaderboard has results of {pluralize(len(dropped), 'more run')}: "
            f"{', '.join(dropped)}; to rank them, repeat the settings that they were trained with"
        )
    if dropped and not known:
        show_warning("no run here has been evaluated, so the last leaderboard is kept")
        return False
    try:
        files = leaderboard.write_leaderboard(cells, plan.folder, rank_by=rank_by)
    except OSError as error:
        raise UserError(f"cannot write to {plan.folder}: {error.strerror}") from None
    say(f"wrote {', '.join(map(str, files))}")
    return True


def train_runs(plan: Plan) -> int:
    """Train the chosen runs, write the leaderboard if they are all runs, return the exit code."""
    record_overrides(plan)
    interrupt = Interrupt()
    interrupt.install()
    run_all(plan.chosen, group=plan.file.stem, launcher=plan.sweep.launcher, interrupt=interrupt)
    if interrupt.raised:
        show_error("the sweep was stopped; repeat the command to continue it")
        return 75
    if plan.index is None:
        write_board(plan)
    return 0 if all(run.is_finished for run in plan.chosen) else 1


@dataclass
class Pace:
    """The speed of the runs trained so far, from which the remaining time is estimated."""

    images: int = 0
    seconds: float = 0.0

    def add(self, *, images: int, seconds: float) -> None:
        """Add a run that was trained on this many images."""
        if images > 0:
            self.images += images
            self.seconds += seconds

    def time_left(self, runs: Sequence[Run]) -> str:
        """Return a phrase about the time that the runs will take; empty if it is unknown."""
        images_left = sum(run.images_left for run in runs)
        if not self.images or not images_left:
            return ""
        return f", about {format_duration(images_left * self.seconds / self.images)} left"


def run_all(runs: Sequence[Run], *, group: str, launcher: str, interrupt: Interrupt) -> None:
    """Train unfinished runs one after the other, until a signal arrives. Failures are reported."""
    pace = Pace()
    for number, run in enumerate(runs):
        if interrupt.raised:
            return
        name = f"run {number + 1} of {len(runs)}: {run.entry.label}, seed {run.entry.seed}"
        if run.is_finished:
            say(f"{name}: already finished")
            continue
        say(name + pace.time_left(runs[number:]), style="bold")
        images, start = run.images_seen, time.monotonic()
        outcome = run_one(run, group=group, launcher=launcher, interrupt=interrupt)
        pace.add(images=run.images_seen - images, seconds=time.monotonic() - start)
        if outcome not in FINISHED_STATES and not interrupt.raised:
            say(f"{name}: {outcome}; continuing with the others", style="bold red")


def run_one(run: Run, *, group: str, launcher: str, interrupt: Interrupt) -> str:
    """Train one run in a process of its own and pass a signal on to it.

    Returns the state in its status.json, or `failed ...` if the process left no new status.
    """
    before = read_status(run.entry.folder)
    # Act like `accelerate launch`, so that the run is saved and ends if this process dies.
    environment = {"ACCELERATE_MIXED_PRECISION": "no", **os.environ, "WANDB_RUN_GROUP": group}
    if not launcher:
        environment.pop("MASTER_ADDR", None)  # set by an enclosing job; this run is one process
    process = subprocess.Popen(
        [*(shlex.split(launcher) or [sys.executable]), str(TRAIN_SCRIPT), *run.arguments],
        env=environment,
        start_new_session=True,
    )
    was_signalled = False
    while process.poll() is None:
        if interrupt.raised and not was_signalled:
            os.killpg(process.pid, signal.SIGTERM)  # the launcher and its workers
            was_signalled = True
        try:
            process.wait(POLL_SEC)
        except subprocess.TimeoutExpired:
            continue
    after = read_status(run.entry.folder)
    is_old = after == before and process.returncode
    if is_old or after.state in ("running", "not started", "unknown"):
        return f"failed with exit code {process.returncode}"
    return after.state
