"""Ranking of many runs: a table, JSON and Markdown files, and a sheet with their last samples."""

import math
import statistics
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont, ImageOps
from pydantic import BaseModel

from distgan.config.metrics import EVALUATION_METRICS, PUBLISHED_NAMES, RANKING_METRICS
from distgan.images import is_whole_image
from distgan.run.files import (
    comparable_part,
    read_json,
    read_models,
    read_rows,
    read_status,
    training_seconds,
)
from distgan.text import NO_VALUE, format_number, is_number, markdown_cell
from shards.files import write_atomic

JSON_FILE, MARKDOWN_FILE, SAMPLES_FILE = "leaderboard.json", "leaderboard.md", "samples.png"
COLUMNS = ("quality/frechet", "quality/coverage", "diversity/modes")  # besides the ranking metric
TILE, CAPTION_LINES, LINE, MARGIN = 264, 4, 15, 8  # pixels, except for the number of lines


class Leaderboard(BaseModel):
    """Contents of leaderboard.json."""

    rank_by: str = ""
    note: str = ""  # why the runs cannot be compared
    cells: list[dict[str, Any]] = []


class Scores(BaseModel):
    """What the leaderboard needs of a line of evaluations.jsonl."""

    values: dict[str, float] = {}
    protocol: dict[str, Any] | None = None


@dataclass(frozen=True)
class Entry:
    """One run: its cell, its seed, its run folder."""

    label: str
    settings: dict[str, Any]
    seed: int
    folder: Path


@dataclass(frozen=True)
class Cell:
    """The runs of one cell, with mean and sample standard deviation of each metric.

    `mean` and `spread` are keyed by metric. A metric of a single run has no spread.
    """

    label: str
    settings: dict[str, Any]
    runs: list[dict[str, Any]]
    mean: dict[str, float]
    spread: dict[str, float]

    @property
    def outcomes(self) -> str:
        """Return how the runs ended, most frequent first: verdicts, or states if not done."""
        ends = Counter(
            run["verdict"] if run["state"] == "done" else run["state"] for run in self.runs
        )
        if len(ends) == 1:
            return next(iter(ends))
        return ", ".join(f"{count} {name}" for name, count in ends.most_common())


# --- reading -------------------------------------------------------------------------------------


def read_run(entry: Entry) -> dict[str, Any]:
    """Return status, speed and the last evaluation of a run; damaged lines are left out."""
    rows = read_rows(entry.folder / "metrics.jsonl")
    evaluations = read_models(entry.folder / "evaluations.jsonl", Scores)
    evaluation = evaluations[-1] if evaluations else Scores()
    values = dict(evaluation.values)
    status = read_status(entry.folder)
    images, seconds = rows[-1].get("progress/images") if rows else None, None
    if is_number(images):
        seconds = training_seconds(status, rows)
    if is_number(images) and seconds:
        values["time/train_sec"] = seconds
        values["time/images_per_sec"] = images / seconds
    return {
        "seed": entry.seed,
        "folder": str(entry.folder),
        "state": status.state,
        "verdict": status.verdict.partition(" (")[0],
        "images_seen": status.images_seen,
        "values": values,
        "protocol": evaluation.protocol,
    }


def gather_cells(entries: Sequence[Entry], *, rank_by: str) -> list[Cell]:
    """Return the cells, best first. Cells without the ranking metric come last."""
    grouped: dict[str, list[Entry]] = {}
    for entry in entries:
        grouped.setdefault(entry.label, []).append(entry)
    cells = [make_cell(members) for members in grouped.values()]
    assert rank_by in RANKING_METRICS, f"{rank_by} cannot rank"
    sign = -1 if EVALUATION_METRICS[rank_by].better == "higher" else 1

    def rank(cell: Cell) -> float:
        value = cell.mean.get(published_name(cell, rank_by))
        return math.inf if value is None else sign * value

    return sorted(cells, key=rank)


def make_cell(members: Sequence[Entry]) -> Cell:
    """Return the cell of runs that differ in the seed only."""
    runs = [read_run(entry) for entry in members]
    measured: dict[str, list[float]] = {}
    for run in runs:
        for name, value in run["values"].items():
            if math.isfinite(value):
                measured.setdefault(name, []).append(value)
    mean = {name: statistics.fmean(values) for name, values in measured.items()}
    spread = {
        name: statistics.stdev(values) for name, values in measured.items() if len(values) > 1
    }
    return Cell(members[0].label, members[0].settings, runs, mean, spread)


def published_name(cell: Cell, metric: str) -> str:
    """Return a metric's name in a cell, which is the published one if features are Inception's."""
    published = PUBLISHED_NAMES.get(metric, metric)
    return published if published in cell.mean else metric


def difference_note(cells: Sequence[Cell]) -> str:
    """Return a sentence if the runs were evaluated differently, and so cannot be compared."""
    protocols = [
        comparable_part(run["protocol"]) for cell in cells for run in cell.runs if run["protocol"]
    ]
    differing = {
        name
        for protocol in protocols
        for name in protocol
        if protocol[name] != protocols[0].get(name)
    }
    if not differing:
        return ""
    return f"not comparable: the evaluations differ in {', '.join(sorted(differing))}"


def evaluated_runs(cells: Sequence[dict[str, Any]]) -> set[str]:
    """Return the folders' names of all runs that have been evaluated, of cells as plain values."""
    return {Path(run["folder"]).name for cell in cells for run in cell["runs"] if run["protocol"]}


