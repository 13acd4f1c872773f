"""Many runs beside one another: a page with curves over one another, a sortable table and the last grids."""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from distgan.evaluation.metrics import METRICS
from distgan.reporting.curves import NUM_COLORS, Chart, Curve, draw
from distgan.reporting.page import REPORT_FILE
from distgan.reporting.rendering import duration, picture, write_page
from distgan.reporting.run_record import RunRecord, figures, is_number

COMPARED = ("run", "state", "verdict", "kimg", "best frechet", "its coverage", "images/s", "time")
"""The columns of a comparison, on the page and in the console."""


def write_comparison(stories: Sequence[RunRecord], out: Path) -> Path:
    """Write the page that lays runs beside one another; raises OSError."""
    charts = [
        (chart, Markup(draw(chart)))
        for chart in comparison_charts(stories[:NUM_COLORS])
        if not chart.is_empty
    ]
    cards = []
    for story in stories:
        grids = story.sample_grids
        page = story.path / REPORT_FILE
        link = quote(os.path.relpath(page, out.parent)) if page.exists() else None
        cards.append((story, picture(grids[-1][1]) if grids else None, link))
    extractors = {
        str(row["protocol"].get("extractor_version"))
        for s in stories
        for row in s.evaluations[-1:]
        if "protocol" in row
    }
    return write_page(
        "comparison.html.j2",
        out,
        title=out.resolve().parent.name,
        compared=COMPARED,
        cards=cards,
        charts=charts,
        table=[comparison_row(story) for story in stories],
        num_drawn=min(NUM_COLORS, len(stories)),
        is_mixed=len(extractors) > 1,
    )


def comparison_charts(stories: Sequence[RunRecord]) -> list[Chart]:
    """Curves of all runs over one another."""

    def chart(title: str, note: str, name: str, **rest: Any) -> Chart:
        curves = []
        for color, story in enumerate(stories):
            evaluated = [
                {"progress/images": row["progress/images"]} | row["values"]
                for row in story.evaluations
            ]
            curves.append(
                Curve.of_rows(story.name, color, evaluated if name in METRICS else story.rows, name)
            )
        return Chart(title, note, tuple(curve for curve in curves if len(curve.kimg)), **rest)

    return [
        chart("Distance to the reals", "lower is better", "quality/frechet", is_log=True),
        chart("Coverage", "share of reals", "quality/coverage", limits=(-0.02, 1.04)),
        chart("Discriminator's loss", "of runs with one loss", "loss/d"),
        chart("Generator's loss", "of runs with one loss", "loss/g"),
        chart("Fakes seen through", "share", "accuracy/d_fake", limits=(-0.02, 1.04)),
        chart("Speed", "images/s", "time/images_per_sec"),
    ]


def comparison_row(story: RunRecord) -> list[tuple[str, float | str]]:
    """(what is shown, what is sorted by) of one run, in the order of COMPARED."""
    best = story.best_evaluation
    values = best["values"] if best else {}
    frechet = values.get("quality/frechet", values.get("quality/fid"))
    rate = round(story.images_per_sec) if is_number(story.images_per_sec) else None
    words = [story.name, story.status["state"], story.verdict or "–"]
    numbers: list[Any] = [story.images_seen / 1000, frechet, values.get("quality/coverage"), rate]
    row: list[tuple[str, float | str]] = [(word, word) for word in words]
    row += [(figures(number), number if is_number(number) else math.inf) for number in numbers]
    return [*row, (duration(story.train_sec), story.train_sec)]
