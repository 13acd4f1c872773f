"""Readers of the files in a run folder.

A file may be incomplete, because a process is writing it or was killed while it did. The readers
skip damaged parts and call `warn` with one line for each damaged file.
"""

import json
import os
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from distgan.errors import UserError
from distgan.text import is_number
from shards.files import read_regular

Row = TypeVar("Row")
Model = TypeVar("Model", bound=BaseModel)
Warn = Callable[[str], None]


class Status(BaseModel):
    """Contents of status.json, the contract for scripts."""

    model_config = ConfigDict(frozen=True)
    state: str = "unknown"  # running, done, preempted, collapsed or failed
    reason: str = ""
    verdict: str = ""
    images_seen: int = 0
    seconds: float | None = None  # of training, over all starts and with pauses; None: not ended
    time: str = ""


class World(BaseModel):
    """The processes of a run."""

    processes: int = 1
    nodes: int = 1
    device: str = ""


class Provenance(BaseModel):
    """Contents of provenance.json."""

    command: list[str] = []
    git_commit: str | None = ""
    versions: dict[str, str | None] = {}
    world: World = World()
    slurm: dict[str, str] = {}  # variables of its SLURM job
    hardware: str = ""
    initial_weights: dict[str, str] = {}  # file and sha256, of a run that started from another


class EvaluationRow(BaseModel):
    """A line of evaluations.jsonl."""

    model_config = ConfigDict(extra="allow")
    images_seen: int = Field(alias="progress/images", ge=0)
    values: dict[str, float]
    reals: dict[str, float] = {}
    protocol: dict[str, Any] = {}


def comparable_part(protocol: dict[str, Any]) -> dict[str, Any]:
    """Return the entries of a protocol that must be equal if scores are to be compared."""
    return {name: value for name, value in protocol.items() if name not in ("seed", "weights")}


def first_alike(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the first of these lines of evaluations.jsonl that was measured as the last one."""
    last = comparable_part(rows[-1]["protocol"])
    return next(row for row in rows if comparable_part(row.get("protocol", {})) == last)


class Event(BaseModel):
    """A line of events.jsonl."""

    kind: str = ""
    images_seen: int = Field(ge=0)
    what: str
    verdict: str = ""


def is_run(folder: Path) -> bool:
    """Return whether training wrote this folder."""
    return (folder / "config.toml").is_file() and (folder / "status.json").is_file()


def run_of(path: Path) -> Path | None:
    """Return the run folder that is this path, or that holds this checkpoint or generator."""
    return next(filter(is_run, (path, *path.resolve().parents[:2])), None)


def find_runs(folder: Path) -> list[Path]:
    """Return the run folders one or two levels below a folder, sorted by path."""
    found = [path.parent for level in ("*", "*/*") for path in folder.glob(f"{level}/status.json")]
    return sorted(filter(is_run, found))


class RunData(NamedTuple):
    """What a run was trained on. Shards None means the digits, classes None means all of them."""

    shards: str | None
    classes: tuple[str, ...] | None = None


def data_of(inputs: Sequence[Path]) -> RunData:
    """Return the data on which the first run among the inputs was trained.

    An input may be a run folder, or a checkpoint or generator in one. Raises UserError, also if
    runs were trained on different classes.
    """
    found = []
    for path in inputs:
        if not path.exists():
            raise UserError(f"no such file or folder: {path}")
        if (folder := run_of(path)) is not None:
            data = read_toml(folder / "config.toml").get("data")
            if data is None:  # for the digits there are other settings in this table
                raise UserError(
                    f"{folder / 'config.toml'} is damaged; name the real images with --data"
                )
            shards, classes = data.get("shards"), data.get("classes")
            found.append(
                RunData(
                    None if shards is None else str(shards),
                    None if classes is None else tuple(map(str, classes)),
                )
            )
    if not found:
        raise UserError("no input is a run that tells its data; name the real images with --data")
    if len({data.classes for data in found}) > 1:
        raise UserError(
            "these runs were trained on different classes, and are compared with the same images; "
            "name these with --data"
        )
    return found[0]


def ignore(_: str) -> None:
    """Ignore a warning."""


def read_status(folder: Path) -> Status:
    """Return the contents of status.json; the state is `not started` if there is none."""
    path = folder / "status.json"
    return read_json(path, Status) if path.exists() else Status(state="not started")


def training_seconds(status: Status, rows: list[dict[str, Any]]) -> float:
    """Return the time of training until its end, or until the last row of metrics; 0 if unknown."""
    if status.seconds is not None:
        return status.seconds
    seconds = rows[-1].get("time/train_sec") if rows else None
    return float(seconds) if is_number(seconds) else 0.0


def read_json(path: Path, model: type[Model], *, warn: Warn = ignore) -> Model:
    """Return the contents of a JSON file, or the model's defaults if it is missing or damaged."""
    try:
        return model.model_validate_json(read_regular(path))
    except FileNotFoundError:
        return model()
    except (OSError, ValueError, RecursionError):
        warn(f"{path.name} is damaged")
        return model()


def read_toml(path: Path, *, warn: Warn = ignore) -> dict[str, Any]:
    """Return the tables of a TOML file, or {} if it is missing or damaged."""
    try:
        return tomllib.loads(read_regular(path).decode())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError):
        warn(f"{path.name} is damaged")
        return {}


def read_rows(path: Path, *, warn: Warn = ignore) -> list[dict[str, Any]]:
    """Return the JSON objects of a .jsonl file, one for each line."""
    return read_lines(path, parse_object, warn=warn)


def read_models(path: Path, model: type[Model], *, warn: Warn = ignore) -> list[Model]:
    """Return the lines of a .jsonl file as models; skip lines that do not validate."""
    return read_lines(path, model.model_validate_json, warn=warn)


def read_lines(path: Path, parse: Callable[[str], Row], *, warn: Warn = ignore) -> list[Row]:
    """Return the parsed lines of a file; a line is damaged if `parse` raises ValueError.

    Raises OSError if the file exists but cannot be read.
    """
    try:
        lines = read_regular(path).decode(errors="replace").split("\n")
    except FileNotFoundError:
        return []
    rows, num_damaged = [], 0
    for line in filter(None, lines):
        try:
            rows.append(parse(line))
        except (ValueError, RecursionError):
            num_damaged += 1
    if num_damaged:
        warn(f"{path.name}: skipped {num_damaged} damaged of {len(rows) + num_damaged} lines")
    return rows


def parse_object(line: str) -> dict[str, Any]:
    """Return the JSON object in a line; raises ValueError."""
    found = json.loads(line)
    if not isinstance(found, dict):
        raise ValueError("not an object")
    return found


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Append an object to a .jsonl file. End the last line first if a killed process did not."""
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(json.dumps(row).encode() + b"\n")
