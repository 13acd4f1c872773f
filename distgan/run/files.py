"""The files of a run folder: how they are read, also if a process was killed while it wrote."""

import json
import os
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

NO_STATUS = {"state": "not started", "reason": "", "verdict": "", "images_seen": 0, "time": ""}


def is_run(folder: Path) -> bool:
    """Return whether training wrote this folder."""
    return (folder / "config.toml").is_file() and (folder / "status.json").is_file()


def find_runs(folder: Path) -> list[Path]:
    """Return the run folders one or two levels below a folder, sorted by path."""
    found = [path.parent for level in ("*", "*/*") for path in folder.glob(f"{level}/status.json")]
    return sorted(filter(is_run, found))


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; {} if there is no such file; raises ValueError and OSError."""
    if not path.exists():
        return {}
    found = json.loads(path.read_text())
    if not isinstance(found, dict):
        raise ValueError("not a JSON object")
    return found


def read_toml(path: Path) -> dict[str, Any]:
    """Return the tables of a TOML file; {} if there is no such file; raises ValueError and OSError."""
    return tomllib.loads(path.read_text()) if path.exists() else {}


def read_status(folder: Path) -> dict[str, Any]:
    """Return NO_STATUS updated from status.json; its values keep the types of NO_STATUS."""
    try:
        found = read_json(folder / "status.json")
    except (OSError, ValueError):
        return dict(NO_STATUS)
    return {
        name: found[name] if isinstance(found.get(name), type(default)) else default
        for name, default in NO_STATUS.items()
    }


def read_rows(path: Path, *, warn: Callable[[str], None] | None = None) -> list[dict[str, Any]]:
    """Return the objects of a .jsonl file; damaged lines are skipped and reported to `warn`."""
    if not path.exists():
        return []
    lines = path.read_text(errors="replace").split("\n")
    rows = [parse_object(line) for line in lines if line]
    if warn and (num_damaged := rows.count(None)):
        warn(f"{path.name}: skipped {num_damaged} damaged of {len(rows)} lines")
    return [row for row in rows if row is not None]


def parse_object(line: str) -> dict[str, Any] | None:
    """Return the JSON object in a line, None if there is none."""
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Append an object to a .jsonl file; ends an incomplete last line, left by a killed process."""
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(json.dumps(row).encode() + b"\n")
