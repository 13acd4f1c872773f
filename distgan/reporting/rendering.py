"""Templates into files and pictures into text: what the pages of one run and of many share."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from distgan.reporting.run_record import figures

MOST_PIXELS = 560  # width of a picture in a page
QUALITY = 88  # of JPEG


def write_page(template: str, out: Path, **values: Any) -> Path:
    """Fill a template, in which every text is escaped, and put it in place whole."""
    environment = Environment(
        loader=PackageLoader("distgan.reporting"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["figures"] = figures
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.tmp")
    text = environment.get_template(template).render(**values)
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)  # on a full disk a part of it would lie in the way
    return out


def duration(seconds: float) -> str:
    """Seconds in words."""
    hours, minutes = seconds / 3600, seconds / 60
    return (
        f"{hours:.1f} h"
        if hours >= 2
        else f"{minutes:.1f} min"
        if minutes >= 2
        else f"{seconds:.0f} s"
    )


def thinned(items: Sequence[Any], most: int) -> list[Any]:
    """At most so many of them, evenly, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(place * (len(items) - 1) / (most - 1))] for place in range(most)]


def picture(path: Path) -> str | None:
    """A picture file for the page, None where it cannot be read; images that were enlarged go back to their own size."""
    try:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
    except OSError:  # no file, or no picture
        return None
    halved = image.reduce(2)
    if halved.resize(image.size, Image.Resampling.NEAREST).tobytes() == image.tobytes():
        image = halved
    return data_uri(image)


def data_uri(image: Image.Image) -> str:
    """A JPEG in base64, no wider than MOST_PIXELS."""
    if image.width > MOST_PIXELS:
        height = round(image.height * MOST_PIXELS / image.width)
        image = image.resize((MOST_PIXELS, height), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    # Not optimised: that takes a buffer which noise overflows.
    image.convert("RGB").save(buffer, "JPEG", quality=QUALITY, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
