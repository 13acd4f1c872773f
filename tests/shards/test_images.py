"""Decoding, cropping and resizing single images."""

from __future__ import annotations

import io
import struct
import zlib
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from shards.images import BadImage, decode_image

RED, GREEN, BLUE = (254, 0, 0), (0, 254, 0), (0, 0, 254)


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def quadrants() -> Image.Image:
    """Red and green above blue and white."""
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:16, :16], pixels[:16, 16:], pixels[16:, :16], pixels[16:, 16:] = (
        RED,
        GREEN,
        BLUE,
        (254, 254, 254),
    )
    return Image.fromarray(pixels)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "BMP", "GIF"])
def test_every_format_is_read(format: str) -> None:
    """The formats give uint8 [C, H, W] of nearly the colours that were saved."""
    options = {"quality": 100} if format in ("JPEG", "WEBP") else {}
    pixels = decode_image(encoded(quadrants(), format, **options), size=8, channels=3)
    assert pixels.shape == (3, 8, 8)
    assert pixels.dtype == np.uint8
    assert np.allclose(pixels[:, 1, 1], RED, atol=12)
    assert np.allclose(pixels[:, 6, 1], BLUE, atol=12)


def test_same_size_is_lossless() -> None:
    """An image that already has the size keeps every pixel."""
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    assert np.array_equal(
        decode_image(encoded(Image.fromarray(pixels)), size=32, channels=3),
        pixels.transpose(2, 0, 1),
    )
    assert np.array_equal(decode_image(pixels, size=32, channels=3), pixels.transpose(2, 0, 1))


@pytest.mark.parametrize("shape", [(32, 96), (96, 32)])
def test_the_centre_square_is_taken(shape: tuple[int, int]) -> None:
    """Of an oblong image the middle remains, but for what antialiasing mixes in at its border."""
    pixels = np.zeros((*shape, 3), np.uint8)
    pixels[tuple(slice((side - 32) // 2, (side + 32) // 2) for side in shape)] = GREEN
    square = decode_image(encoded(Image.fromarray(pixels)), size=16, channels=3)
    assert (square[:, 4:-4, 4:-4] == np.array(GREEN)[:, None, None]).all()


def test_a_part_of_the_wanted_proportions_is_taken() -> None:
    """Wide pixels come from the middle rows of a square, in its full width."""
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[16:48] = GREEN
    wide = decode_image(encoded(Image.fromarray(pixels)), size=(16, 32), channels=3)
    assert wide.shape == (3, 16, 32)
    assert (wide[:, 3:-3] == np.array(GREEN)[:, None, None]).all()


def test_stretching_keeps_the_whole_image() -> None:
    """A bar at the left edge of a wide image remains, as a quarter of the pixels."""
    pixels = np.zeros((32, 128, 3), np.uint8)
    pixels[:, :32] = GREEN
    whole = decode_image(encoded(Image.fromarray(pixels)), size=32, channels=3, fit="stretch")
    assert (whole[:, :, :4] == np.array(GREEN)[:, None, None]).all()
    assert not whole[:, :, 12:].any()


def test_a_turned_photograph_becomes_upright_before_it_is_wide() -> None:
    """Orientation 6 turns the stored columns into the rows of the result."""
    pixels = np.zeros((64, 32, 3), np.uint8)
    pixels[:32] = GREEN  # the right half once it is turned clockwise
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.fromarray(pixels), "PNG", exif=exif)
    upright = decode_image(data, size=(16, 32), channels=3)
    assert upright.shape == (3, 16, 32)
    halves = np.abs(upright[:, :, 20:].astype(int) - np.array(GREEN)[:, None, None])
    assert halves.max() < 3 and upright[:, :, :12].max() < 3


def test_resizing_is_antialiased() -> None:
    """A fine checkerboard becomes grey, not a pattern."""
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    small = decode_image(encoded(Image.fromarray(board)), size=16, channels=1)
    assert np.abs(small.astype(int) - 127).max() < 6


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(format: str, orientation: int) -> None:
    """An image stored turned, with the EXIF tag that says so, comes out upright."""
    stored_of_upright = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # what undoes each orientation
    image = quadrants()
    if orientation > 1:
        image = image.transpose(Image.Transpose(stored_of_upright[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {} if format == "PNG" else {"quality": 100}
    upright = decode_image(encoded(image, format, exif=exif, **options), size=32, channels=3)
    assert np.allclose(upright[:, 8, 8], RED, atol=12)
    assert np.allclose(upright[:, 8, 24], GREEN, atol=12)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"\xff" * 50]
)
def test_garbage_in_place_of_exif_is_ignored(format: str, exif: bytes) -> None:
    """A sound image stays one, the right way up."""
    data = encoded(quadrants(), format, exif=exif)
    assert np.allclose(decode_image(data, size=32, channels=3)[:, 8, 8], RED, atol=12)


def test_transparent_grey_of_sixteen_bits_is_white() -> None:
    """The colour that a PNG file names as transparent may have two bytes."""
    values = np.full((8, 8), 1000, np.uint16)
    values[:4] = 40000
    data = encoded(Image.fromarray(values))
    chunk = b"tRNS" + (1000).to_bytes(2)
    start = data.index(b"IDAT") - 4
    chunk = (2).to_bytes(4) + chunk + zlib.crc32(chunk).to_bytes(4)
    flat = decode_image(data[:start] + chunk + data[start:], size=8, channels=1)
    assert flat[0, [0, 7], 0].tolist() == [156, 255]


@pytest.mark.parametrize("channels", [1, 3])
def test_alpha_lies_on_white(channels: int) -> None:
    """Transparent pixels are white, half-transparent black is grey, whatever their colour."""
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[:, :4] = (255, 0, 0, 0)
    pixels[:, 4:] = (0, 0, 0, 128)
    flat = decode_image(encoded(Image.fromarray(pixels)), size=8, channels=channels)
    assert (flat[:, :, :4] == 255).all()
    assert (np.abs(flat[:, :, 4:].astype(int) - 127) <= 1).all()


def test_palettes_and_transparent_colours() -> None:
    """A palette is resolved before resizing, and its transparent entry is white."""
    image = quadrants().quantize(4)
    assert np.allclose(decode_image(encoded(image), size=32, channels=3)[:, 1, 1], RED, atol=2)
    red = image.getpixel((0, 0))
    data = encoded(image, transparency=red)
    assert (decode_image(data, size=32, channels=3)[:, 1, 1] == 255).all()
    assert np.allclose(decode_image(data, size=32, channels=3)[:, 1, 30], GREEN, atol=2)


def test_sixteen_bits_become_eight() -> None:
    """A 16-bit grey image keeps its range instead of being cut at 255."""
    values = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    grey = decode_image(encoded(Image.fromarray(values)), size=16, channels=1)
    assert np.array_equal(grey.ravel(), np.arange(256))


def test_one_bit_and_cmyk() -> None:
    """A 1-bit image has black and white; CMYK becomes the colours that a person sees."""
    bits = Image.fromarray(np.arange(64).reshape(8, 8) % 2 == 0)
    assert set(np.unique(decode_image(encoded(bits), size=8, channels=1))) == {0, 255}
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    assert np.allclose(
        decode_image(encoded(cmyk, "JPEG", quality=100), size=8, channels=3)[:, 4, 4], RED, atol=12
    )


@pytest.mark.parametrize("format", ["GIF", "WEBP"])
def test_the_first_frame_is_taken(format: str) -> None:
    """Of an animation the first frame remains."""
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN)]
    options = {"lossless": True} if format == "WEBP" else {}
    data = encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)
    assert np.allclose(decode_image(data, size=8, channels=3)[:, 4, 4], RED, atol=2)


