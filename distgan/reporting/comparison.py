"""Runs side by side: the settings that differ, results, curves and samples, on one page.

Runs are grouped by dataset and evaluation protocol, because scores of different groups cannot be
compared.
"""

import json
import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from distgan.reporting.charts import FRACTION
from distgan.reporting.curves import NUM_COLORS, Chart, Curve, Drawing, draw
from distgan.reporting.metrics import metric_label
from distgan.reporting.page import REPORT_FILE
from distgan.reporting.rendering import image_file_uri, render, write_page
from distgan.reporting.run_record import RunRecord
from distgan.run.files import comparable_part
from distgan.text import NO_VALUE, format_duration, format_number, is_number, pluralize
from shards.errors import printable

COLUMNS = ("run", "state", "verdict", "kimg", "best {distance}", "coverage", "images/s", "time")
NUM_TEXT_COLUMNS = 3  # the others are numbers


@dataclass(frozen=True)
class Cell:
    """A text of a table, and what its column is sorted by."""

    text: str
    key: float | str


@dataclass(frozen=True)
class Group:
    """Runs of one dataset that were evaluated in the same way."""

    dataset: str
    protocol: str
    runs: list[RunRecord]

    @property
    def title(self) -> str:
        """The group in one line."""
        return f"{self.dataset}, {pluralize(len(self.runs), 'run')}: {self.protocol}"

    @property
    def distance(self) -> str:
        """Name of the distance that all runs have: FID in Inception's features."""
        rows = [row for run in self.runs for row in run.comparable_evaluations]
        is_fid = any("quality/fid" in row.values for row in rows)
        return "quality/fid" if is_fid else "quality/frechet"

    @property
    def columns(self) -> list[str]:
        """Heads of the table of results."""
        return [name.format(distance=metric_label(self.distance)) for name in COLUMNS]

    @property
    def results(self) -> list[list[Cell]]:
        """The table of results, one row per run."""
        return [result_cells(run, self.distance) for run in self.runs]


def write_comparison(
    groups: Sequence[Group], out: Path, *, folder: Path, warnings: Sequence[str] = ()
) -> Path:
    """Write the page that compares the runs of a folder; raises OSError."""
    text = render(
        "comparison.html.j2",
        title=printable(folder.resolve().name),
        is_live=False,
        warnings=warnings,
        num_runs=sum(len(group.runs) for group in groups),
        num_text_columns=NUM_TEXT_COLUMNS,
        max_curves=NUM_COLORS,
        groups=[group_values(group, out) for group in groups],
    )
    return write_page(out, text)


def group_values(group: Group, out: Path) -> dict[str, Any]:
    """Return everything that the template shows of a group."""
    drawn = group.runs[:NUM_COLORS]
    return {
        "group": group,
        "settings": differing_settings(group.runs),
        "legend": [Curve(run.name, color, [0.0], [0.0]) for color, run in enumerate(drawn)],
        "drawings": comparison_drawings(drawn, group.distance),
        "cards": [(run, last_grid(run), page_link(run, out)) for run in group.runs],
    }


def group_runs(runs: Sequence[RunRecord]) -> list[Group]:
    """Return the runs by dataset and protocol.

    Runs without an evaluation join the largest group of their dataset.
    """
    datasets: dict[str, list[RunRecord]] = {}
    for run in runs:
        datasets.setdefault(dataset_key(run), []).append(run)
    groups = []
    for members in datasets.values():
        keys = Counter(protocol_key(run) for run in members if run.evaluations)
        usual = keys.most_common(1)[0][0] if keys else ""
        by_protocol: dict[str, list[RunRecord]] = {}
        for run in members:
            by_protocol.setdefault(protocol_key(run) if run.evaluations else usual, []).append(run)
        groups += [describe_group(each) for each in by_protocol.values()]
    return groups


def dataset_key(run: RunRecord) -> str:
    """Return what tells datasets apart: the fingerprint, or else the place, and the classes."""
    return json.dumps([run.fingerprint or run.dataset_name, run.settings.get("data.classes")])


def protocol_key(run: RunRecord) -> str:
    """Return what tells the protocols of last evaluations apart."""
    protocol = run.evaluations[-1].protocol
    same = comparable_part(protocol)
    return json.dumps(same, sort_keys=True)


