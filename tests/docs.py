"""Write the pages of docs/ that are made from the code: settings and metrics.

python -m tests.docs
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from distgan.config.schema import Config
from distgan.config.values import flat_fields
from distgan.evaluation import metrics as evaluation
from distgan.reporting import metrics as training

ROOT = Path(__file__).parent.parent


def settings_page() -> str:
    """docs/settings.md from distgan/config/schema.py."""
    lines = [
        "# Settings",
        "",
        "Each is set on the command line as `section.field=value`, or in a preset. Default < preset < command line.",
        "A default of `none` is had by leaving the setting out; lists and texts are written as in TOML, in quotes for the shell.",
        "Those marked **\\*** change what is learned: a run with other values of them is another run, in another folder.",
        "Written from `distgan/config/schema.py` and `distgan/config/thresholds.py` by `python -m tests.docs`.",
    ]
    section = ""
    for name, field in flat_fields():
        place = name.rpartition(".")[0]
        if place != section:
            section = place
            lines += [
                "",
                f"## {place}",
                "",
                sentence_of(place),
                "",
                "| setting | default | values | |",
                "| --- | --- | --- | --- |",
            ]
        mark = " **\\***" if field.json_schema_extra["identity"] else ""
        default = "none" if field.default is None else json.dumps(field.default)
        lines.append(row(f"`{name}`{mark}", f"`{default}`", values_of(field), field.description))
    return "\n".join(lines) + "\n"


def sentence_of(place: str) -> str:
    """The docstring of a section."""
    section: Any = Config
    for part in place.split("."):
        section = section.model_fields[part].annotation
    return (section.__doc__ or "").strip()


def values_of(field: Any) -> str:
    """What a setting takes, in words."""
    bounds = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    limits = [
        f"{sign} {getattr(bound, name):g}"
        for bound in field.metadata
        for name, sign in bounds.items()
        if hasattr(bound, name)
    ]
    return ", ".join([type_name(field.annotation), *limits])


def type_name(annotation: Any) -> str:
    """A type in words."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if annotation is type(None):
        return "none"
    if origin is None:
        return {int: "whole number", float: "number", str: "text", bool: "true or false"}[
            annotation
        ]
    if origin is Annotated:
        return type_name(parts[0])
    if origin is tuple:
        return (
            f"list of {type_name(parts[0])}"
            if parts[1] is ...
            else f"{len(parts)} of {type_name(parts[0])}"
        )
    if all(isinstance(part, str) for part in parts):
        return ", ".join(f"`{part}`" for part in parts)
    return " or ".join(type_name(part) for part in parts)


def metrics_page() -> str:
    """docs/metrics.md from the two tables of metrics."""
    lines = [
        "# Metrics",
        "",
        "Written from the tables in `distgan/reporting/metrics.py` and `distgan/evaluation/metrics.py` by `python -m tests.docs`.",
        "",
        "## While training",
        "",
        "In `metrics.jsonl`, one row a report, means over the steps and processes since the last one; in Weights & Biases a panel",
        "for each prefix, over `progress/kimg`.",
        "",
        "| metric | unit | |",
        "| --- | --- | --- |",
        *(
            row(f"`{name}`", metric.unit, metric.sentence)
            for name, metric in training.METRICS.items()
        ),
        "",
        "## In an evaluation",
        "",
        "In `evaluations.jsonl`, each beside its value for real images, which is what a perfect generator would show. Two numbers",
        "can be compared where their protocols are equal: features, dataset, and how many of both. Only `quality/fid`, `quality/kid`",
        "and `quality/inception_score` are in Inception's features, those of published tables.",
        "",
        "| metric | unit | better | |",
        "| --- | --- | --- | --- |",
        *(
            row(f"`{name}`", metric.unit, metric.better or "–", metric.sentence)
            for name, metric in evaluation.METRICS.items()
        ),
    ]
    return "\n".join(lines) + "\n"


def row(*cells: str) -> str:
    """One row of a Markdown table."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


PAGES = {"docs/settings.md": settings_page, "docs/metrics.md": metrics_page}


def main(names: Iterable[str] = PAGES) -> None:
    """Write them all."""
    for name in names:
        (ROOT / name).write_text(PAGES[name]())


if __name__ == "__main__":
    main()
