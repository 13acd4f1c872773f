"""Writes what the texts say of the code: the tables of settings and metrics, and the README's list of files.

python -m tests.docs
"""

import ast
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from distgan.config import Config
from distgan.evaluation import metrics as evaluation
from distgan.reporting import metrics as training
from distgan.settings import flat_fields

ROOT = Path(__file__).parent.parent


def settings_page() -> str:
    """docs/settings.md from distgan/config.py."""
    lines = [
        "# Settings",
        "",
        "Each is set on the command line as `section.field=value`, or in a preset. Default < preset < command line.",
        "A default of `none` is had by leaving the setting out; lists and texts are written as in TOML, in quotes for the shell.",
        "Those marked **\\*** change what is learned: a run with other values of them is another run, in another folder.",
        "Written from `distgan/config.py` and `distgan/thresholds.py` by `python -m tests.docs`.",
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
        return {int: "whole number", float: "number", str: "text", bool: "true or false"}[annotation]
    if origin is Annotated:
        return type_name(parts[0])
    if origin is tuple:
        return f"list of {type_name(parts[0])}" if parts[1] is ... else f"{len(parts)} of {type_name(parts[0])}"
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
        *(row(f"`{name}`", metric.unit, metric.sentence) for name, metric in training.METRICS.items()),
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


BESIDE_THE_CODE = {
    "accelerate_config.yaml": "How many processes one node starts",
    "launch/README.md": "One GPU, many nodes, SLURM: what to type, and why",
    "launch/slurm.sbatch": "A job that survives preemption, time limits and lost nodes",
    "launch/sweep.sbatch": "One job a run of a sweep",
    "launch/sweep.toml": "A sweep to begin with",
    "launch/*.yaml": "Accelerate configurations, one a kind of machine",
    "docs/guide.md": "From a folder of photographs to a generator that others can use",
    "docs/reading-the-curves.md": "Balance, both kinds of collapse, and what to do",
    "docs/settings.md": "Every setting",
    "docs/metrics.md": "Every metric",
    "docs/quality.md": "How generated images are judged",
    "docs/shard-format.md": "The bytes of a packed dataset",
    "docs/remedies.md": "What to try against collapse, and what it costs",
    "docs/sweep.md": "Many runs from one file, and their leaderboard",
    "docs/performance.md": "How fast, beside the usual way, and what was tried",
    "docs/reliability.md": "What went wrong on purpose, and what it cost",
    "docs/results.md": "What real runs gave, and what they took",
    "docs/images/": "Pictures of these runs",
    "tests/*.py": "One file a module, and real runs of one, two and three processes",
    "tests/evaluation/": "Metrics against other implementations, verdicts against made-up runs",
    "tests/shards/": "Packing, reading, remote stores",
    "tests/objectives/": "Losses, penalties and unrolled steps against their definitions",
    "tests/faults/": "Kills at random moments, damaged data, full disks",
    "tests/slurm/": "Jobs on a real SLURM of two nodes: pytest -n 0 -m slurm",
    "tests/benchmarks/": "Speed beside the usual way, encodings and remedies compared, modes captured, false alarms of the verdict",
    ".ci/run": "Everything that CI runs",
    "CONTRIBUTING.md": "How code is written here",
    "LICENSE": "MIT",
    "pyproject.toml": "Dependencies, extras, and the settings of all tools",
}
"""What is no module of the two packages, with a phrase each; a pattern or a folder stands for all that it matches."""


def list_of_files() -> str:
    """The README's list: what each module says of itself, then what lies beside the code."""
    told = {}
    for package in ("distgan", "shards"):
        for path in sorted((ROOT / package).rglob("*.py")):
            sentence = ast.get_docstring(ast.parse(path.read_text()))
            if sentence:
                told[str(path.relative_to(ROOT))] = sentence.splitlines()[0].rstrip(".")
        if package == "distgan":
            told["distgan/presets/"] = ", ".join(path.stem for path in sorted(ROOT.glob("distgan/presets/*.toml")))
            told["distgan/reporting/templates/"] = "The pages' HTML, style and script"
    told |= BESIDE_THE_CODE
    width = max(map(len, told)) + 2
    return "\n".join(f"    {path:{width}}{phrase}" for path, phrase in told.items()) + "\n"


def readme() -> str:
    """README.md with its list of files as it should be."""
    before, mark, rest = (ROOT / "README.md").read_text().partition("## The project, file by file\n")
    assert mark, "README.md has lost its list of files"
    return f"{before}{mark}\n{list_of_files()}\n{rest[rest.index('To follow one') :]}"


PAGES = {"docs/settings.md": settings_page, "docs/metrics.md": metrics_page, "README.md": readme}


def main(names: Iterable[str] = PAGES) -> None:
    """Write them all."""
    for name in names:
        (ROOT / name).write_text(PAGES[name]())


if __name__ == "__main__":
    main()
