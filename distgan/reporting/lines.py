"""Lines for the console: an evaluation, and how a run ended."""

import shlex
from collections.abc import Mapping
from pathlib import Path

from distgan.evaluation.by_class import worst_classes
from distgan.evaluation.evaluate import Result
from distgan.reporting.metrics import DISTANCES, metric_label
from distgan.text import format_duration, format_kimg

CONSOLE_METRICS = (  # those of an evaluation that are printed
    "quality/frechet",
    "quality/fid",
    "quality/coverage",
    "quality/precision",
    "diversity/missing_classes",
    "quality/class_accuracy",
)


def evaluation_line(
    result: Result, *, first: Mapping[str, float], is_best: bool, images_seen: int
) -> str:
    """Return an evaluation as a line for the console.

    The distance is shown between those of real images and of the run's `first` evaluation.
    """
    figures = []
    for name in CONSOLE_METRICS:
        if name in result.values:
            figure = f"{metric_label(name)} {result.values[name]:.3g}"
            scale = [f"real images {result.reals[name]:.3g}"] if name in result.reals else []
            if name in DISTANCES and name in first:
                scale.append(f"first evaluation {first[name]:.3g}")
            figures.append(f"{figure} ({', '.join(scale)})" if scale else figure)
    if result.by_class:
        worst = [
            f"{score.name} {score.values['quality/coverage']:.2g}"
            for score in worst_classes(result.by_class)
        ]
        figures.append(f"lowest coverage: {', '.join(worst)}")
    best = "  (best so far)" if is_best else ""
    return f"{images_seen / 1000:,.1f} kimg  evaluation: {', '.join(figures)}{best}"


def outcome_line(
    state: str, reason: str, folder: Path, *, images_seen: int, seconds: float | None
) -> str:
    """Return the last line of a run: how it ended, and what to do next."""
    kimg = format_kimg(images_seen)
    if state == "failed":
        return f"Failed at {kimg}: {reason}. Run folder: {folder}"
    if state == "preempted":
        return f"Interrupted and saved at {kimg}. Repeat the command to continue."
    report = f" Open {folder / 'report.html'}." if (folder / "report.html").exists() else ""
    if state == "collapsed":
        return f"Collapsed at {kimg}: {reason}.{report}"
    time = "" if seconds is None else f" in {format_duration(seconds)}"
    return f"Done: {kimg}{time}. {reason}.{report} Next: distgan sample {shlex.quote(str(folder))}"
