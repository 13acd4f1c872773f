"""Output for people: tables, messages and progress. The only module that imports rich.

In a terminal, tables fit its width and progress is a bar. Elsewhere, as in the log of a job, each
message is one plain line and progress is a line every few seconds.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, JustifyMethod
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from distgan.text import format_clock
from shards.errors import printable

SECONDS_BETWEEN_LINES = 10.0
UNLIMITED_WIDTH = 10_000
NARROW = 110  # a terminal of fewer columns shows a shorter progress bar


def make_console(*, stderr: bool = False) -> Console:
    """Return a console that wraps lines only in a terminal."""
    console = Console(stderr=stderr, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = UNLIMITED_WIDTH
    return console


def plain(value: Any) -> str:
    """Return a value as text for rich, without effect of markup and control characters in it."""
    text = "none" if value is None else str(value)
    return escape("\n".join(map(printable, text.split("\n"))))


def say(text: str, *, style: str = "") -> None:
    """Print a message."""
    make_console().print(plain(text), style=style)


def say_in_terminal(text: str) -> None:
    """Print a message for someone who waits at a terminal; logs do not need it."""
    if make_console().is_terminal:
        say(text, style="dim")


def show_warning(text: str) -> None:
    """Print a warning to standard error."""
    make_console(stderr=True).print(f"[bold yellow]warning:[/] {plain(text)}")


def show_error(text: str) -> None:
    """Print an error to standard error."""
    make_console(stderr=True).print(f"[bold red]error:[/] {plain(text)}")


def show_table(title: str, rows: Sequence[tuple[str, Any]]) -> None:
    """Print names and values under a title, without a frame if that keeps all words whole."""
    console = make_console()
    if not console.is_terminal:
        console.print(plain(title))
        for name, value in rows:
            console.print(f"  {plain(name)}: {plain(value)}")
        return
    table = Table(title=plain(title), title_justify="left", show_header=False)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold", min_width=longest_word(value for _, value in rows))
    for name, value in rows:
        table.add_row(plain(name), plain(value))
    frame = table.box
    if smallest_width(console, table) > console.width:
        table.box, table.pad_edge = None, False
    if smallest_width(console, table) > console.width:
        table.box, table.pad_edge, table.columns[1].min_width = frame, True, None
    console.print(table)


def longest_word(values: Iterable[Any]) -> int:
    """Return the number of characters of the longest word of values as text."""
    return max((len(word) for value in values for word in plain(value).split()), default=1)


def smallest_width(console: Console, table: Table) -> int:
    """Return how many columns a table needs."""
    unlimited = console.options.update(width=UNLIMITED_WIDTH)
    return console.measure(table, options=unlimited).minimum


def show_columns(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table whose first column has names and whose others have numbers.

    Cells wrap only between words. If the terminal is too narrow for that, each row becomes a block
    of lines.
    """
    console = make_console()
    table = Table(box=SIMPLE_HEAD)
    for number, cells in enumerate(zip(head, *rows, strict=True)):
        justify: JustifyMethod = "right" if number else "left"
        table.add_column(plain(head[number]), justify=justify, min_width=longest_word(cells))
    for row in rows:
        table.add_row(*map(plain, row))
    if smallest_width(console, table) <= console.width:
        console.print(table)
        return
    for name, *values in rows:
        console.print(f"\n{plain(name)}", style="bold")
        block = Table.grid(padding=(0, 2), pad_edge=True)
        for row in zip(head[1:], values, strict=True):
            block.add_row(*map(plain, row))
        console.print(block)
    console.print()


class ProgressBar:
    """A progress bar in a terminal, a line every few seconds elsewhere."""

    def __init__(self, *columns: ProgressColumn, text: str = "", total: float | None = None):
        self.console = make_console()
        is_hidden = not self.console.is_terminal
        self.progress = Progress(*columns, console=self.console, disable=is_hidden)
        self.task = self.progress.add_task(plain(text), total=total)
        self.last_line = time.monotonic()
        self.is_used = False

    @property
    def is_narrow(self) -> bool:
        """Whether there is room only for the essentials."""
        return self.console.width < NARROW

    def start(self) -> None:
        """Show the bar."""
        self.progress.start()

    def update(self, done: float, *, total: float, text: str, line: str) -> None:
        """Show the progress, with `text` beside the bar; or `line` if it is time for one."""
        self.is_used = True
        self.progress.update(self.task, completed=done, total=total, description=plain(text))
        is_due = time.monotonic() - self.last_line > SECONDS_BETWEEN_LINES
        if not self.console.is_terminal and (is_due or done >= total):
            self.last_line = time.monotonic()
            self.console.print(plain(line))

    def close(self, *, keep: bool = True) -> None:
        """Stop updating, and remove the bar if it is not to be kept or never showed progress."""
        if not (keep and self.is_used):
            self.progress.update(self.task, visible=False)
        self.progress.stop()


