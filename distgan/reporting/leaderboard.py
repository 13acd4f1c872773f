"""Many runs in order of merit: mean and spread over seeds, as a table, JSON and Markdown, and a sheet of their last samples."""

import json
import math
import statistics
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from distgan.evaluation.metrics import METRICS, PUBLISHED_NAMES
from distgan.run.files import read_rows, read_status
from distgan.run.folder import write_atomically

SHOWN = ("quality/frechet", "quality/coverage", "diversity/modes")  # beside the metric that ranks
TILE, CAPTION_LINES, LINE, MARGIN = 264, 4, 15, 8  # pixels


@dataclass(frozen=True)
class Entry:
    """One run: the cell it belongs to, its seed, its run folder."""

    label: str
    settings: dict[str, Any]
    seed: int
    folder: Path


@dataclass(frozen=True)
class Cell:
    """All runs of one cell, with means and spreads (sample standard deviations, of two runs or more) of what they measured."""

    label: str
    settings: dict[str, Any]
    runs: list[dict[str, Any]]
    mean: dict[str, float]
    spread: dict[str, float]

    @property
    def verdicts(self) -> str:
        """How the runs ended, the most frequent first: their verdicts, or their states where they did not finish."""
        ends = Counter(
            run["verdict"] if run["state"] == "done" else run["state"] for run in self.runs
        )
        return ", ".join(
            name if count == len(self.runs) else f"{count} {name}"
            for name, count in ends.most_common()
        )


def read_run(entry: Entry) -> dict[str, Any]:
    """What one run has come to: its status, speed, and the values of its last evaluation."""
    rows, evaluations = (
        read_rows(entry.folder / "metrics.jsonl"),
        read_rows(entry.folder / "evaluations.jsonl"),
    )
    last, evaluation = rows[-1] if rows else {}, evaluations[-1] if evaluations else {}
    seconds, status = last.get("time/train_sec", 0.0), read_status(entry.folder)
    values = dict(evaluation.get("values", {}))
    if seconds:
        values |= {
            "time/train_sec": seconds,
            "time/images_per_sec": last["progress/images"] / seconds,
        }
    told = {
        "state": status.state,
        "verdict": status.verdict.partition(" (")[0],
        "images_seen": status.images_seen,
    }
    return (
        {"seed": entry.seed, "folder": str(entry.folder)}
        | told
        | {"values": values, "protocol": evaluation.get("protocol")}
    )


def gather_cells(entries: Sequence[Entry], *, rank_by: str) -> list[Cell]:
    """The cells, best first; those without the metric come last."""
    grouped: dict[str, list[Entry]] = {}
    for entry in entries:
        grouped.setdefault(entry.label, []).append(entry)
    found = []
    for label, members in grouped.items():
        runs = [read_run(entry) for entry in members]
        measured: dict[str, list[float]] = {}
        for name, value in ((name, value) for run in runs for name, value in run["values"].items()):
            if math.isfinite(value):
                measured.setdefault(name, []).append(value)
        mean = {name: statistics.fmean(values) for name, values in measured.items()}
        spread = {
            name: statistics.stdev(values) for name, values in measured.items() if len(values) > 1
        }
        found.append(Cell(label, members[0].settings, runs, mean, spread))
    sign = -1 if METRICS[rank_by].better == "higher" else 1
    return sorted(
        found, key=lambda cell: sign * cell.mean.get(metric_of(cell, rank_by), math.inf * sign)
    )


def metric_of(cell: Cell, name: str) -> str:
    """The name under which a cell has a metric: in Inception's features it bears its published one."""
    published = PUBLISHED_NAMES.get(name, name)
    return published if published in cell.mean else name


def table(cells: Sequence[Cell], *, rank_by: str) -> tuple[list[str], list[list[str]]]:
    """(head, rows) for a person."""
    names = [
        name
        for name in dict.fromkeys((rank_by, *SHOWN))
        if any(metric_of(cell, name) in cell.mean for cell in cells)
    ]
    several = any(len(cell.runs) > 1 for cell in cells)
    head = ["cell", *(["runs"] if several else []), *names, "verdict", "images/s", "time (s)"]
    rows = []
    for cell in cells:
        scored = sum(bool(run["protocol"]) for run in cell.runs)
        figures = [shown(cell, metric_of(cell, name)) for name in names]
        speed = [shown(cell, name) for name in ("time/images_per_sec", "time/train_sec")]
        rows.append(
            [
                cell.label,
                *([f"{scored}/{len(cell.runs)}"] if several else []),
                *figures,
                cell.verdicts,
                *speed,
            ]
        )
    return head, rows


