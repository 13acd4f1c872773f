"""`distgan sweep`: many runs from one file, each an ordinary run in a folder of its own, and a leaderboard of them.

FILE.toml -> cells (variants x draws x grid) x seeds -> one subprocess of the ordinary door each -> leaderboard, contact sheet

A cell that crashes ends nothing else; the same command goes on where it was stopped; an array of jobs takes a run each.
"""

import itertools
import json
import math
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from distgan.config.flat import identity_hash
from distgan.config.load import load_config
from distgan.config.schema import Config, total_images
from distgan.config.section import Section, setting
from distgan.data import open_dataset
from distgan.errors import UserError
from distgan.evaluation.metrics import METRICS
from distgan.reporting.console import say
from distgan.reporting.leaderboard import Entry
from distgan.run.files import read_status
from distgan.run.folder import FINISHED_STATES
from distgan.runtime.signals import Interrupt

DOOR = Path(__file__).parents[1] / "train.py"
OWN = {"train.seed": "seeds", "train.kimg": "kimg", "train.epochs": "kimg", "data.shards": "data"}
DRAWS = ("uniform", "log_uniform", "choice")
POLL_SEC = 0.1


class Draws(Section):
    """Settings drawn at random: from a list, or from {uniform = [low, high]}, {log_uniform = [low, high]}, {choice = [...]}."""

    num: int = setting(..., "How many.", ge=1, le=10_000)
    seed: int = setting(0, "Of the draws; draw number i is the same however many there are.", ge=0)
    settings: dict[str, Any] = setting(..., "From what each setting is drawn.", min_length=1)


class Sweep(Section):
    """What a sweep's file says."""

    preset: str | None = setting(None, "Preset of every run; without data, digits.")
    data: str | None = setting(None, "Packed shards of every run.")
    kimg: float | None = setting(None, "Length of every run; none means the preset's.", gt=0)
    seeds: tuple[int, ...] = setting((0,), "A run of every cell for each.", min_length=1)
    rank_by: str = setting(
        "quality/frechet", "Metric of the last evaluation that the leaderboard is sorted by."
    )
    launcher: str = setting(
        "",
        "Words before distgan/train.py, as accelerate launch --num_processes 4; none means python.",
    )
    fixed: dict[str, Any] = setting({}, "Settings of every run.")
    variants: dict[str, dict[str, Any]] = setting({}, "Named cells, each with settings of its own.")
    grid: dict[str, Any] = setting(
        {}, "Settings with a list of values each: every combination is a cell."
    )
    random: Draws | None = setting(None, "Settings drawn at random, a cell a draw.")


@dataclass(frozen=True)
class Run:
    """One cell with one seed."""

    entry: Entry
    words: tuple[str, ...]  # of the trainer's command line
    total_images: int

    @property
    def is_finished(self) -> bool:
        """Whether its status says that there is nothing left to train."""
        status = read_status(self.entry.folder)
        short = status.state == "done" and status.images_seen < self.total_images
        return status.state in FINISHED_STATES and not short


# ------------------------------------------------------------------------------------------------ from the file to runs


def read_sweep(path: Path) -> Sweep:
    """The file's contents; raises UserError with what is wrong in it."""
    try:
        sweep = Sweep.model_validate(tomllib.loads(path.read_text()))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"cannot read the sweep {path}: {getattr(error, 'strerror', None) or error}"
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"the sweep {path} is not valid TOML: {error}") from None
    except ValidationError as error:
        mistakes = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()]
        raise UserError(
            f"{path}: {'; '.join(mistakes)}; a sweep has {', '.join(Sweep.model_fields)}"
        ) from None
    if sweep.rank_by not in METRICS:
        raise UserError(
            f"{path}: rank_by={sweep.rank_by!r} is no metric; choose from {', '.join(METRICS)}"
        )
    tables = [
        sweep.fixed,
        sweep.grid,
        *sweep.variants.values(),
        sweep.random.settings if sweep.random else {},
    ]
    for name in itertools.chain.from_iterable(map(flatten, tables)):
        if name in OWN:
            raise UserError(
                f"{path}: {name} is set for every run with {OWN[name]} = ... at the top of the file"
            )
    return sweep


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{`section.field`: value} of a table that is written with dotted names, quoted names or tables in it."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        is_table = isinstance(value, dict) and not set(value) & set(DRAWS)
        flat |= flatten(value, f"{prefix}{name}.") if is_table else {prefix + name: value}
    return flat


def cells(sweep: Sweep) -> Iterator[tuple[str, dict[str, Any]]]:
    """(label, settings) of every cell: variants x draws x grid."""
    variants = {name: flatten(settings) for name, settings in sweep.variants.items()} or {"": {}}
    grid = flatten(sweep.grid)
    for name, values in grid.items():
        if not isinstance(values, list) or not values:
            raise UserError(
                f"grid: {name}={values!r} is no list of values, as in {name} = [{values!r}]"
            )
    for (variant, settings), drawn in itertools.product(variants.items(), draws(sweep.random)):
        for combination in itertools.product(*grid.values()):
            chosen = drawn | dict(zip(grid, combination, strict=True))
            if twice := sorted(set(settings) & set(chosen) | set(drawn) & set(grid)):
                raise UserError(
                    f"{twice[0]} is set by more than one of variants, grid and random; leave one"
                )
            shown = [f"{name}={json.dumps(value)}" for name, value in chosen.items()]
            yield (
                ", ".join([variant, *shown] if variant else shown) or "as it is",
                settings | chosen,
            )


