"""Images as arrays [C, H, W]: those of 16 bits, of many channels, and what bands are chosen from.

Pillow averages and converts 8-bit grey, RGB and RGBA; everything else is done here, one channel
after another.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor

from shards.errors import BadImage, ShardError

MAX_CHANNELS = 16
MAX_PIXELS = 89_478_485  # a quarter of a gigabyte of RGB, where Pillow begins to warn
TOO_MANY_PIXELS = f"more than {MAX_PIXELS:,} pixels"
NPY_MAGIC = b"\x93NUMPY"
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_ORIENTATION_TAG = 274
_WHITE_IS_ZERO, _PALETTE, _CMYK = 0, 3, 5  # colour models of a TIFF (tag 262)
_ASSOCIATED_ALPHA = 1  # colours were multiplied by it (tag 338)
_LUMA = np.array([0.299, 0.587, 0.114])  # of ITU-R BT.601, as Pillow's
_USUAL = (1, 3, 4)  # numbers of channels that Pillow converts into one another
Planes = NDArray[Any]  # uint8 or uint16 [C, H, W]


def read_planes(data: bytes | NDArray[Any]) -> Planes | None:
    """Return an array or a file as [C, H, W], or None if Pillow reads all that the file holds.

    That is every file of 8 bits with 1, 3 or 4 channels, but not npy. Raises BadImage, and
    ShardError if a package is missing.
    """
    if isinstance(data, np.ndarray):
        return _channels_first(data, last=True)
    if data.startswith(NPY_MAGIC):
        return _channels_first(_npy_array(data), last=False)
    if data.startswith(PNG_MAGIC):
        return _png_planes(data) if data[24:25] == b"\x10" else None
    return _tiff_planes(data) if data.startswith(_TIFF_MAGIC) else None


def is_usual(planes: Planes) -> bool:
    """Return whether Pillow could hold these planes."""
    return planes.dtype == np.uint8 and len(planes) in _USUAL


def convert_planes(
    planes: Planes,
    *,
    size: tuple[int, int],
    channels: int,
    bits: int,
    box: tuple[float, float, float, float],
    background: str,
    bands: Sequence[int] | None,
) -> Planes:
    """Return the part `box` of planes [C, H, W] at a size (height, width), as [channels, H, W].

    `bands` are the numbers of the channels to take, from 1. Raises BadImage if the number of
    channels is another one and none of grey, RGB and RGBA.
    """
    if bands is not None:
        if max(bands) > len(planes):
            raise BadImage(f"{len(planes)} channels, and band {max(bands)} is wanted")
        planes = planes[np.array(bands) - 1]
    planes = _with_channels(planes, channels, background)
    if planes.shape[1:] != size or box != (0, 0, *size[::-1]):
        planes = np.stack([_resized(plane, size, box) for plane in planes])
    return with_bits(planes, bits)


def with_bits(planes: Planes, bits: int) -> Planes:
    """Return planes as uint8 or uint16; full brightness stays full brightness."""
    if bits == 16 and planes.dtype == np.uint8:
        return planes.astype(np.uint16) * 257
    if bits == 8 and planes.dtype == np.uint16:
        return ((planes.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    return planes


def _with_channels(planes: Planes, channels: int, background: str) -> Planes:
    found = len(planes)
    if found == channels:
        return planes
    if found not in _USUAL or channels not in _USUAL:
        raise BadImage(
            f"{found} channel{'s' if found > 1 else ''}, and {channels} are wanted: "
            "convert it, give --channels or choose --bands"
        )
    most = np.iinfo(planes.dtype).max
    if found == 4:
        colour = np.array(ImageColor.getrgb(background)[:3])[:, None, None] * (most / 255)
        alpha = planes[3] / most
        planes = _rounded(planes[:3] * alpha + colour * (1 - alpha), planes.dtype)
    if channels == 1 and len(planes) == 3:
        return _rounded(np.tensordot(_LUMA, planes, 1)[None], planes.dtype)
    if len(planes) == 1:
        planes = planes.repeat(3, axis=0)
    if channels == 4:
        planes = np.concatenate([planes, np.full_like(planes[:1], most)])
    return planes


def _resized(
    plane: NDArray[Any], size: tuple[int, int], box: tuple[float, float, float, float]
) -> NDArray[Any]:
    """Return a part of a plane [H, W] at another size. Pillow resizes floats, but no 16 bits."""
    image = Image.fromarray(plane if plane.dtype == np.uint8 else plane.astype(np.float32))
    lanczos = Image.Resampling.LANCZOS
    resized = image.resize(size[::-1], lanczos, box=box, reducing_gap=3.0)
    return _rounded(np.asarray(resized), plane.dtype)


def _rounded(values: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    if values.dtype == dtype:
        return values
    return np.rint(values).clip(0, np.iinfo(dtype).max).astype(dtype)


# -------------------------------------------------------------------------------------------- files


def _npy_array(data: bytes) -> NDArray[Any]:
    """Return the array of an npy file, if its header fits its length."""
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    if version != (1, 0):
        raise BadImage(f"npy version {version[0]}.{version[1]}, and only 1.0 is read")
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
    if dtype not in (np.uint8, np.uint16) or fortran_order or len(shape) not in (2, 3):
        raise _unusable("an npy array", dtype, shape)
    count, left = np.prod(shape, dtype=object), len(data) - file.tell()
    if left != count * dtype.itemsize:
        raise BadImage(f"npy says {list(shape)} but holds {left // dtype.itemsize} values")
    if 0 in shape:
        raise _unusable("an npy array", dtype, shape)
    return np.frombuffer(data, dtype, offset=file.tell()).reshape(shape)


def _unusable(what: str, dtype: object, shape: Sequence[int]) -> BadImage:
    return BadImage(
        f"{what} {dtype} {list(shape)}, and uint8 or uint16 [C, H, W] or [H, W, C] with 1 to "
        f"{MAX_CHANNELS} channels is needed"
    )


def _channels_first(array: NDArray[Any], *, last: bool) -> Planes:
    """Return an array [H, W], [C, H, W] or [H, W, C] as [C, H, W]; `last` means the latter."""
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if array.ndim == 2:
        return array[None]
    first = array.shape[0] in _USUAL, array.shape[2] in _USUAL
    if last or (not first[0] and first[1]):
        planes = array.transpose(2, 0, 1)
    elif first[0] or array.shape[0] <= MAX_CHANNELS:
        planes = array
    else:
        planes = array.transpose(2, 0, 1)
    if len(planes) > MAX_CHANNELS:
        raise _unusable("an array", array.dtype, array.shape)
    return planes


def _png_planes(data: bytes) -> Planes:
    """Return a PNG of 16 bits. Pillow keeps those of grey, but of colours only a byte at a time."""
    with _open(data, "PNG") as image:
        tile = image.tile[0]  # type: ignore[attr-defined]
        raw_mode = str(tile.args if isinstance(tile.args, str) else tile.args[0])
        if raw_mode == "LA;16B":
            raise BadImage("grey of 16 bits with transparency: save it without, or give --bits 8")
        orientation = _orientation(image)
        if image.mode.startswith("I"):
            return _upright(np.asarray(image).astype(np.uint16)[None], orientation)
        high = np.asarray(image).astype(np.uint16)
    with _open(data, "PNG") as image:  # a reader of the other byte order takes the other byte
        image.tile = [tile._replace(args=raw_mode[:-1] + "L")]  # type: ignore[attr-defined]
        values: Planes = (high << 8) + np.asarray(image)
    return _upright(values.transpose(2, 0, 1), orientation)


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation. Damaged EXIF does not make an image unusable."""
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # Pillow's parser raises nearly every type
        return 1