def describe_group(runs: list[RunRecord]) -> Group:
    """Return a group of runs, named by its dataset and protocol."""
    first = runs[0]
    fingerprint = f" ({first.fingerprint[:12]})" if first.fingerprint else ""
    evaluated = [run.evaluations[-1].protocol for run in runs if run.evaluations]
    if not evaluated:
        return Group(f"{first.dataset_name}{fingerprint}", "no evaluation yet", runs)
    protocol = evaluated[0]
    description = (
        f"{format_number(protocol.get('num_fakes'))} generated against "
        f"{format_number(protocol.get('num_reference'))} real images, "
        f"features {protocol.get('extractor', '–')} {protocol.get('extractor_version', '')}"
    )
    return Group(f"{first.dataset_name}{fingerprint}", description.strip(), runs)


def differing_settings(runs: Sequence[RunRecord]) -> tuple[list[str], list[list[str]]]:
    """Return (names, one row of values per run) of the settings that differ between runs."""
    tables = [{each.name: each.value for each in run.settings_table} for run in runs]
    every = dict.fromkeys(name for table in tables for name in table)
    names = [name for name in every if len({table.get(name) for table in tables}) > 1]
    return names, [[table.get(name, NO_VALUE) for name in names] for table in tables]


def comparison_drawings(runs: Sequence[RunRecord], distance: str) -> list[Drawing]:
    """Return the charts with one curve per run, in the order of their colours."""

    def chart(title: str, y_label: str, caption: str, name: str, **rest: Any) -> Chart:
        curves = (Curve(run.name, color, *run.curve(name)) for color, run in enumerate(runs))
        return Chart(title, y_label, caption, tuple(curves), **rest)

    label = metric_label(distance)
    losses = (
        "Says which network is ahead, not how good the images are. Comparable only between runs "
        "with the same loss."
    )
    charts = [
        chart(label, "squared feature units", "How much the generated images as a whole differ "
              "from real ones. Lower is better.", distance, is_log=True),
        chart("Coverage", "fraction of real images", "Real images that have a generated one like "
              "them. Higher is better: less is missing.", "quality/coverage", limits=FRACTION),
        chart("Discriminator loss", "loss", losses, "loss/d"),
        chart("Generator loss", "loss", losses, "loss/g"),
        chart("Discriminator accuracy", "fraction of generated images", "Generated images that the "
              "discriminator classifies as generated. Above 0.99 for long: it has won. Near 0: the "
              "generator has won.", "accuracy/d_fake", limits=FRACTION),
        chart("Speed of the steps", "images/s", "Real images consumed per second, without pauses "
              "for samples, evaluations and checkpoints.", "time/step_images_per_sec"),
    ]  # fmt: skip
    return [draw(each) for each in charts if not each.is_empty]


def last_grid(run: RunRecord) -> str | None:
    """Return the newest grid of samples as a data URI, None if there is none."""
    return image_file_uri(run.sample_grids[-1][1]) if run.sample_grids else None


def page_link(run: RunRecord, out: Path) -> str | None:
    """Return a link from a page to that of a run, None if there is none."""
    page = run.path / REPORT_FILE
    is_there = page.exists() and page.resolve() != out.resolve()
    return quote(os.fsencode(os.path.relpath(page, out.parent))) if is_there else None


def result_cells(run: RunRecord, distance: str) -> list[Cell]:
    """Return a run's row in the table of results, in the order of COLUMNS."""
    values = run.best_evaluation.values if run.best_evaluation else {}
    rate = round(run.images_per_sec) if is_number(run.images_per_sec) else None
    texts = [run.name, run.status.state, run.verdict or NO_VALUE]
    scores = [values.get(name) for name in (distance, "quality/coverage")]
    numbers = [run.images_seen / 1000, *scores, rate]
    return [
        *(Cell(text, text) for text in texts),
        *(number_cell(number) for number in numbers),
        Cell(format_duration(run.train_sec), run.train_sec),
    ]


def number_cell(number: float | None) -> Cell:
    """Return a number's cell; an unknown one is sorted last."""
    if number is None or not math.isfinite(number):
        return Cell(NO_VALUE, math.inf)
    return Cell(format_number(number), number)
