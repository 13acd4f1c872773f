"""Line charts: from numbers to the coordinates that the template `chart.html.j2` draws as SVG."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

NUM_COLORS = 10  # of the style sheet: --c0, --c1, ...
MAX_POINTS = 400  # of a curve; neighbouring points of longer ones are averaged
MAX_DOTS = 30  # a curve of at most so many points shows each as a dot
MAX_TICKS = 6
WIDTH, HEIGHT = 390, 230  # of a chart, in its own units; the page scales it
LEFT, RIGHT, TOP, BOTTOM = 66, 382, 20, 188  # edges of the area with the curves

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """A metric over training; `level` is drawn as a dotted line: its value for real images, say."""

    label: str
    color: int
    kimg: Sequence[float]
    values: Sequence[float]
    level: float | None = None

    @property
    def css_color(self) -> str:
        """The colour of the style sheet."""
        return f"var(--c{self.color % NUM_COLORS})"


@dataclass(frozen=True)
class Mark:
    """A vertical line; `text` explains it when the pointer rests on it."""

    kimg: float
    label: str
    text: str = ""
    is_bad: bool = False


@dataclass(frozen=True)
class Chart:
    """Curves that share a vertical axis, which has a label and may have limits.

    `level` says what the dotted lines are, if any curve has one.
    """

    title: str
    y_label: str
    caption: str
    curves: tuple[Curve, ...]
    limits: tuple[float, float] | None = None
    is_log: bool = False
    level: str = ""

    @property
    def explanation(self) -> str:
        """The text below the chart: the caption, and what its dotted lines are."""
        has_level = any(len(curve.kimg) and curve.level is not None for curve in self.curves)
        return f"{self.caption} Dotted: {self.level}." if has_level else self.caption

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to draw."""
        return not any(len(curve.kimg) for curve in self.curves)


@dataclass(frozen=True)
class Axis:
    """A linear or logarithmic scale from values to coordinates."""

    low: float
    high: float
    first: float  # coordinate of `low`
    last: float  # coordinate of `high`
    is_log: bool = False

    def place(self, values: Sequence[float] | Array) -> Array:
        """Return coordinates; NaN for values that a logarithmic scale does not have."""
        numbers, low, high = np.asarray(values, float), self.low, self.high
        if self.is_log:
            numbers = np.log10(np.where(numbers > 0, numbers, np.nan))
            low, high = math.log10(low), math.log10(high)
        return self.first + (numbers - low) / (high - low) * (self.last - self.first)

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """(coordinate, number) of each tick."""
        from matplotlib.ticker import LogLocator, MaxNLocator

        is_narrow = self.is_log and self.high < 100 * self.low
        log = LogLocator(subs=(1, 2, 5) if is_narrow else (1,), numticks=MAX_TICKS)
        linear = MaxNLocator(MAX_TICKS, steps=[1, 2, 2.5, 5, 10])
        values = (log if self.is_log else linear).tick_values(self.low, self.high)
        inside = [value for value in values if self.low <= value <= self.high]
        return [(float(self.place([value])[0]), f"{value:.6g}") for value in inside]


@dataclass(frozen=True)
class Line:
    """A curve in coordinates: SVG paths of its points and, if there are many, of their mean."""

    css_color: str
    path: str
    mean_path: str = ""
    dots: list[tuple[float, float]] = field(default_factory=list)
    level: float | None = None


@dataclass(frozen=True)
class Drawing:
    """A chart in coordinates."""

    chart: Chart
    x: Axis
    y: Axis
    lines: list[Line]
    epochs: list[tuple[float, Mark]]
    events: list[tuple[float, Mark]]
    width: int = WIDTH
    height: int = HEIGHT

    @property
    def y_label(self) -> str:
        """Label of the vertical axis, which says so if it is logarithmic."""
        return f"{self.chart.y_label}, log scale" if self.y.is_log else self.chart.y_label


def draw(chart: Chart, *, epochs: Sequence[Mark] = (), events: Sequence[Mark] = ()) -> Drawing:
    """Return the coordinates of a chart that is not empty."""
    end = max(max(curve.kimg, default=0.0) for curve in chart.curves)
    x = Axis(0.0, end or 1.0, LEFT, RIGHT)
    y = vertical_axis(chart)
    lines = [draw_curve(curve, x, y) for curve in chart.curves if len(curve.kimg)]
    return Drawing(chart, x, y, lines, place_marks(epochs, x), place_marks(events, x))


def place_marks(marks: Sequence[Mark], x: Axis) -> list[tuple[float, Mark]]:
    """Return the marks that the axis includes, with their coordinates."""
    return [(float(x.place([mark.kimg])[0]), mark) for mark in marks if mark.kimg <= x.high]


def vertical_axis(chart: Chart) -> Axis:
    """Return the axis that shows all values and levels of a chart."""
    values = [value for curve in chart.curves for value in curve.values]
    values += [curve.level for curve in chart.curves if curve.level is not None and curve.kimg]
    found = [value for value in values if math.isfinite(value)]
    positive = [value for value in found if value > 0]
    if chart.limits is not None:
        return Axis(*chart.limits, BOTTOM, TOP)
    if chart.is_log and positive and max(positive) > 10 * min(positive):
        return Axis(min(positive) / 1.2, max(positive) * 1.2, BOTTOM, TOP, is_log=True)
    low, high = min(found, default=0.0), max(found, default=1.0)
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return Axis(low - margin, high + margin, BOTTOM, TOP)


def draw_curve(curve: Curve, x: Axis, y: Axis) -> Line:
    """Return a curve's coordinates; a long one also as its moving mean over 1/50 of the run."""
    kimg, values = thin_out(np.asarray(curve.kimg, float), np.asarray(curve.values, float))
    places, heights = x.place(kimg), y.place(values)
    window = len(kimg) // 50
    mean_path = svg_path(places, y.place(moving_mean(values, window))) if window > 1 else ""
    dots = []
    if len(kimg) <= MAX_DOTS:
        dots = [(px, py) for px, py in zip(places, heights, strict=True) if math.isfinite(py)]
    level = None
    if curve.level is not None:
        height = float(y.place([curve.level])[0])
        level = height if TOP <= height <= BOTTOM else None
    return Line(curve.css_color, svg_path(places, heights), mean_path, dots, level)


def thin_out(kimg: Array, values: Array) -> tuple[Array, Array]:
    """Return at most MAX_POINTS points, each the mean of its part of the curve; infinity is NaN."""
    values = np.where(np.isfinite(values), values, np.nan)
    if len(kimg) <= MAX_POINTS:
        return kimg, values
    parts = np.array_split(np.arange(len(kimg)), MAX_POINTS)
    means = [np.array([array[part].mean() for part in parts]) for array in (kimg, values)]
    return means[0], means[1]


def moving_mean(values: Array, window: int) -> Array:
    """Return the mean of the finite values around each place; the ends have fewer of them."""
    is_finite = np.isfinite(values)
    sums, counts = (
        np.convolve(each, np.ones(window), mode="same")
        for each in (np.where(is_finite, values, 0), is_finite)
    )
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def svg_path(x: Iterable[float], y: Iterable[float]) -> str:
    """Return the `d` of an SVG path, with a gap at each point that is not finite."""
    commands, command = [], "M"
    for px, py in zip(x, y, strict=True):
        if math.isfinite(py):
            commands.append(f"{command}{px:.1f} {py:.1f}")
        command = "L" if math.isfinite(py) else "M"
    return "".join(commands)