def _open(data: bytes, format: str) -> Image.Image:
    image = Image.open(io.BytesIO(data), formats=(format,))
    if image.width * image.height > MAX_PIXELS:
        raise BadImage(TOO_MANY_PIXELS)
    return image


def _tiff_planes(data: bytes) -> Planes | None:
    """Return a TIFF of 16 bits, several pages or many channels, or None if it is a usual one."""
    try:
        import tifffile
    except ImportError:
        raise ShardError(
            "reading TIFF files needs a package; type: pip install 'distgan[tiff]'"
        ) from None
    tifffile.logger().setLevel(logging.CRITICAL)  # of damage, one line of ours is enough
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        series, page = file.series[0], file.pages.first
        shape, dtype, axes = series.shape, series.dtype, series.axes
        num_samples = int(page.samplesperpixel)
        is_usual_file = len(series) == 1 and dtype in (np.uint8, np.bool_) and len(shape) < 4
        if is_usual_file and (num_samples == 1 or not _is_multispectral(page)):
            return None
        num_channels = int(np.prod(shape, dtype=object)) // (page.imagewidth * page.imagelength)
        if dtype not in (np.uint8, np.uint16) or not 1 <= num_channels <= MAX_CHANNELS:
            raise _unusable("a TIFF of", dtype, shape)
        if num_channels * page.imagewidth * page.imagelength > 3 * MAX_PIXELS:
            raise BadImage(TOO_MANY_PIXELS)
        if page.photometric in (_PALETTE, _CMYK):
            raise BadImage("a TIFF of 16 bits or several pages in palette or CMYK: save it as RGB")
        array = series.asarray()
        if page.photometric == _WHITE_IS_ZERO and num_samples == 1:
            array = np.iinfo(dtype).max - array
        if {"Y", "X"} <= set(axes):
            array = np.moveaxis(array, (axes.index("Y"), axes.index("X")), (-2, -1))
        tag = page.tags.get(_ORIENTATION_TAG)
        is_multiplied = page.extrasamples[:1] == (_ASSOCIATED_ALPHA,) and num_samples in (2, 4)
    planes = array.reshape(num_channels, *array.shape[-2:])
    if is_multiplied and num_samples == num_channels:
        planes = _divided_by_alpha(planes)
    return _upright(planes, 1 if tag is None else int(tag.value))


def _divided_by_alpha(planes: Planes) -> Planes:
    """Return the colours that were stored multiplied by the alpha, which is the last plane."""
    most = np.iinfo(planes.dtype).max
    alpha = np.maximum(planes[-1:], 1).astype(np.uint32)
    colours = np.minimum(planes[:-1].astype(np.uint32) * most // alpha, most)
    return np.concatenate([colours.astype(planes.dtype), planes[-1:]])


def _is_multispectral(page: Any) -> bool:
    """Return whether the samples of a TIFF page are neither colours, nor grey and alpha."""
    is_grey = int(page.photometric) in (0, 1)
    return is_grey and not (page.samplesperpixel == 2 and page.extrasamples[:1] in ((1,), (2,)))


def _upright(planes: Planes, orientation: int) -> Planes:
    """Return planes as they are to be seen, which the TIFF and EXIF tag 274 says."""
    if orientation in (5, 7):
        planes = planes.swapaxes(1, 2)
    turns = {3: 2, 6: 3, 7: 2, 8: 1}.get(orientation, 0)
    flips = {2: (2,), 4: (1,)}.get(orientation, ())
    return np.ascontiguousarray(np.flip(np.rot90(planes, turns, axes=(1, 2)), flips))
