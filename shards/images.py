"""From the bytes of one image to uint8 pixels [C, size, size]: decode, centre square crop, antialiased resize."""

from __future__ import annotations

import io
import re

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from shards.errors import printable

EXTENSIONS = frozenset({".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif"})
MAX_ENCODED_BYTES = 2**28
MAX_PIXELS = 89_478_485  # a quarter of a gigabyte of RGB, where Pillow begins to warn
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
_TOO_MANY_PIXELS = f"more than {MAX_PIXELS:,} pixels"
_NPY_MAGIC = b"\x93NUMPY"
_ORIENTATION_TAG = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class BadImage(Exception):
    """Why an image cannot be used; the same words on every machine."""


def decode_image(data: bytes | NDArray[np.uint8], *, size: int, channels: int) -> NDArray[np.uint8]:
    """The largest centred square of an image as uint8 [channels, size, size].

    `data` is a file (JPEG, PNG, WebP, BMP, first frame of a GIF, or npy of uint8 [C, H, W] or [H, W, C]) or an array
    uint8 [H, W] or [H, W, C]. Orientation is applied, alpha lies on white. Raises BadImage, also for an image of more
    than MAX_PIXELS pixels, which is refused before it is decoded. Pillow warns of what it finds odd but can read.
    """
    try:
        return _decode(data, size, channels)
    except (BadImage, MemoryError):
        raise
    except Exception as error:  # Pillow's readers raise nearly every type
        raise BadImage(_reason(error)) from error


def _decode(data: bytes | NDArray[np.uint8], size: int, channels: int) -> NDArray[np.uint8]:
    image = _open(data)
    # JPEG alone: decode at an eighth, quarter or half of the size where that leaves twice what is needed
    image.draft("L" if channels == 1 else "RGB", (2 * size, 2 * size))
    image.load()
    turn = _TURNS.get(image.getexif().get(_ORIENTATION_TAG, 1)) if image.format else None
    square = _centre_square(_resizable(image), size)
    if turn is not None:
        square = square.transpose(turn)
    if square.mode == "RGBA":
        square = Image.alpha_composite(Image.new("RGBA", square.size, "white"), square)
    mode = "L" if channels == 1 else "RGB"
    pixels = np.asarray(square if square.mode == mode else square.convert(mode))
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


def _resizable(image: Image.Image) -> Image.Image:
    """The image in a mode whose values may be averaged: L, RGB, or RGBA where anything is transparent."""
    if image.mode.startswith("I"):  # 16 bits a pixel
        values = np.asarray(image).astype(np.int64).clip(0, 65535)
        return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
    if image.has_transparency_data:
        return image.convert("RGBA")
    if image.mode in ("L", "RGB"):
        return image
    return image.convert("L" if image.mode == "1" else "RGB")


def _centre_square(image: Image.Image, size: int) -> Image.Image:
    if image.size == (
        size,
        size,
    ):  # Pillow would copy it, which shows in the packing rate of small images
        return image
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, left + side, top + side)
    return image.resize((size, size), Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)


def _npy_pixels(data: bytes) -> NDArray[np.uint8]:
    """The array of an npy file as [H, W] or [H, W, C]; its header is believed only where it fits the bytes."""
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    if version != (1, 0):
        raise BadImage(f"npy version {version[0]}.{version[1]}, where 1.0 is read")
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
    if dtype != np.uint8 or fortran_order or len(shape) not in (2, 3) or 0 in shape:
        raise BadImage(
            f"an npy array {dtype} {list(shape)}, where uint8 [C, H, W] or [H, W, C] is needed"
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
    text = (
        re.sub(r"0x[0-9a-f]+", "0x..", str(error)) or type(error).__name__
    )  # addresses differ from run to run
    return printable(text)[:200]
