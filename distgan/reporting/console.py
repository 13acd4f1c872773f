"""What a person sees: tables, a progress bar in a terminal, plain lines elsewhere. The one place that knows rich."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

SECONDS_BETWEEN_LINES = 10.0


def make_console(*, stderr: bool = False) -> Console:
    """A console that wraps nothing when it is no terminal, so that logs keep one event a line."""
    console = Console(stderr=stderr, highlight=False)
    if not console.is_terminal:
        console.width = 10_000
    return console


def show_table(title: str, rows: list[tuple[str, Any]]) -> None:
    """A table of two columns; plain `name: value` lines when it is no terminal."""
    console = make_console()
    if not console.is_terminal:
        console.print(escape(title))
        for name, value in rows:
            console.print(f"  {escape(name)}: {escape(in_words(value))}")
        return
    table = Table(title=escape(title), title_justify="left", show_header=False)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(escape(name), escape(in_words(value)))
    console.print(table)


def in_words(value: Any) -> str:
    """A value as a person would type it."""
    return "none" if value is None else str(value)


def show_columns(head: list[str], rows: list[list[str]]) -> None:
    """A table of a name and numbers, one column a thing compared."""
    table = Table(box=SIMPLE_HEAD)
    for place, name in enumerate(head):
        table.add_column(escape(name), justify="right" if place else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    console = make_console()
    if not console.is_terminal:
        console.width = 160
    console.print(table)


def say(text: str, *, style: str = "") -> None:
    """One line."""
    make_console().print(escape(text), style=style)


def complain(text: str) -> None:
    """A user's mistake, on standard error."""
    make_console(stderr=True).print(f"[bold red]error:[/] {escape(text)}")


def duration(seconds: float) -> str:
    """Seconds as 3:07 or 1:02:07."""
    minutes, secs = divmod(int(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{secs:02d}" if hours else f"{minutes}:{secs:02d}"


@contextmanager
def counting_progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """Yield `show(done, total)`: a bar with rate and time left in a terminal, a line now and then elsewhere."""
    console = make_console()
    started = last_line = time.monotonic()
    already: int | None = None  # done by an earlier, interrupted call
    columns = (
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
        TextColumn("{task.fields[rate]} images/s"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=None, rate="-")

        def show(done: int, total: int) -> None:
            nonlocal last_line, already
            already = done if already is None else already
            now = time.monotonic()
            rate = (done - already) / max(now - started, 1e-9)
            progress.update(task, completed=done, total=total, rate=f"{rate:,.0f}")
            if not console.is_terminal and (
                now - last_line > SECONDS_BETWEEN_LINES or done == total
            ):
                last_line = now
                left = duration((total - done) / max(rate, 1e-9))
                console.print(
                    f"{escape(what)}: {done:,} of {total:,} images, {rate:,.0f} images/s, {left} left"
                )

        try:
            yield show
        except Exception:  # whoever reads the error needs no bar that stands still
            progress.update(task, visible=False)
            raise


@contextmanager
def share_progress(what: str) -> Iterator[Callable[[float, float], None]]:
    """Yield `show(share done, accuracy)`: a bar in a terminal, a line now and then elsewhere."""
    console = make_console()
    last_line = time.monotonic()
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=1.0)

        def show(share: float, accuracy: float) -> None:
            nonlocal last_line
            text = f"{what}: accuracy {accuracy:.1%}"
            progress.update(task, completed=share, description=text)
            if not console.is_terminal and time.monotonic() - last_line > SECONDS_BETWEEN_LINES:
                last_line = time.monotonic()
                console.print(f"{text}, {share:.0%} done")

        try:
            yield show
        except Exception:  # whoever reads the error needs no bar that stands still
            progress.update(task, visible=False)
            raise


class TrainingConsole:
    """The progress of a training run; `start` and `close` stand around it."""

    def __init__(self, *, total_images: int) -> None:
        self.console = make_console()
        self.total_images = total_images
        self.progress = Progress(
            BarColumn(bar_width=24), TextColumn("{task.percentage:>3.0f}%"), TextColumn("{task.description}"),
            console=self.console, disable=not self.console.is_terminal,
        )  # fmt: skip
        self.task = self.progress.add_task("", total=total_images)
        self.last_line = 0.0
        self.first: tuple[float, int] | None = None  # when the first row came, and its images

    def start(self) -> None:
        """Show the bar."""
        self.progress.start()

    def close(self) -> None:
        """Leave the bar as it stands."""
        self.progress.stop()

    def show(self, row: dict[str, Any]) -> None:
        """One row of metrics: the bar moves; elsewhere a line every few seconds."""
        images = row["progress/images"]
        rate, now = row.get("time/images_per_sec", 0.0), time.monotonic()
        self.first = self.first or (now, images)
        done, seconds = images - self.first[1], now - self.first[0]
        usual = done / seconds if done and seconds else rate  # with evaluations and all
        left = duration((self.total_images - images) / usual) if usual else "-"
        text = (
            f"{row['progress/kimg']:,.1f} kimg  epoch {row['progress/epoch']:.1f}  D {row['loss/d']:.2f}  G {row['loss/g']:.2f}  "
            f"{rate:,.0f} images/s  wait {row['time/data_wait_frac']:.0%}  left {left}"
        )
        self.progress.update(self.task, completed=images, description=text)
        if not self.console.is_terminal and (
            now - self.last_line > SECONDS_BETWEEN_LINES or images >= self.total_images
        ):
            self.last_line = now
            self.console.print(text)

    def say(self, text: str, *, style: str = "") -> None:
        """A line above the bar."""
        self.progress.console.print(escape(text), style=style)
