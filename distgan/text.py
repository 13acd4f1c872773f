"""Numbers, durations, counts and error messages as text for people."""

import html
import sys
from typing import Any, TypeGuard

from shards.errors import printable

NO_VALUE = "–"


def is_number(value: Any) -> TypeGuard[int | float]:
    """Return whether a value is a finite number; booleans are not numbers.

    Integers beyond the range of floats, which a damaged file may hold, count as infinite.
    """
    is_numeric = isinstance(value, int | float) and not isinstance(value, bool)
    return is_numeric and abs(value) <= sys.float_info.max


def format_number(value: Any, *, digits: int = 4) -> str:
    """Return a number rounded to significant digits, or a dash if it is not a finite number.

    Integers and numbers from 1,000 are written in full, with commas.
    """
    if not is_number(value):
        return NO_VALUE
    is_whole = abs(value) >= 1000 or float(value).is_integer()
    return f"{value:,.0f}" if is_whole else f"{value:.{digits}g}"


def format_kimg(images: float) -> str:
    """Return a number of images in thousands, such as `3.4 kimg`."""
    return f"{format_number(images / 1000)} kimg"


def format_epochs(epochs: float, *, digits: int = 4) -> str:
    """Return a length such as `1 epoch` or `2.5 epochs`."""
    number = f"{epochs:,.{digits}g}"
    return f"{number} epoch{'' if number == '1' else 's'}"


def format_bytes(num_bytes: float) -> str:
    """Return a size such as `96 MB` or `1.8 GB`."""
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:,.0f} MB"


def format_duration(seconds: float) -> str:
    """Return a duration such as `92 s`, `14.5 min` or `3.2 h`."""
    if seconds >= 2 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.1f} min" if seconds >= 2 * 60 else f"{seconds:.0f} s"


def format_clock(seconds: float) -> str:
    """Return a duration as minutes and seconds, `3:07`, or with hours, `1:02:07`."""
    minutes, seconds = divmod(int(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def pluralize(count: int, noun: str) -> str:
    """Return a count with its noun: `1 image`, `2,000 images`, `2 classes`."""
    ending = "" if count == 1 else "es" if noun.endswith("s") else "s"
    return f"{count:,} {noun}{ending}"


def first_line(error: BaseException) -> str:
    """Return the first line of an error message, or the error's type if it has no message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def markdown_cell(text: str) -> str:
    """Return a text for a Markdown table, in which HTML and control characters have no effect."""
    return html.escape(printable(text), quote=False).replace("|", "\\|")