@contextmanager
def open_bar(what: str, last: ProgressColumn) -> Iterator[ProgressBar]:
    """Yield a progress bar that disappears if there is an error."""
    bar = ProgressBar(
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), last, text=what
    )
    bar.start()
    try:
        yield bar
    except BaseException:
        bar.close(keep=False)
        raise
    bar.close()


@contextmanager
def counting_progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """Yield `show(done, total)` for a number of images; shows their rate, too."""
    started = time.monotonic()
    already: int | None = None  # done by an earlier, interrupted command
    with open_bar(what, TimeRemainingColumn()) as bar:

        def show(done: int, total: int) -> None:
            nonlocal already
            already = done if already is None else already
            rate = (done - already) / max(time.monotonic() - started, 1e-9)
            left = format_clock((total - done) / rate) if rate else "unknown time"
            text = f"{what}: {done:,} of {total:,} images, {rate:,.0f} images/s"
            bar.update(done, total=total, text=text, line=f"{text}, {left} left")

        yield show


@contextmanager
def accuracy_progress(what: str) -> Iterator[Callable[[float, float | None, float], None]]:
    """Yield `show(fraction done, accuracy or None, most seconds left)` for a classifier."""
    with open_bar(what, TextColumn("{task.percentage:>3.0f}%")) as bar:

        def show(fraction: float, accuracy: float | None, seconds_left: float) -> None:
            left = f"at most {format_clock(seconds_left)} left"
            correct = "" if accuracy is None else f", {accuracy:.1%} of held-out images correct"
            text = f"{what}{correct}, {left}"
            bar.update(fraction, total=1.0, text=text, line=f"{text}, {fraction:.0%} done")

        yield show


class TrainingConsole:
    """The progress of a training run."""

    def __init__(self, *, total_images: int) -> None:
        self.total_images = total_images
        self.bar = ProgressBar(
            BarColumn(bar_width=12),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.description}"),
            total=total_images,
        )
        self.bar.last_line = 0.0  # the first report is printed at once
        self.first: tuple[float, int] | None = None  # time and images of the first report

    def close(self) -> None:
        """Stop updating the bar."""
        self.bar.close()

    def show(self, row: dict[str, Any]) -> None:
        """Show a row of metrics; the first one starts the bar."""
        self.bar.start()
        images, kimg = row["progress/images"], f"{row['progress/kimg']:,.1f} kimg"
        loss = f"loss D {row['loss/d']:.2f} G {row['loss/g']:.2f}"
        speed = self.speed(row)
        rate = f"{speed:,.0f} images/s"
        wait = f"data wait {row['time/data_wait_frac']:.0%}"
        left = f"{format_clock((self.total_images - images) / speed) if speed else '-'} left"
        line = "  ".join([kimg, f"epoch {row['progress/epoch']:.1f}", loss, rate, wait, left])
        text = "  ".join([kimg, loss, rate, left]) if self.bar.is_narrow else line
        self.bar.update(images, total=self.total_images, text=text, line=line)

    def speed(self, row: dict[str, Any]) -> float:
        """Return the images per second since the first report, pauses included."""
        images, now = row["progress/images"], time.monotonic()
        self.first = self.first or (now, images)
        done, seconds = images - self.first[1], now - self.first[0]
        return done / seconds if done and seconds else row.get("time/images_per_sec", 0.0)

    @contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """Show beside the bar what the run does while it takes no steps."""
        progress, task = self.bar.progress, self.bar.progress.tasks[0]
        before = task.description
        progress.update(task.id, description=plain(f"{what} ..."), refresh=True)
        yield
        progress.update(task.id, description=before)

    def say(self, text: str, *, style: str = "") -> None:
        """Print a message above the bar."""
        self.bar.console.print(plain(text), style=style)