def test_npy_is_read_either_way() -> None:
    """An npy of uint8 is taken as [C, H, W] or [H, W, C]."""
    pixels = np.random.default_rng(0).integers(0, 256, (3, 16, 16), dtype=np.uint8)
    for array in (pixels, pixels.transpose(1, 2, 0).copy()):
        assert np.array_equal(decode_image(npy(array), size=16, channels=3), pixels)
    assert np.array_equal(decode_image(npy(pixels[:1]), size=16, channels=1), pixels[:1])


def header_of(shape: str) -> bytes:
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


BOMB = (
    b"\x89PNG\r\n\x1a\n"
    + struct.pack(">I", 13)
    + (ihdr := b"IHDR" + struct.pack(">IIBBBBB", 12_000, 12_000, 1, 0, 0, 0, 0))
    + struct.pack(">I", zlib.crc32(ihdr))
    + struct.pack(">I", 100)
    + b"IDAT"
)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not a JPEG"),
        (b"no image at all", "not a JPEG"),
        (encoded(quadrants())[:-60], "truncated"),
        (BOMB, "pixels"),
        (npy(np.zeros((3, 8, 8), np.float32)), "float32"),
        (npy(np.zeros((5, 8, 8), np.uint8)), "channels"),
        (npy(np.array([{}], object)), "object"),
        (header_of("(3, 1000000000, 1000000000)"), "holds 0"),
        (header_of("(3, __import__('os').getpid())"), "malformed"),
        (header_of("(3, -8, 8)") + bytes(192), "says"),
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bad_images_are_bad_images(data: bytes, reason: str) -> None:
    """What cannot be used is told in words, the same each time."""
    messages = set()
    for _ in range(2):
        with pytest.raises(BadImage, match=reason) as caught:
            decode_image(data, size=8, channels=3)
        messages.add(str(caught.value))
    assert len(messages) == 1


@pytest.mark.filterwarnings("ignore")
@given(st.sampled_from(["PNG", "JPEG", "WEBP", "BMP", "GIF", "NPY"]), st.data())
@settings(max_examples=150, deadline=None)
def test_damaged_images_end_in_bad_image(format: str, data: st.DataObject) -> None:
    """Flipped or missing bytes give an image or BadImage, nothing else."""
    whole = npy(np.zeros((3, 8, 8), np.uint8)) if format == "NPY" else encoded(quadrants(), format)
    damaged = bytearray(whole[: data.draw(st.integers(0, len(whole)))])
    for _ in range(data.draw(st.integers(0, 3)) if damaged else 0):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    with suppress(BadImage):
        assert decode_image(bytes(damaged), size=8, channels=3).shape == (3, 8, 8)
