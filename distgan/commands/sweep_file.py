"""The file of `distgan sweep`, and the runs it describes.

A cell is one combination of variant, random draw and grid values. It is trained with each seed.
"""

import difflib
import itertools
import math
import random
import re
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from distgan.config.flat import flatten, identity_hash, to_overrides
from distgan.config.metrics import EVALUATION_METRICS, RANKING_METRICS
from distgan.config.schema import Config, total_images
from distgan.config.section import Section, setting
from distgan.data import open_dataset
from distgan.errors import UserError
from distgan.networks.generator_file import dataset_of
from distgan.reporting.leaderboard import Entry
from distgan.run.files import read_status
from distgan.run.folder import FINISHED_STATES
from distgan.run.settings import choose_settings, is_run_of
from distgan.text import first_line

TOP_LEVEL = {  # settings that have a name of their own at the top of the file
    "train.seed": "seeds",
    "train.kimg": "kimg",
    "train.epochs": "kimg",
    "data.shards": "data",
}


def log_uniform(generator: random.Random, low: float, high: float) -> float:
    """Draw a number whose logarithm is uniform."""
    return math.exp(generator.uniform(math.log(low), math.log(high)))


RANGES = {"uniform": random.Random.uniform, "log_uniform": log_uniform}
DISTRIBUTIONS = (*RANGES, "choice")
Planned = tuple[str, int, dict[str, Any], list[str]]  # label, seed, settings of the cell, overrides


class Draws(Section):
    """The table [random]: cells whose settings are drawn at random."""

    num: int = setting(..., "Number of cells.", ge=1, le=10_000)
    seed: int = setting(0, "Seed of the draws. More draws keep the first ones.", ge=0)
    settings: dict[str, Any] = setting(
        ...,
        "Values of each setting: a list, {uniform = [low, high]} or {log_uniform = [low, high]}.",
        min_length=1,
    )


class Sweep(Section):
    """The contents of a sweep's file."""

    preset: str | None = setting(
        None, "Preset of all runs. If not set: digits without data, else what suits the data."
    )
    data: str | None = setting(None, "Packed shards of all runs.")
    kimg: float | None = setting(None, "Length of all runs. If not set: the preset's.", gt=0)
    seeds: tuple[int, ...] = setting((0,), "Seeds with which each cell is trained.", min_length=1)
    rank_by: str = setting("quality/frechet", "Metric that the leaderboard is sorted by.")
    launcher: str = setting(
        "", "Command that starts distgan/train.py, such as accelerate launch. If empty: python."
    )
    fixed: dict[str, Any] = setting({}, "Settings of all runs.")
    variants: dict[str, dict[str, Any]] = setting({}, "Named cells with settings of their own.")
    grid: dict[str, Any] = setting({}, "Lists of values; each combination is a cell.")
    random: Draws | None = setting(None, "Settings drawn at random, one cell per draw.")


@dataclass(frozen=True)
class Run:
    """A cell with one of the seeds."""

    entry: Entry
    arguments: tuple[str, ...]  # of distgan/train.py
    total_images: int

    @property
    def is_finished(self) -> bool:
        """Return whether the status says that nothing is left to train."""
        status = read_status(self.entry.folder)
        too_short = status.state == "done" and status.images_seen < self.total_images
        return status.state in FINISHED_STATES and not too_short

    @property
    def images_seen(self) -> int:
        """Return the number of images that the run has been trained on."""
        return read_status(self.entry.folder).images_seen

    @property
    def images_left(self) -> int:
        """Return the number of images that are still to be trained on."""
        return 0 if self.is_finished else max(0, self.total_images - self.images_seen)


