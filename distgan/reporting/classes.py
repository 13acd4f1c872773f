"""The table of a conditional generator's classes, for pages and the console."""

from collections.abc import Sequence
from typing import Any

from distgan.evaluation.by_class import ACCURACY, ClassScore, worst_classes
from distgan.reporting.run_record import RunRecord
from distgan.run.sample_grid import classes_shown
from distgan.text import format_number

COLUMNS = {
    ACCURACY: "recognised",
    "quality/frechet": "distance",
    "quality/precision": "precision",
    "quality/recall": "recall",
    "quality/coverage": "coverage",
}

Cell = tuple[float | None, float | None]  # of generated and of other real images


def class_table(found: Sequence[ClassScore]) -> tuple[list[str], list[tuple[str, list[Cell]]]]:
    """Return the headings, and (class, cells) of each row, those with the lowest coverage first."""
    names = [name for name in COLUMNS if any(name in score.values for score in found)]
    rows = [
        (score.name, [(score.values.get(name), score.reals.get(name)) for name in names])
        for score in worst_classes(found, most=len(found))
    ]
    return [COLUMNS[name] for name in names], rows


def class_lines(found: Sequence[ClassScore]) -> tuple[list[str], list[list[str]]]:
    """Return the table as text, with the real images' values in parentheses."""
    head, rows = class_table(found)
    return ["class (real images)", *head], [
        [name, *(f"{format_number(value)} ({format_number(real)})" for value, real in cells)]
        for name, cells in rows
    ]


def last_scores(record: RunRecord) -> list[ClassScore]:
    """Return the classes of a run's last evaluation; none if there are none, or it is damaged."""
    if not record.evaluations:
        return []
    found: Any = record.evaluations[-1].model_dump().get("by_class")
    try:
        scores = [ClassScore(**score) for score in found or []]
        worst_classes(scores)
    except (TypeError, KeyError, AttributeError):
        return []
    return scores


def rows_of_grid(record: RunRecord) -> str:
    """Return the classes in the rows of the sample grids, from the top; empty without classes."""
    spec = record.description.generator
    classes = spec.get("classes")
    if not isinstance(classes, list) or "shares" not in spec:
        return ""
    return ", ".join(str(classes[number]) for number in classes_shown(len(classes)))
