"""Curves over kimg as inline SVG: drawn by matplotlib, coloured by the page, so that light and dark are one picture."""

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

NUM_COLORS = 10  # of the page's style sheet, --c0 and on
MOST_POINTS = 400  # of a curve; more are averaged
SIZE_INCHES = (4.6, 2.5)  # small, so that letters stay readable when a telephone shrinks it
INK, MUTED, GRID, BAD = (
    "#010101",
    "#020202",
    "#030303",
    "#040404",
)  # stand-ins for the page's colours
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "distgan",
    "font.size": 9,
    "font.family": "sans-serif",
    "text.parse_math": False,
    "figure.subplot.left": 0.11,  # fixed margins: to fit them to the labels takes longer than to draw
    "figure.subplot.right": 0.985,
    "figure.subplot.bottom": 0.19,
    "figure.subplot.top": 0.92,
}


@dataclass(frozen=True)
class Curve:
    """One line of a chart; `level` is drawn dotted: its value for real images, or at equilibrium."""

    label: str
    color: int
    kimg: Sequence[float]
    values: Sequence[float]
    level: float | None = None

    @classmethod
    def of_rows(
        cls, label: str, color: int, rows: Sequence[dict[str, Any]], name: str, **rest: Any
    ) -> "Curve":
        """The curve of a metric through rows that have it."""
        found = [
            (row["progress/images"] / 1000, row[name])
            for row in rows
            if isinstance(row.get(name), int | float)
        ]
        kimg, values = zip(*found, strict=True) if found else ((), ())
        return cls(label, color, kimg, values, **rest)


@dataclass(frozen=True)
class Mark:
    """An event at a place on the x-axis."""

    kimg: float
    label: str
    is_bad: bool = False


@dataclass(frozen=True)
class Chart:
    """Curves in one frame, with the legend that the page writes above it."""

    title: str
    note: str
    curves: tuple[Curve, ...]
    limits: tuple[float, float] | None = None
    is_log: bool = False

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to draw."""
        return not any(len(curve.kimg) for curve in self.curves)

    @property
    def has_levels(self) -> bool:
        """Whether any curve has a dotted line."""
        return any(curve.level is not None for curve in self.curves)


def draw(chart: Chart, *, epochs: Sequence[Mark] = (), events: Sequence[Mark] = ()) -> str:
    """The chart as an <svg> element; holds no text but numbers and the labels of marks, which matplotlib escapes."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=SIZE_INCHES)
        canvas = FigureCanvasSVG(figure)
        axes = figure.subplots()
        figure.patch.set_visible(False)
        axes.patch.set_visible(False)
        for curve in chart.curves:
            draw_curve(axes, curve)
        for mark in epochs:
            axes.axvline(mark.kimg, color=MUTED, linewidth=0.7, linestyle=(0, (4, 3)))
            place = (mark.kimg, 1.0)
            axes.annotate(mark.label, place, xycoords=axes.get_xaxis_transform(), xytext=(0, 2), textcoords="offset points",
                          ha="center", color=MUTED, fontsize=8)  # fmt: skip
        for mark in events:
            color = BAD if mark.is_bad else MUTED
            axes.axvline(mark.kimg, color=color, linewidth=0.8, alpha=0.6)
            place = (mark.kimg, 0.0)
            axes.annotate(mark.label, place, xycoords=axes.get_xaxis_transform(), xytext=(2, 3), textcoords="offset points",
                          color=color, fontsize=8, weight="bold")  # fmt: skip
        dress(axes, chart)
        buffer = io.StringIO()
        canvas.print_svg(
            buffer, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    return for_page(buffer.getvalue())


def draw_curve(axes: Any, curve: Curve) -> None:
    """The reports pale where they are many, and their moving mean over a fiftieth of the run on top."""
    color = stand_in(curve.color)
    kimg, values = np.asarray(curve.kimg, float), np.asarray(curve.values, float)
    values[~np.isfinite(values)] = np.nan
    if len(kimg) > MOST_POINTS:
        parts = np.array_split(np.arange(len(kimg)), MOST_POINTS)
        kimg, values = (
            np.array([part_of[part].mean() for part in parts]) for part_of in (kimg, values)
        )
    window = len(kimg) // 50
    if window > 1:
        axes.plot(kimg, values, color=color, linewidth=0.7, alpha=0.35)
        values = moving_mean(values, window)
    marker = "o" if len(kimg) <= 30 else None
    axes.plot(kimg, values, color=color, linewidth=1.5, marker=marker, markersize=2.5)
    if curve.level is not None and math.isfinite(curve.level):
        axes.axhline(curve.level, color=color, linewidth=1, linestyle=":")


def moving_mean(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Mean of the numbers around each place; at the ends, and beside what is no number, of fewer."""
    is_number = np.isfinite(values)
    sums, counts = (
        np.convolve(each, np.ones(window), mode="same")
        for each in (np.where(is_number, values, 0), is_number)
    )
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def dress(axes: Any, chart: Chart) -> None:
    """Scales, grid and the colours of the frame."""
    from matplotlib.ticker import LogLocator

    positive = [value for curve in chart.curves for value in curve.values if 0 < value < math.inf]
    if chart.is_log and positive:
        is_narrow = max(positive) < 100 * min(positive)
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if is_narrow else (1,)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
    if chart.limits is not None:
        axes.set_ylim(*chart.limits)
    axes.set_xlim(left=0)
    axes.set_xlabel("thousand images", color=MUTED)
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", colors=MUTED, length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(GRID)


def stand_in(color: int) -> str:
    """The hex colour that stands for --c0, --c1 and on."""
    return f"#0500{color % NUM_COLORS:02x}"


def for_page(svg: str) -> str:
    """Only the element, as wide as its place, its colours those of the page, without ids that other charts have too."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'(<svg\b[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg\b[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    names = {INK: "ink", MUTED: "muted", GRID: "grid", BAD: "bad"}
    names |= {stand_in(color): f"c{color}" for color in range(NUM_COLORS)}
    for color, name in names.items():
        svg = svg.replace(color, f"var(--{name})")
    return svg.replace("<svg ", '<svg aria-hidden="true" ', 1)
