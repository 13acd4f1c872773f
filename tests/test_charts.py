"""Curves, their axes and their colours."""

import numpy as np
import pytest

from distgan.reporting.curves import Chart, Curve, Mark, draw, moving_mean
from distgan.reporting.rendering import make_environment


def draw_svg(chart: Chart, **marks: list[Mark]) -> str:
    """Return a chart as the page shows it."""
    template = '{% import "chart.html.j2" as chart %}{{ chart.svg(drawing) }}'
    return make_environment().from_string(template).render(drawing=draw(chart, **marks))


def test_curves_have_the_colors_of_the_page() -> None:
    """A chart has no fixed colour, no NaN, and a bounded size."""
    many = Curve("many", 0, range(2000), list(np.sin(np.arange(2000)) + 2), level=1.0)
    odd = Curve("odd", 1, [1, 2, 3], [float("nan"), 2.0, float("inf")])
    chart = Chart("title", "unit", "caption", (many, odd), is_log=True)
    bad = Mark(2, "1", "<b>", is_bad=True)
    svg = draw_svg(chart, epochs=[Mark(1, "epoch 1")], events=[bad])
    assert "#" not in svg
    assert all(name in svg for name in ("var(--c0)", "var(--c1)", 'class="event bad"', "&lt;b&gt;"))
    assert "nan" not in svg.lower()
    assert ">unit<" in svg  # the values are too near to one another for a logarithmic axis
    assert len(svg) < 60_000
    assert Chart("", "", "", (Curve("", 0, (), ()),)).is_empty


@pytest.mark.parametrize("values", [[0.0], [5.0, 5.0], [-1.0, 2.0], [1e-9, 1e9], [float("nan")]])
@pytest.mark.parametrize("is_log", [False, True])
def test_axis_includes_all_values(values: list[float], is_log: bool) -> None:
    """Any finite values get coordinates within the frame, and ticks."""
    chart = Chart("", "unit", "", (Curve("", 0, range(len(values)), values),), is_log=is_log)
    drawing = draw(chart)
    finite = [height for height in drawing.y.place(values) if np.isfinite(height)]
    assert len(finite) == np.isfinite(values).sum()
    assert all(drawing.y.last <= height <= drawing.y.first for height in finite)
    assert drawing.y.ticks
    assert (drawing.y_label == "unit, log scale") == drawing.y.is_log


def test_moving_mean_reaches_both_ends() -> None:
    """A constant stays constant at the ends and around a NaN."""
    values = np.full(20, 3.0)
    values[7] = np.nan
    np.testing.assert_allclose(moving_mean(values, 5), 3.0)


@pytest.mark.parametrize("level", [None, 1.0])
def test_dotted_lines_are_explained_if_there_are_any(level: float | None) -> None:
    """The text below a chart says what they are."""
    curve = Curve("", 0, [1.0, 2.0], [1.0, 2.0], level=level)
    chart = Chart("", "", "Higher is better.", (curve,), level="real images")
    assert ("Dotted: real images." in chart.explanation) == (level is not None)
    assert ('class="level"' in draw_svg(chart)) == (level is not None)
