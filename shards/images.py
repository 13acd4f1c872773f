"""One image file to pixels [C, H, W]: decode, crop the centre, resize."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from shards.colours import has_profile, profile_mode, to_srgb
from shards.errors import BadImage, ShardError, printable
from shards.planes import (
    MAX_PIXELS,
    PNG_MAGIC,
    TOO_MANY_PIXELS,
    Planes,
    convert_planes,
    is_usual,
    read_planes,
    with_bits,
)

EXTENSIONS = frozenset({".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
MAX_ENCODED_BYTES = 2**28
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
OTHER_DEPTH = "choose with --bits"  # ends the reason why an image of another depth is left out
Fit = Literal["crop", "stretch"]
_ORIENTATION_TAG = 0x0112
_TRANSPOSE_OF_ORIENTATION = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_SWAPS_SIDES = {  # between height and width
    Image.Transpose.TRANSPOSE,
    Image.Transpose.ROTATE_270,
    Image.Transpose.TRANSVERSE,
    Image.Transpose.ROTATE_90,
}


def decode_image(
    data: bytes | NDArray[Any],
    *,
    size: int | tuple[int, int],
    channels: int,
    bits: int = 8,
    fit: Fit = "crop",
    background: str = "white",
    bands: Sequence[int] | None = None,
    any_bits: bool = True,
) -> NDArray[Any]:
    """Return an image as [channels, H, W], at a size of (H, W), or one number for both.

    It is uint8, or uint16 with 16 `bits`. `crop` takes the largest centred part of these
    proportions; `stretch` takes the whole image and changes its proportions. `bands` are the
    numbers of the channels to take, from 1.

    `data` is a file (JPEG, PNG, TIFF, WebP, BMP, the first frame of a GIF, or npy of uint8 or
    uint16 [C, H, W] or [H, W, C]) or an array [H, W] or [H, W, C]. The EXIF orientation is applied,
    colours are converted to sRGB, and without a fourth channel transparent pixels get the colour
    `background`. Raises BadImage, also for an image of more than MAX_PIXELS pixels, which is
    refused before it is decoded, and, unless `any_bits`, for one of another depth. Pillow may warn
    of odd but readable content.
    """
    try:
        height, width = (size, size) if isinstance(size, int) else size
        planes = None if bits == 8 and any_bits and _is_grey_alpha(data) else read_planes(data)
        found = 16 if planes is not None and planes.dtype == np.uint16 else 8
        if found != bits and not any_bits:
            raise BadImage(f"{found} bits, and the first image has {bits}: {OTHER_DEPTH}")
        image = _image_of(data, planes, bits)
        if image is not None and bands is None and channels in (1, 3, 4):
            return with_bits(_decode(image, height, width, channels, fit, background), bits)
        if planes is None:
            planes = _planes_of(image)
        box = _part(planes.shape[2], planes.shape[1], width, height, fit)
        return convert_planes(
            planes, size=(height, width), channels=channels, bits=bits, box=box,
            background=background, bands=bands,
        )  # fmt: skip
    except (BadImage, ShardError, MemoryError):
        raise
    except Exception as error:  # Pillow's readers raise nearly every type
        raise BadImage(_reason(error)) from error


def _is_grey_alpha(data: bytes | NDArray[Any]) -> bool:
    """Return whether a file is a PNG of grey with alpha in 16 bits, of which Pillow keeps 8."""
    return isinstance(data, bytes) and data.startswith(PNG_MAGIC) and data[24:26] == b"\x10\x04"


def describe_image(data: bytes | NDArray[Any]) -> tuple[int, int]:
    """Return the number of channels and the bits of an image; raises BadImage."""
    try:
        planes = read_planes(data)
        if planes is None:
            planes = _planes_of(_image_of(data, None, 8))
        return len(planes), 8 * planes.itemsize
    except (BadImage, ShardError, MemoryError):
        raise
    except Exception as error:
        raise BadImage(_reason(error)) from error


def _image_of(data: bytes | NDArray[Any], planes: Planes | None, bits: int) -> Image.Image | None:
    """Return what Pillow can hold of an image, or None: not 16 bits, nor many channels."""
    if planes is not None and is_usual(planes):
        grey = len(planes) == 1
        return Image.fromarray(
            planes[0] if grey else np.ascontiguousarray(planes.transpose(1, 2, 0))
        )
    is_reducible = bits == 8 and isinstance(data, bytes) and data.startswith(PNG_MAGIC)
    if not isinstance(data, bytes) or not (planes is None or is_reducible):
        return None
    image = Image.open(io.BytesIO(data), formats=_FORMATS)
    if image.width * image.height > MAX_PIXELS:
        raise BadImage(TOO_MANY_PIXELS)
    return image


def _planes_of(image: Image.Image | None) -> Planes:
    """Return the pixels of an image as [C, H, W], upright and in sRGB."""
    assert image is not None, "what has no planes is an image"
    image.load()
    transpose = _exif_transpose(image)
    image = _in_srgb(_averageable(image), image.info.get("icc_profile"))
    image = image if transpose is None else image.transpose(transpose)
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _decode(
    image: Image.Image, height: int, width: int, channels: int, fit: Fit, background: str
) -> NDArray[np.uint8]:
    longest = max(height, width)
    # JPEG only: decode at 1/8, 1/4 or 1/2 of the size if that leaves twice what is needed. A
    # profile describes colours, so these are needed even for grey.
    image.draft("L" if channels == 1 and not has_profile(image) else "RGB", (2 * longest,) * 2)
    image.load()
    transpose, profile = _exif_transpose(image), image.info.get("icc_profile")
    if transpose in _SWAPS_SIDES:
        height, width = width, height
    part = _in_srgb(_resized(_averageable(image), width, height, fit), profile)
    if transpose is not None:
        part = part.transpose(transpose)
    if part.mode == "RGBA" and channels != 4:
        part = Image.alpha_composite(Image.new("RGBA", part.size, background), part)
    mode = {1: "L", 3: "RGB", 4: "RGBA"}[channels]
    pixels = np.asarray(part if part.mode == mode else part.convert(mode))
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def _in_srgb(image: Image.Image, profile: Any) -> Image.Image:
    return to_srgb(image, profile) if profile else image


def _exif_transpose(image: Image.Image) -> Image.Transpose | None:
    """Return what undoes the EXIF orientation. Damaged EXIF does not make an image unusable."""
    if not image.format:  # an array
        return None
    try:
        return _TRANSPOSE_OF_ORIENTATION.get(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # Pillow's parser raises nearly every type
        return None


def _averageable(image: Image.Image) -> Image.Image:
    """Return the image in a mode whose values may be averaged: L, RGB, or RGBA if transparent."""
    if image.mode.startswith("I"):
        return _eight_bits(image)
    if image.has_transparency_data:
        return image.convert("RGBA")
    if image.mode in ("L", "RGB") or (image.mode == "CMYK" and profile_mode(image) == "CMYK"):
        return image
    return image.convert("L" if image.mode == "1" else "RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Return a 16-bit grey image as L, or as RGBA if it names a transparent grey."""
    values = np.asarray(image).astype(np.int64).clip(0, 65535)
    grey = Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
    transparent = image.info.get("transparency")
    if not isinstance(transparent, int):
        return grey
    alpha = np.where(values == transparent, 0, 255).astype(np.uint8)
    return Image.merge("LA", (grey, Image.fromarray(alpha))).convert("RGBA")


def _resized(image: Image.Image, width: int, height: int, fit: Fit) -> Image.Image:
    """Return the whole image, or its largest centred part of these proportions, at this size."""
    if image.size == (width, height):
        return image  # `resize` would copy it, which slows down the packing of small images
    box = _part(*image.size, width, height, fit)
    return image.resize((width, height), Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)


def _part(
    whole_width: int, whole_height: int, width: int, height: int, fit: Fit
) -> tuple[float, float, float, float]:
    """Return left, top, right and bottom of the part of an image that is kept."""
    part_width, part_height = float(whole_width), float(whole_height)
    if fit == "crop" and whole_width * height > whole_height * width:
        part_width = whole_height * width / height
    elif fit == "crop":
        part_height = whole_width * height / width
    left, top = (whole_width - part_width) / 2, (whole_height - part_height) / 2
    return left, top, left + part_width, top + part_height


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not a JPEG, PNG, TIFF, WebP, BMP or GIF image"
    if isinstance(error, Image.DecompressionBombError):
        return TOO_MANY_PIXELS
    text = str(error) or type(error).__name__
    return printable(re.sub(r"0x[0-9a-f]+", "0x..", text))[:200]  # addresses differ between runs