def read_leaderboard(folder: Path) -> list[dict[str, Any]]:
    """Return the cells of the leaderboard in a folder as plain values; [] if it has none."""
    return read_json(folder / JSON_FILE, Leaderboard).cells


# --- writing -------------------------------------------------------------------------------------


def to_table(cells: Sequence[Cell], *, rank_by: str) -> tuple[list[str], list[list[str]]]:
    """Return the head and the rows of the leaderboard."""
    names = [
        name
        for name in dict.fromkeys((rank_by, *COLUMNS))
        if any(published_name(cell, name) in cell.mean for cell in cells)
    ]
    has_seeds = any(len(cell.runs) > 1 for cell in cells)
    head = ["cell", *(["runs"] if has_seeds else []), *names, "verdict", "images/s", "time (s)"]
    rows = []
    for cell in cells:
        num_evaluated = sum(bool(run["protocol"]) for run in cell.runs)
        count = [f"{num_evaluated}/{len(cell.runs)}"] if has_seeds else []
        values = [format_metric(cell, published_name(cell, name)) for name in names]
        speed = [format_metric(cell, name) for name in ("time/images_per_sec", "time/train_sec")]
        rows.append([cell.label, *count, *values, cell.outcomes, *speed])
    return head, rows


def format_metric(cell: Cell, name: str) -> str:
    """Return mean and spread of a metric in three significant digits, or a dash."""
    if name not in cell.mean:
        return NO_VALUE
    mean = format_number(cell.mean[name], digits=3)
    if name not in cell.spread:
        return mean
    return f"{mean} ± {format_number(cell.spread[name], digits=3)}"


def write_leaderboard(cells: Sequence[Cell], folder: Path, *, rank_by: str) -> list[Path]:
    """Write leaderboard.json, leaderboard.md and, if there are samples, samples.png.

    Returns the files; raises OSError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    note = difference_note(cells)
    board = Leaderboard(rank_by=rank_by, note=note, cells=[vars(cell) for cell in cells])
    write_atomic(folder / JSON_FILE, board.model_dump_json(indent=1) + "\n")
    write_atomic(folder / MARKDOWN_FILE, to_markdown(cells, note, rank_by=rank_by))
    sheet = draw_sheet(cells, folder / SAMPLES_FILE, rank_by=rank_by)
    return [folder / JSON_FILE, folder / MARKDOWN_FILE, *([sheet] if sheet else [])]


def to_markdown(cells: Sequence[Cell], note: str, *, rank_by: str) -> str:
    """Return the leaderboard as a Markdown table, with a sentence on how to read it."""
    head, rows = to_table(cells, rank_by=rank_by)
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    table = "\n".join("| " + " | ".join(map(markdown_cell, line)) + " |" for line in lines)
    has_seeds = any(len(cell.runs) > 1 for cell in cells)
    spread = ", mean ± standard deviation over seeds" if has_seeds else ""
    sentence = f"Sorted by {rank_by} of the last evaluation{spread}."
    if rank_by not in head and not any(published_name(c, rank_by) in head for c in cells):
        sentence = f"Not sorted: no run has measured {rank_by}."
    return "\n\n".join(filter(None, [table, sentence, markdown_cell(note)])) + "\n"


def draw_sheet(cells: Sequence[Cell], path: Path, *, rank_by: str) -> Path | None:
    """Write the last sample grid of each cell, best first, with captions; None if there is none."""
    tiles = []
    for place, cell in enumerate(cells, start=1):
        if grid := last_samples(cell):
            tiles.append((grid, caption(cell, place, rank_by=rank_by)))
    if not tiles:
        return None
    columns = math.ceil(math.sqrt(len(tiles)))
    width, height = TILE + MARGIN, TILE + CAPTION_LINES * LINE + MARGIN
    size = (columns * width + MARGIN, math.ceil(len(tiles) / columns) * height + MARGIN)
    sheet = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=12)
    for number, (grid, text) in enumerate(tiles):
        row, column = divmod(number, columns)
        left, top = MARGIN + column * width, MARGIN + row * height
        with Image.open(grid) as image:
            size, method = (TILE, TILE), Image.Resampling.LANCZOS
            tile = ImageOps.pad(image.convert("RGB"), size, method, color="white")
        sheet.paste(tile, (left, top))
        draw.multiline_text((left, top + TILE + 2), text, fill="black", font=font, spacing=2)
    temporary = path.with_name(f".{path.name}.tmp")
    sheet.save(temporary, format="PNG")
    temporary.replace(path)
    return path


def last_samples(cell: Cell) -> Path | None:
    """Return the newest sample grid of the first run that has one."""
    grids = (sorted(Path(run["folder"], "samples").glob("[0-9]*.png")) for run in cell.runs)
    whole = (list(filter(is_whole_image, paths[-1:])) for paths in grids)
    return next((paths[-1] for paths in whole if paths), None)


def caption(cell: Cell, place: int, *, rank_by: str) -> str:
    """Return rank, ranking metric, outcomes and label of a cell, in a few lines."""
    value = format_metric(cell, published_name(cell, rank_by))
    first = f"{place}. {rank_by.rpartition('/')[2]} {value}; {cell.outcomes}"
    return "\n".join([first, *textwrap.wrap(cell.label, TILE // 7)][:CAPTION_LINES])