def draws(settings: Draws | None) -> list[dict[str, Any]]:
    """The random part of each cell; number i of a name depends on the seed, the name and i alone."""
    if settings is None:
        return [{}]
    sources = flatten(settings.settings).items()
    return [
        {
            name: draw(name, source, random.Random(f"{settings.seed}:{name}:{number}"))
            for name, source in sources
        }
        for number in range(settings.num)
    ]


def draw(name: str, source: Any, dice: random.Random) -> Any:
    """One value; numbers in three significant digits, so that they can be read and typed."""
    kind, values = next(iter(source.items())) if isinstance(source, dict) else ("choice", source)
    whole = isinstance(source, dict) and len(source) != 1
    numbers = (
        isinstance(values, list)
        and len(values) == 2
        and all(isinstance(v, int | float) for v in values)
    )
    if whole or kind not in DRAWS or not isinstance(values, list) or not values:
        raise UserError(
            f"random: {name}={source!r} is neither a list nor one of {', '.join(DRAWS)} with a list"
        )
    if kind == "choice":
        return dice.choice(values)
    if not numbers or values[0] > values[1] or (kind == "log_uniform" and values[0] <= 0):
        raise UserError(
            f"random: {name}={source!r}: {kind} takes [low, high]{', above 0' * (kind == 'log_uniform')}"
        )
    low, high = values
    value = (
        dice.uniform(low, high)
        if kind == "uniform"
        else math.exp(dice.uniform(math.log(low), math.log(high)))
    )
    return min(max(float(f"{value:.3g}"), low), high)


def plan_runs(sweep: Sweep, *, folder: Path, words: Sequence[str] = ()) -> list[Run]:
    """Every run, seed by seed, its settings checked and its data found; `words` are settings of all runs beside `fixed`.

    A run's folder bears a hash of what changes the weights: a sweep that is edited keeps the runs it still has.
    """
    preset = sweep.preset or (None if sweep.data else "digits")
    head = [
        *(["--preset", preset] if preset else []),
        *(["--data", sweep.data] if sweep.data else []),
    ]
    shared = [f"data.shards={json.dumps(sweep.data)}"] if sweep.data else []
    base = [
        *to_words({"train.kimg": sweep.kimg} if sweep.kimg else {}),
        *to_words(flatten(sweep.fixed)),
        *words,
    ]
    runs: dict[Path, Run] = {}
    sizes: dict[str, int] = {}
    for seed, (label, settings) in itertools.product(sweep.seeds, list(cells(sweep))):
        own = [*base, *to_words(settings), f"train.seed={seed}"]
        try:
            config = load_config(preset, [*own, *shared])
        except UserError as error:
            raise UserError(f"cell {label}: {error}") from None
        if (key := config.data.model_dump_json()) not in sizes:
            sizes[key] = open_dataset(config.data)[1].num_samples
        place = folder / folder_name(label, seed, config)
        if place in runs:
            raise UserError(f"two runs are the same: {label} with seed {seed}; take one away")
        entry = Entry(label, settings, seed, place)
        runs[place] = Run(
            entry, (*head, "--run-dir", str(place), *own), total_images(config.train, sizes[key])
        )
    return list(runs.values())


def to_words(settings: dict[str, Any]) -> list[str]:
    """Settings as they are typed; JSON of such values is TOML."""
    return [f"{name}={json.dumps(value)}" for name, value in settings.items()]


def folder_name(label: str, seed: int, config: Config) -> str:
    """What a person recognises, and what keeps it apart."""
    shown = re.sub(r"[^A-Za-z0-9.=_]+", "-", re.sub(r"\b\w+\.(\w+=)", r"\1", label)).strip("-")[:60]
    return f"{shown}-seed{seed}-{identity_hash(config, '')}"


# ------------------------------------------------------------------------------------------------ running


def run_all(runs: Sequence[Run], *, group: str, launcher: str, interrupt: Interrupt) -> None:
    """One after the other; what is finished is skipped, what fails is said and passed by. A signal ends it, saved."""
    for number, run in enumerate(runs):
        where = f"run {number + 1} of {len(runs)}: {run.entry.label}, seed {run.entry.seed}"
        if interrupt.raised:
            return
        if run.is_finished:
            say(f"{where}: finished already")
            continue
        say(where, style="bold")
        outcome = run_one(run, group=group, launcher=launcher, interrupt=interrupt)
        if outcome not in FINISHED_STATES and not interrupt.raised:
            say(f"{where}: {outcome}; the others go on", style="bold red")


def run_one(run: Run, *, group: str, launcher: str, interrupt: Interrupt) -> str:
    """Start the door as anyone would, hand on a signal, wait; the state in its status.json, or `failed` without one."""
    # As behind `accelerate launch`, so that the run is saved and ends should this process die.
    environment = {"ACCELERATE_MIXED_PRECISION": "no", **os.environ, "WANDB_RUN_GROUP": group}
    before = read_status(run.entry.folder)
    process = subprocess.Popen(
        [*(shlex.split(launcher) or [sys.executable]), str(DOOR), *run.words],
        env=environment,
        start_new_session=True,
    )
    told = False
    while process.poll() is None:
        if interrupt.raised and not told:
            os.killpg(process.pid, signal.SIGTERM)  # a launcher and its workers alike
            told = True
        try:
            process.wait(POLL_SEC)
        except subprocess.TimeoutExpired:
            continue
    after = read_status(run.entry.folder)
    if after.state in ("running", "not started", "unknown") or (
        after == before and process.returncode
    ):
        return f"failed with exit code {process.returncode}"
    return after.state