def read_sweep(path: Path) -> Sweep:
    """Return the contents of a sweep's file; raises UserError."""
    try:
        sweep = Sweep.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise UserError(f"cannot read the sweep {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"cannot read the sweep {path}: {error}") from None
    except ValidationError as error:
        mistakes = [explain(mistake) for mistake in error.errors()]
        raise UserError(
            f"{path}: {'; '.join(mistakes)}; a sweep has {', '.join(Sweep.model_fields)}"
        ) from None
    except (ValueError, RecursionError) as error:  # also numbers of thousands of digits
        raise UserError(f"the sweep {path} is not valid TOML: {first_line(error)}") from None
    check_sweep(sweep, path)
    return sweep


def explain(mistake: ErrorDetails) -> str:
    """Return what is wrong, with the most similar name for an unknown one."""
    name = ".".join(map(str, mistake["loc"]))
    if mistake["type"] != "extra_forbidden":
        return f"{name}: {mistake['msg']}"
    similar = difflib.get_close_matches(name, Sweep.model_fields, n=1)
    return f"unknown name {name!r}{f' (did you mean {similar[0]}?)' if similar else ''}"


def check_sweep(sweep: Sweep, path: Path) -> None:
    """Raise UserError for a metric that cannot rank, or a setting that belongs at the top."""
    if sweep.rank_by not in RANKING_METRICS:
        is_known = sweep.rank_by in EVALUATION_METRICS
        reason = "cannot rank: neither way is better" if is_known else "is not a metric"
        raise UserError(
            f"{path}: rank_by={sweep.rank_by!r} {reason}; choose from {', '.join(RANKING_METRICS)}"
        )
    drawn = sweep.random.settings if sweep.random else {}
    for table in (sweep.fixed, sweep.grid, drawn, *sweep.variants.values()):
        for name in sorted(TOP_LEVEL.keys() & flatten(table, is_value=is_distribution)):
            raise UserError(
                f"{path}: set {name} for all runs, with {TOP_LEVEL[name]} = ... at the top"
            )


def cells(sweep: Sweep) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the label and the flat settings of each cell."""
    variants = {name: flatten(settings) for name, settings in sweep.variants.items()} or {"": {}}
    grid = flatten(sweep.grid)
    for name, values in grid.items():
        if not isinstance(values, list) or not values:
            raise UserError(
                f"grid: {name}={values!r} is not a list of values, as in {name} = [{values!r}]"
            )
    for (variant, settings), drawn in itertools.product(variants.items(), draws(sweep.random)):
        if twice := sorted(drawn.keys() & grid | settings.keys() & (drawn | grid)):
            raise UserError(
                f"{twice[0]} is set by more than one of variants, grid and random; keep one"
            )
        for combination in itertools.product(*grid.values()):
            chosen = drawn | dict(zip(grid, combination, strict=True))
            names = [*([variant] if variant else []), *to_overrides(chosen)]
            yield ", ".join(names) or "as it is", settings | chosen


def draws(settings: Draws | None) -> list[dict[str, Any]]:
    """Return the random settings of each cell.

    Draw i of a setting depends on nothing but the seed, its name and i.
    """
    if settings is None:
        return [{}]
    sources = {
        name: distribution(name, source)
        for name, source in flatten(settings.settings, is_value=is_distribution).items()
    }
    return [
        {
            name: draw(kind, values, random.Random(f"{settings.seed}:{name}:{number}"))
            for name, (kind, values) in sources.items()
        }
        for number in range(settings.num)
    ]


def is_distribution(table: dict[str, Any]) -> bool:
    """Return whether a table is {uniform = [low, high]} or the like, and not a section."""
    return any(kind in table for kind in DISTRIBUTIONS)


def distribution(name: str, source: Any) -> tuple[str, list[Any]]:
    """Return the kind of a distribution and its values or limits; raises UserError."""
    kind, values = "choice", source
    if isinstance(source, dict) and len(source) == 1:
        [(kind, values)] = source.items()
    if kind not in DISTRIBUTIONS or not isinstance(values, list) or not values:
        raise UserError(
            f"random: {name}={source!r} is neither a list nor one of "
            f"{', '.join(DISTRIBUTIONS)} with a list"
        )
    if kind != "choice" and not is_range(values, positive=kind == "log_uniform"):
        above = ", above 0" if kind == "log_uniform" else ""
        raise UserError(f"random: {name}={source!r}: {kind} takes [low, high]{above}")
    return kind, values


def is_range(values: list[Any], *, positive: bool) -> bool:
    """Return whether a list is [low, high]."""
    if len(values) != 2 or not all(isinstance(value, int | float) for value in values):
        return False
    low, high = values
    return low <= high and (low > 0 or not positive)


def draw(kind: str, values: list[Any], generator: random.Random) -> Any:
    """Draw a value. Numbers have three significant digits, so that they can be read and typed."""
    if kind == "choice":
        return generator.choice(values)
    low, high = values
    value = RANGES[kind](generator, low, high)
    return min(max(float(f"{value:.3g}"), low), high)


def plan_runs(sweep: Sweep, *, folder: Path, overrides: Sequence[str] = ()) -> list[Run]:
    """Return all runs, seed by seed, after checking their settings and finding their data.

    `overrides` change all runs, but a cell's own settings come after them. The name of a run's
    folder contains a hash of what changes the weights, so an edited sweep keeps the runs that it
    still has.
    """
    length = {"train.kimg": sweep.kimg} if sweep.kimg else {}
    shared = [*to_overrides(length | flatten(sweep.fixed)), *overrides]
    planned = [
        (label, seed, settings, [*shared, *to_overrides(settings), f"train.seed={seed}"])
        for seed, (label, settings) in itertools.product(sweep.seeds, list(cells(sweep)))
    ]
    preset = sweep.preset or (None if sweep.data else "digits")
    if preset is None and has_classic_runs(sweep, planned, folder):
        preset = "classic"
    options = {"--preset": preset, "--data": sweep.data}
    head = [part for option, value in options.items() if value for part in (option, value)]
    runs: dict[Path, Run] = {}
    num_samples: dict[str, int] = {}  # by the settings of the data, as is the next
    fingerprints: dict[str, str] = {}
    for label, seed, settings, own in planned:
        config = settings_of(label, preset, own, sweep.data)
        if (key := config.data.model_dump_json()) not in num_samples:
            index, reader = open_dataset(config.data)
            num_samples[key], fingerprints[key] = reader.num_samples, index.fingerprint
        run_dir = find_folder(folder, label, seed, config)
        if run_dir in runs:
            advice = "lower random.num" if sweep.random else "remove one"
            raise UserError(f"two runs are the same: {label} with seed {seed}; {advice}")
        if dataset_of(run_dir) not in (None, fingerprints[key]):
            raise UserError(
                f"{run_dir} was trained on other images than those of data now; "
                "give another --folder"
            )
        runs[run_dir] = Run(
            Entry(label, settings, seed, run_dir),
            (*head, "--run-dir", str(run_dir), *own),
            total_images(config.train, num_samples[key]),
        )
    return list(runs.values())


def settings_of(label: str, preset: str | None, own: Sequence[str], data: str | None) -> Config:
    """Return the settings of a cell; an error names the cell."""
    try:
        return choose_settings(preset, own, data=data or None).config
    except UserError as error:
        raise UserError(f"cell {label}: {error}") from None


def has_classic_runs(sweep: Sweep, planned: Sequence[Planned], folder: Path) -> bool:
    """Return whether an earlier version, which trained a classic DCGAN, has begun this sweep."""
    for label, seed, _, own in planned:
        try:
            classic = settings_of(label, "classic", own, sweep.data)
        except UserError:  # this cell fits the recipe alone
            continue
        if is_run_of(classic, find_folder(folder, label, seed, classic)):
            return True
    return False


def find_folder(folder: Path, label: str, seed: int, config: Config) -> Path:
    """Return a run's folder: a readable label, the seed and the hash of its settings.

    If there is one with that hash and another label, as of an earlier version, return that.
    """
    short = re.sub(r"\b\w+\.(\w+=)", r"\1", label)  # without the sections
    lists = re.sub(r"\[(.*?)\]", lambda match: match[1].replace(", ", "_"), short)
    readable = re.sub(r"[^A-Za-z0-9.=_]+", "-", lists).strip("-")[:60]
    identity = f"seed{seed}-{identity_hash(config, '')}"
    return next(folder.glob(f"*-{identity}"), folder / f"{readable}-{identity}")
