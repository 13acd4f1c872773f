"""One image file to uint8 pixels [C, H, W]: decode, crop the centre, resize."""

from __future__ import annotations

import io
import re
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from shards.errors import printable

EXTENSIONS = frozenset({".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif"})
MAX_ENCODED_BYTES = 2**28
MAX_PIXELS = 89_478_485  # a quarter of a gigabyte of RGB, where Pillow begins to warn
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
Fit = Literal["crop", "stretch"]
_TOO_MANY_PIXELS = f"more than {MAX_PIXELS:,} pixels"
_NPY_MAGIC = b"\x93NUMPY"
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


class BadImage(Exception):
    """The reason why an image cannot be used, in the same words on every machine."""


def decode_image(
    data: bytes | NDArray[np.uint8],
    *,
    size: int | tuple[int, int],
    channels: int,
    fit: Fit = "crop",
) -> NDArray[np.uint8]:
    """Return an image as uint8 [channels, H, W], at a size of (H, W), or one number for both.

    `crop` takes the largest centred part of these proportions; `stretch` takes the whole image and
    changes its proportions.

    `data` is a file (JPEG, PNG, WebP, BMP, the first frame of a GIF, or npy of uint8 [C, H, W] or
    [H, W, C]) or an array uint8 [H, W] or [H, W, C]. The EXIF orientation is applied, and
    transparent pixels become white. Raises BadImage, also for an image of more than MAX_PIXELS
    pixels, which is refused before it is decoded. Pillow may warn of odd but readable content.
    """
    try:
        height, width = (size, size) if isinstance(size, int) else size
        return _decode(data, height, width, channels, fit)
    except (BadImage, MemoryError):
        raise
    except Exception as error:  # Pillow's readers raise nearly every type
        raise BadImage(_reason(error)) from error


def _decode(
    data: bytes | NDArray[np.uint8], height: int, width: int, channels: int, fit: Fit
) -> NDArray[np.uint8]:
    image, longest = _open(data), max(height, width)
    # JPEG only: decode at 1/8, 1/4 or 1/2 of the size if that leaves twice what is needed.
    image.draft("L" if channels == 1 else "RGB", (2 * longest, 2 * longest))
    image.load()
    transpose = _exif_transpose(image)
    if transpose in _SWAPS_SIDES:
        height, width = width, height
    part = _resized(_averageable(image), width, height, fit)
    if transpose is not None:
        part = part.transpose(transpose)
    if part.mode == "RGBA":
        part = Image.alpha_composite(Image.new("RGBA", part.size, "white"), part)
    mode = "L" if channels == 1 else "RGB"
    pixels = np.asarray(part if part.mode == mode else part.convert(mode))
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def _open(data: bytes | NDArray[np.uint8]) -> Image.Image:
    if isinstance(data, np.ndarray):
        return Image.fromarray(data)
    if data.startswith(_NPY_MAGIC):
        return Image.fromarray(_npy_pixels(data))
    image = Image.open(io.BytesIO(data), formats=_FORMATS)
    if image.width * image.height > MAX_PIXELS:
        raise BadImage(_TOO_MANY_PIXELS)
    return image


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
    if image.mode in ("L", "RGB"):
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
    whole_width, whole_height = image.size
    part_width, part_height = float(whole_width), float(whole_height)
    if fit == "crop" and whole_width * height > whole_height * width:
        part_width = whole_height * width / height
    elif fit == "crop":
        part_height = whole_width * height / width
    left, top = (whole_width - part_width) / 2, (whole_height - part_height) / 2
    box = (left, top, left + part_width, top + part_height)
    return image.resize((width, height), Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)


def _npy_pixels(data: bytes) -> NDArray[np.uint8]:
    """Return the array of an npy file as [H, W] or [H, W, C], if its header fits its length."""
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    if version != (1, 0):
        raise BadImage(f"npy version {version[0]}.{version[1]}, and only 1.0 is read")
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
    if dtype != np.uint8 or fortran_order or len(shape) not in (2, 3) or 0 in shape:
        raise BadImage(
            f"an npy array {dtype} {list(shape)}, and uint8 [C, H, W] or [H, W, C] is needed"
        )
    pixels = np.frombuffer(data, np.uint8, offset=file.tell())
    if pixels.size != np.prod(shape, dtype=object):
        raise BadImage(f"npy says {list(shape)} but holds {pixels.size} values")
    pixels = pixels.reshape(shape)
    if pixels.ndim == 3 and shape[0] in (1, 3, 4):
        pixels = pixels.transpose(1, 2, 0)
    elif pixels.ndim == 3 and shape[2] not in (1, 3, 4):
        raise BadImage(f"an npy array {list(shape)} with neither 1, 3 nor 4 channels")
    return pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not a JPEG, PNG, WebP, BMP or GIF image"
    if isinstance(error, Image.DecompressionBombError):
        return _TOO_MANY_PIXELS
    text = str(error) or type(error).__name__
    return printable(re.sub(r"0x[0-9a-f]+", "0x..", text))[:200]  # addresses differ between runs
