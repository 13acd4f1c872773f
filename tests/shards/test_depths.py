"""Files of one bit and of 16 bits: colours, transparency and orientation."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards.errors import ShardError
from shards.images import BadImage, decode_image
from shards.pack import pack
from tests.shards.test_pixels import noise, png_of_16_bits, tiff, write


def png_chunk(kind: bytes, data: bytes) -> bytes:
    """Return a chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize("bits", [8, 16])
def test_turned_pngs_of_sixteen_bits_are_put_upright(bits: int) -> None:
    """Whatever their colours, and however many bits are kept."""
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = png_chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
    colours = noise(8, 6, 3)
    grey = io.BytesIO()
    Image.fromarray(colours[:, :, 0]).save(grey, "PNG")
    for data, channels in ((png_of_16_bits(colours), 3), (grey.getvalue(), 1)):
        start = data.index(b"IDAT") - 4
        file = data[:start] + turned + data[start:]
        stored = decode_image(data, size=(8, 6), channels=channels, bits=bits)
        found = decode_image(file, size=(6, 8), channels=channels, bits=bits)
        np.testing.assert_array_equal(found, np.rot90(stored, 3, (1, 2)))


def test_white_may_be_zero_in_a_tiff() -> None:
    """As in one of 8 bits, which Pillow reads."""
    deep, usual = (
        tiff(np.full((8, 8), white, dtype), photometric="miniswhite")
        for white, dtype in ((65535, np.uint16), (255, np.uint8))
    )
    for data in (deep, usual):
        assert not decode_image(data, size=8, channels=1, bits=16).any()


def test_tiffs_of_sixteen_bits_in_cmyk_are_refused() -> None:
    """Black would otherwise be taken for transparency."""
    data = tiff(noise(8, 8, 4), photometric="separated")
    with pytest.raises(BadImage, match="CMYK: save it as RGB"):
        decode_image(data, size=8, channels=3)


@pytest.mark.parametrize("compression", [None, "group4"])
def test_scans_of_one_bit_are_read(compression: str | None) -> None:
    """Black and white, as in a PNG of one bit."""
    file = io.BytesIO()
    pixels = np.indices((8, 8)).sum(0) % 2 == 0
    Image.fromarray(pixels).save(file, "TIFF", compression=compression)
    found = decode_image(file.getvalue(), size=8, channels=1)
    np.testing.assert_array_equal(found[0], pixels * 255)


def test_grey_of_sixteen_bits_with_transparency_can_be_packed_with_eight() -> None:
    """As its error says."""
    pixels = np.zeros((4, 4, 2), ">u2")
    pixels[:2] = 40_000, 65_535
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 16, 4, 0, 0, 0))
    rows = png_chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in pixels)))
    data = b"\x89PNG\r\n\x1a\n" + header + rows + png_chunk(b"IEND", b"")
    found = decode_image(data, size=4, channels=1)
    assert found[0, :, 0].tolist() == [156, 156, 255, 255]
    with pytest.raises(BadImage, match="give --bits 8"):
        decode_image(data, size=4, channels=1, bits=16)


def test_a_dataset_without_images_of_another_depth_is_not_taken_for_one_with_them(
    tmp_path: Path,
) -> None:
    """It is packed anew, into another folder."""
    grey = io.BytesIO()
    Image.fromarray(noise(8, 8)).save(grey, "PNG")
    usual = io.BytesIO()
    Image.new("L", (8, 8), 7).save(usual, "PNG")
    folder = write(tmp_path / "in", {"a.png": usual.getvalue(), "b.png": grey.getvalue()})
    options = {"size": 8, "channels": 1, "workers": 1, "bad_images": "skip"}
    assert pack(folder, tmp_path / "out", **options).num_samples == 1
    with pytest.raises(ShardError, match=r"before --bits was chosen.* give a new folder"):
        pack(folder, tmp_path / "out", bits=8, **options)
    assert pack(folder, tmp_path / "new", bits=8, **options).num_samples == 2
    assert pack(folder, tmp_path / "new", bits=8, **options).num_samples == 2
