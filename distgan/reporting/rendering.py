"""Rendering for all report pages: templates to HTML, and images to data URIs."""

import base64
import io
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from distgan.text import format_kimg, format_number
from shards.files import read_regular, write_atomic

MAX_WIDTH = 560  # of an image in a page, in pixels
JPEG_QUALITY = 88


def write_page(out: Path, text: str) -> Path:
    """Write a page to a file; raises OSError."""
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, text.encode(errors="replace"))  # paths need not be UTF-8
    return out


def render(template: str, **values: Any) -> str:
    """Return a rendered template."""
    return make_environment().get_template(template).render(**values)


@cache  # compiling the templates takes most of the time
def make_environment() -> Environment:
    """Return the templates with their filters; they escape all text."""
    environment = Environment(
        loader=PackageLoader("distgan.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": format_number, "kimg": format_kimg}
    return environment


def pick_evenly(items: Sequence[Any], count: int) -> list[Any]:
    """Return at most `count` items at even distances, the first and the last among them."""
    if len(items) <= count:
        return list(items)
    return [items[round(place * (len(items) - 1) / (count - 1))] for place in range(count)]


def image_file_uri(path: Path) -> str | None:
    """Return an image file as a data URI, in its original size if it was enlarged twofold.

    None if there is no such file, or it is no image.
    """
    try:
        return encode_file(path, path.stat().st_mtime_ns)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None


@lru_cache(maxsize=64)  # a live page shows the same files again and again
def encode_file(path: Path, _: int) -> str:
    """Return an image file of a modification time as a data URI; raises OSError."""
    with Image.open(io.BytesIO(read_regular(path))) as opened:
        image = opened.convert("RGB")
    halved = image.reduce(2)
    is_doubled = halved.resize(image.size, Image.Resampling.NEAREST).tobytes() == image.tobytes()
    return image_uri(halved if is_doubled else image)


def image_uri(image: Image.Image) -> str:
    """Return an image as a data URI: a JPEG no wider than MAX_WIDTH."""
    if image.width > MAX_WIDTH:
        height = round(image.height * MAX_WIDTH / image.width)
        image = image.resize((MAX_WIDTH, height), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    # Without `optimize`, whose buffer is too small for an image of noise.
    image.convert("RGB").save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
