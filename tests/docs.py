"""Write the pages of docs/ that are generated from the code: settings and metrics.

python -m tests.docs
"""

import inspect
import json
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from distgan.config.flat import flat_fields
from distgan.config.metrics import EVALUATION_METRICS, TRAINING_METRICS
from distgan.config.schema import Config

ROOT = Path(__file__).parent.parent

SETTINGS = r"""# Settings

All settings of a run. Set them on the command line as `section.field=value`, or in a preset, which
is a TOML file. The command line overrides the preset, and the preset overrides the defaults.

Without a preset, images of your own are trained with the settings of `cifar10-strong` or, from 46
pixels, of `anime-faces-strong`, and a length that suits their number. Above 90 pixels R1 and R2 are
three times as large for each doubling of the size, which has not been measured. These settings then
take the place of the defaults below, and `--dry-run` lists them. `--preset classic` keeps the
defaults.

A preset of your own names only what differs from the defaults:

    [networks]
    generator_width = 32

    [train]
    kimg = 200

    distgan train --preset my.toml --data SHARDS

- Lists and texts are written as in TOML. Quote them for the shell: `'optim.betas=[0.0,0.99]'`.
- `none` means that the setting has no value. To get it, leave the setting out.
- Settings marked **\*** change the trained weights: a run with other values of them is another
  run, in another folder.

This page is generated from `distgan/config/` by `python -m tests.docs`.
"""
METRICS = """# Metrics

All numbers that runs and evaluations report.

This page is generated from `distgan/config/metrics.py` by `python -m tests.docs`.
"""
TRAINING = """
## While training

Written to `metrics.jsonl`, one row per report. Each value is a mean over all processes and all
steps since the previous report. Weights & Biases shows them over `progress/kimg`, with one panel
per prefix.

"""
EVALUATION = """
## In an evaluation

Written to `evaluations.jsonl`, each beside the value of real images, which is what a perfect
generator would reach. Two numbers can be compared if their protocols are equal: the features, the
dataset, and the numbers of real and generated images. Only `quality/fid`, `quality/kid` and
`quality/inception_score` use Inception's features, as published tables do.

"""
DISTANCE = """
## What is a good Fréchet distance?

`quality/frechet` says how much the generated images as a whole differ from real ones, in their look
and in their variety. Lower is better. Its scale depends on the features, so compare a value with
the two that stand beside it: real images against other real ones, and the first evaluation of the
run. Measured on 22 and 30 November and 1 December 2026 ([results.md](results.md),
[lab/presets.md](lab/presets.md)):

| images, features | real images | early in training | later |
| --- | --- | --- | --- |
| CIFAR-10, its probe, `cifar10-strong` | 0.02 | 2.4 after 100 kimg | 1.0 after 500 kimg |
| CIFAR-10, its probe, `cifar10` | 0.02 | 13 after 100 kimg | 4.6 after 500 kimg |
| anime faces, random, `anime-faces-strong` | 0.04 | | 0.074 after 131 kimg |
| anime faces, random, `anime-faces` | 0.04 | | 0.80 after 131 kimg |
| 6,000 of them, random, no preset | 0.15 | 1.1 after 8 kimg | 0.19 after 100 kimg |

Real images were compared with as many other ones as there were (10,000 and 8,192), the runs on
CIFAR-10 with 2,000, and in the last row, of 1 December 2026, all with 2,000.
"""


def settings_page() -> str:
    """Return docs/settings.md, generated from distgan/config/."""
    page = SETTINGS
    for place, fields in groupby(flat_fields(), lambda item: item[0].rpartition(".")[0]):
        rows = [setting_row(name, field) for name, field in fields]
        page += f"\n## {place}\n\n{sentence_of(place)}\n\n"
        page += table(["setting", "default", "values", "meaning"], rows)
    return page


def setting_row(name: str, field: Any) -> list[str]:
    """Return name, default, values and description of a setting."""
    mark = r" **\***" if field.json_schema_extra["identity"] else ""
    default = "none" if field.default is None else json.dumps(field.default)
    return [f"`{name}`{mark}", f"`{default}`", values_of(field), field.description]


def sentence_of(place: str) -> str:
    """Return the docstring of a section."""
    section: Any = Config
    for part in place.split("."):
        section = section.model_fields[part].annotation
    return inspect.getdoc(section) or ""


def values_of(field: Any) -> str:
    """Return type and limits of a setting as text."""
    bounds = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    limits = [
        f"{sign} {format_limit(getattr(bound, name))}"
        for bound in field.metadata
        for name, sign in bounds.items()
        if hasattr(bound, name)
    ]
    return ", ".join([type_name(field.annotation), *limits])


def format_limit(value: float) -> str:
    """Return a number without trailing zeros or exponent."""
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def type_name(annotation: Any) -> str:
    """Return a type as text."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if annotation is type(None):
        return "none"
    if origin is None:
        return {int: "integer", float: "number", str: "text", bool: "true or false"}[annotation]
    if origin is Annotated:
        return type_name(parts[0])
    if origin is tuple:
        is_list = parts[1] is ...
        item = type_name(parts[0])
        return f"list of {item}" if is_list else f"list of {len(parts)} {item}s"
    if all(isinstance(part, str) for part in parts):
        return ", ".join(f"`{part}`" for part in parts)
    return " or ".join(type_name(part) for part in parts)


def metrics_page() -> str:
    """Return docs/metrics.md, generated from the tables of metrics."""
    reported = [
        [f"`{name}`", metric.unit, metric.meaning] for name, metric in TRAINING_METRICS.items()
    ]
    evaluated = [
        [f"`{name}`", metric.unit, metric.better or "–", metric.meaning]
        for name, metric in EVALUATION_METRICS.items()
    ]
    return (
        f"{METRICS}{TRAINING}{table(['metric', 'unit', 'meaning'], reported)}"
        f"{EVALUATION}{table(['metric', 'unit', 'better', 'meaning'], evaluated)}{DISTANCE}"
    )


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(map(escape, line)) + " |\n" for line in lines)


def escape(text: str) -> str:
    """Return a text that can stand in a cell of a table."""
    return text.replace("|", "\\|")


PAGES = {"docs/settings.md": settings_page, "docs/metrics.md": metrics_page}


def main(names: Iterable[str] = PAGES) -> None:
    """Write the named pages."""
    for name in names:
        (ROOT / name).write_text(PAGES[name]())


if __name__ == "__main__":
    main()