def shown(cell: Cell, name: str) -> str:
    """Mean and spread of one metric in three significant digits; a dash for none."""
    if name not in cell.mean:
        return "–"
    text = three_digits(cell.mean[name])
    return f"{text} ± {three_digits(cell.spread[name])}" if name in cell.spread else text


def three_digits(value: float) -> str:
    """A number to be read; large ones in full."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def unlike(cells: Sequence[Cell]) -> str:
    """A sentence where the runs were not scored alike, and so cannot be compared; else nothing."""
    varying = ("seed",)  # of the latents: the runs' own
    protocols = [run["protocol"] for cell in cells for run in cell.runs if run["protocol"]]
    differing = {
        name
        for each in protocols
        for name in each
        if name not in varying and each[name] != protocols[0].get(name)
    }
    return (
        f"not comparable: the evaluations differ in {', '.join(sorted(differing))}"
        if differing
        else ""
    )


def write_leaderboard(cells: Sequence[Cell], folder: Path, *, rank_by: str) -> list[Path]:
    """Write leaderboard.json, leaderboard.md and, where there are samples, samples.png; returns the files. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / "leaderboard.json", folder / "leaderboard.md"]
    plain = {"rank_by": rank_by, "note": unlike(cells), "cells": [vars(cell) for cell in cells]}
    write_atomically(files[0], json.dumps(plain, indent=1) + "\n")
    head, rows = table(cells, rank_by=rank_by)
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    text = "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
    )
    seeds = max((len(cell.runs) for cell in cells), default=1)
    words = f"Sorted by {rank_by} of the last evaluation" + (
        ", mean ± standard deviation over seeds." if seeds > 1 else "."
    )
    write_atomically(files[1], "\n\n".join(filter(None, [text, words, unlike(cells)])) + "\n")
    sheet = contact_sheet(cells, folder / "samples.png", rank_by=rank_by)
    return [*files, *([sheet] if sheet else [])]


def contact_sheet(cells: Sequence[Cell], path: Path, *, rank_by: str) -> Path | None:
    """Write the last sample grid of each cell's first run that has one, in the order of the leaderboard, with its caption."""
    tiles = []
    for place, cell in enumerate(cells, start=1):
        grids = [
            sorted(Path(run["folder"], "samples").glob("[0-9]*.png"))[-1:] for run in cell.runs
        ]
        if newest := next((grid[0] for grid in grids if grid), None):
            figure = f"{rank_by.rpartition('/')[2]} {shown(cell, metric_of(cell, rank_by))}; {cell.verdicts}"
            tiles.append(
                (
                    newest,
                    [f"{place}. {figure}", *textwrap.wrap(cell.label, TILE // 7)][:CAPTION_LINES],
                )
            )
    if not tiles:
        return None
    columns = math.ceil(math.sqrt(len(tiles)))
    wide, high = TILE + MARGIN, TILE + CAPTION_LINES * LINE + MARGIN
    sheet = Image.new(
        "RGB", (columns * wide + MARGIN, -(-len(tiles) // columns) * high + MARGIN), "white"
    )
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=12)
    for number, (newest, caption) in enumerate(tiles):
        left, top = MARGIN + number % columns * wide, MARGIN + number // columns * high
        with Image.open(newest) as grid:
            sheet.paste(
                grid.convert("RGB").resize((TILE, TILE), Image.Resampling.LANCZOS), (left, top)
            )
        draw.multiline_text(
            (left, top + TILE + 2), "\n".join(caption), fill="black", font=font, spacing=2
        )
    temporary = path.with_name(f".{path.name}.tmp")
    sheet.save(temporary, format="PNG")
    temporary.replace(path)
    return path
