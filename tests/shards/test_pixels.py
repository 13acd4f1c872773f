"""Pictures of other depths and numbers of channels: packed as they are, or refused by name."""

from __future__ import annotations

import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from shards.errors import ShardError
from shards.images import BadImage, decode_image
from shards.pack import pack
from shards.reader import ShardReader
from shards.verify import verify
from tests.shards.images import contents

Array = np.ndarray[Any, Any]
RNG = np.random.default_rng(0)


def noise(*shape: int, bits: int = 16) -> Array:
    return RNG.integers(0, 2**bits, shape, dtype=np.uint16 if bits == 16 else np.uint8)


def png_of_16_bits(pixels: Array) -> bytes:
    """Encode [H, W, 3 or 4], which Pillow cannot."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    height, width, channels = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def tiff(pixels: Array, **options: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, **options)
    return file.getvalue()


def npy(pixels: Array) -> bytes:
    file = io.BytesIO()
    np.save(file, pixels)
    return file.getvalue()


def files(pixels: Array) -> dict[str, bytes]:
    """Encode [C, H, W] in every way that keeps it."""
    last, bits, many = pixels.transpose(1, 2, 0), 8 * pixels.itemsize, len(pixels) not in (1, 3, 4)
    encoded = {"first.npy": npy(pixels), "last.npy": npy(last)}
    if many:
        encoded["pages.tif"] = tiff(pixels, photometric="minisblack")
        encoded["samples.tif"] = tiff(last, photometric="minisblack", planarconfig="contig")
        encoded["planar.tif"] = tiff(pixels, photometric="minisblack", planarconfig="separate")
    elif len(pixels) == 1:
        file = io.BytesIO()
        Image.fromarray(pixels[0]).save(file, "PNG")
        encoded |= {"grey.png": file.getvalue(), "grey.tif": tiff(pixels[0])}
    else:
        extra = {"extrasamples": "unassalpha"} if len(pixels) == 4 else {}
        encoded["colour.tif"] = tiff(last, photometric="rgb", **extra)
        if bits == 16:
            encoded["colour.png"] = png_of_16_bits(last)
    return encoded


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 16])
def test_every_file_keeps_its_values(channels: int, bits: int) -> None:
    """At its own size an image is what was saved, in each format, whatever the channels."""
    pixels = noise(channels, 20, 24, bits=bits)
    for name, data in files(pixels).items():
        found = decode_image(data, size=(20, 24), channels=channels, bits=bits, any_bits=False)
        assert found.dtype == pixels.dtype, name
        assert np.array_equal(found, pixels), name


@pytest.mark.parametrize("bits", [8, 16])
def test_channels_are_resized_one_by_one(bits: int) -> None:
    """Each channel of many is what it would be alone, cropped to its centre."""
    pixels = noise(5, 40, 30, bits=bits)
    many = decode_image(npy(pixels), size=(12, 16), channels=5, bits=bits)
    assert many.shape == (5, 12, 16)
    for plane, alone in zip(many, pixels, strict=True):
        single = decode_image(npy(alone), size=(12, 16), channels=1, bits=bits)
        assert np.array_equal(single[0], plane)


def test_bands_are_chosen_and_ordered() -> None:
    """Numbers count from 1, and one too high is named."""
    pixels = noise(6, 8, 8)
    found = decode_image(npy(pixels), size=8, channels=3, bits=16, bands=(4, 3, 1))
    assert np.array_equal(found, pixels[[3, 2, 0]])
    with pytest.raises(BadImage, match="6 channels, and band 7 is wanted"):
        decode_image(npy(pixels), size=8, channels=1, bits=16, bands=(7,))


def test_depths_are_converted_both_ways() -> None:
    """Black and white stay so, and there and back is the same."""
    pixels = noise(3, 8, 8, bits=8)
    pixels[:, 0, :2] = 0, 255
    deep = decode_image(npy(pixels), size=8, channels=3, bits=16)
    assert deep[0, 0, :2].tolist() == [0, 65535]
    assert np.array_equal(decode_image(npy(deep), size=8, channels=3, bits=8), pixels)


def test_colours_that_were_multiplied_by_alpha_are_restored() -> None:
    """A TIFF may store them so; what is transparent has no colour."""
    alpha = np.array([[65535, 32768], [1, 0]], np.uint16)
    colours = np.array([[[100, 200, 300]] * 2, [[1, 1, 1], [0, 0, 0]]], np.uint16)
    stored = np.concatenate([colours, alpha[..., None]], 2)
    data = tiff(stored, photometric="rgb", extrasamples="assocalpha")
    found = decode_image(data, size=2, channels=4, bits=16)
    assert found[:, 0, 0].tolist() == [100, 200, 300, 65535]
    assert found[:, 0, 1].tolist() == [199, 399, 599, 32768]
    assert found[:, 1].T.tolist() == [[65535, 65535, 65535, 1], [0, 0, 0, 0]]


def test_alpha_is_kept_or_lies_on_a_background() -> None:
    """With four channels it is stored, with three the colour shows through."""
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[:2] = (255, 0, 0, 255)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    kept = decode_image(file.getvalue(), size=4, channels=4)
    assert np.array_equal(kept, pixels.transpose(2, 0, 1))
    for data, bits in ((file.getvalue(), 8), (png_of_16_bits(pixels.astype(np.uint16) * 257), 16)):
        flat = decode_image(data, size=4, channels=3, bits=bits, background="#0000ff")
        most = 2**bits - 1
        assert flat[:, 0, 0].tolist() == [most, 0, 0]
        assert flat[:, 3, 0].tolist() == [0, 0, most]


def test_turned_tiffs_are_put_upright() -> None:
    """The orientation of a TIFF of many channels is that of EXIF."""
    pixels = noise(5, 6, 8)
    for orientation, stored in {
        1: pixels, 2: pixels[:, :, ::-1], 3: pixels[:, ::-1, ::-1], 4: pixels[:, ::-1],
        5: pixels.swapaxes(1, 2), 6: np.rot90(pixels, 1, (1, 2)),
        7: np.rot90(pixels.swapaxes(1, 2), 2, (1, 2)), 8: np.rot90(pixels, 3, (1, 2)),
    }.items():  # fmt: skip
        data = tiff(
            np.ascontiguousarray(stored), photometric="minisblack", planarconfig="separate",
            extratags=[(274, 3, 1, orientation, True)],
        )  # fmt: skip
        found = decode_image(data, size=(6, 8), channels=5, bits=16)
        assert np.array_equal(found, pixels), orientation


def test_damaged_tiffs_are_refused_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    """The reader of TIFF logs each tag that is wrong, which says nothing to users."""
    data = bytearray(tiff(noise(5, 6, 8), photometric="minisblack", planarconfig="separate"))
    data[8 + 2 + 12 * 3 :: 12] = bytes(len(data[8 + 2 + 12 * 3 :: 12]))
    with pytest.raises(BadImage):
        decode_image(bytes(data), size=8, channels=5, bits=16)
    assert not caplog.records


@pytest.mark.parametrize(("format", "mode"), [("JPEG", "RGB"), ("PNG", "RGBA"), ("TIFF", "RGB")])
def test_colour_profiles_become_srgb(format: str, mode: str) -> None:
    """Numbers mean other colours in a wide gamut. Profiles that are damaged or sRGB change none."""
    file, plain = io.BytesIO(), io.BytesIO()
    image = Image.new(mode, (16, 16), (200, 60, 40, 255)[: len(mode)])
    image.save(plain, format)
    image.save(file, format, icc_profile=wide_gamut())
    found = decode_image(file.getvalue(), size=16, channels=3)[:, 8, 8].astype(int)
    before = decode_image(plain.getvalue(), size=16, channels=3)[:, 8, 8].astype(int)
    assert found[0] > before[0] + 10, "red of a wide gamut is redder in sRGB"
    damaged = io.BytesIO()
    image.save(damaged, format, icc_profile=b"no profile" * 20)
    assert np.abs(decode_image(damaged.getvalue(), size=16, channels=3)[:, 8, 8] - before).max() < 3
    own = io.BytesIO()
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image.save(own, format, icc_profile=srgb)
    assert np.array_equal(decode_image(own.getvalue(), size=16, channels=3)[:, 8, 8], before)


def wide_gamut() -> bytes:
    """Return sRGB's profile with the primaries of red and green pulled apart (as Adobe RGB's)."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    fixed = struct.Struct(">3i")
    for number in range(struct.unpack(">I", profile[128:132])[0]):
        name, offset, _ = struct.unpack(">4sII", profile[132 + 12 * number : 144 + 12 * number])
        colours = {b"rXYZ": (0.6097, 0.3111, 0.0195), b"gXYZ": (0.2053, 0.6257, 0.0609)}
        if name in colours:
            profile[offset + 8 : offset + 20] = fixed.pack(*(int(x * 65536) for x in colours[name]))
        if name == b"desc":
            profile[132 + 12 * number : 136 + 12 * number] = b"xxxx"  # no longer called sRGB
    return bytes(profile)


def write(folder: Path, contents: dict[str, bytes]) -> Path:
    folder.mkdir()
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    return folder


@pytest.mark.parametrize(("channels", "extension"), [(5, "tif"), (3, "png"), (1, "npy")])
def test_sixteen_bits_are_packed_read_and_verified(
    tmp_path: Path, channels: int, extension: str
) -> None:
    """The first image decides; shards hold uint16, and read as they were."""
    images = [noise(channels, 16, 24) for _ in range(6)]
    encoded = [next(d for n, d in files(i).items() if n.endswith(extension)) for i in images]
    named = {f"{number}.{extension}": data for number, data in enumerate(encoded)}
    index = pack(write(tmp_path / "in", named), tmp_path / "out", size=(16, 24), workers=1)
    assert (index.image_shape, index.bits) == ((channels, 16, 24), 16)
    assert verify(index.path) == []
    reader = ShardReader(index.path)
    found = reader.gather(np.arange(6))
    assert found.dtype == np.uint16
    assert {image.tobytes() for image in found} == {image.tobytes() for image in images}
    assert reader.gather_8_bits(np.arange(6)).dtype == np.uint8
    assert pack(tmp_path / "in", index.path, size=(16, 24)) == index
    again = pack(index.path, tmp_path / "again", size=(16, 24), workers=1)
    assert again.image_shape == index.image_shape, "packed shards are a source of the same pixels"


MIXTURES: dict[str, tuple[dict[str, bytes], dict[str, Any], str]] = {
    "bits": (
        {
            "a.png": files(noise(1, 8, 8, bits=8))["grey.png"],
            "b.png": files(noise(1, 8, 8))["grey.png"],
        },
        {},
        r"broken image b.png \(16 bits, and the first image has 8: choose with --bits\)",
    ),
    "channels": (
        {"a.npy": npy(noise(5, 8, 8)), "b.npy": npy(noise(6, 8, 8))},
        {},
        r"broken image b.npy \(6 channels, and 5 are wanted: convert it, give --channels or",
    ),
    "many channels for three": (
        {"a.tif": tiff(noise(5, 8, 8), photometric="minisblack")},
        {"channels": 3},
        r"broken image a.tif \(5 channels, and 3 are wanted",
    ),
    "floats": (
        {"a.npy": npy(np.zeros((8, 8), np.float32))},
        {},
        r"broken image a.npy \(an npy array float32 \[8, 8\], and uint8 or uint16",
    ),
    "more than sixteen": (
        {"a.tif": tiff(noise(17, 8, 8), photometric="minisblack")},
        {},
        r"broken image a.tif \(a TIFF of uint16 \[17, 8, 8\], and uint8",
    ),
    "jpeg": (
        {"a.npy": npy(noise(5, 8, 8))},
        {"encoding": "jpeg"},
        "--encoding jpeg is for 1 or 3 channels of 8 bits, and this is 5 of 16: leave it out",
    ),
    "bands": (
        {"a.npy": npy(noise(5, 8, 8))},
        {"bands": (1, 2), "channels": 3},
        "--bands 1,2 are 2, and --channels is 3",
    ),
    "background": (
        {"a.npy": npy(noise(5, 8, 8))},
        {"background": "colour"},
        "--background colour is no colour",
    ),
}


@pytest.mark.parametrize("kind", MIXTURES)
def test_wrong_mixtures_are_one_line(tmp_path: Path, kind: str) -> None:
    """The file, what it is, and what to type."""
    named, options, message = MIXTURES[kind]
    with pytest.raises(ShardError, match=message) as caught:
        pack(write(tmp_path / "in", named), tmp_path / "out", size=8, workers=1, **options)
    assert "\n" not in str(caught.value)


def test_a_chosen_depth_takes_both(tmp_path: Path) -> None:
    """--bits converts what it finds."""
    named, _, _ = MIXTURES["bits"]
    folder = write(tmp_path / "in", named)
    for bits in (8, 16):
        index = pack(folder, tmp_path / f"{bits}", size=8, bits=bits, channels=1, workers=1)
        assert index.bits == bits and index.num_samples == 2


def test_arrays_beside_pictures_are_other_files(tmp_path: Path) -> None:
    """Features of pictures are no pictures."""
    named = {"a.png": files(noise(1, 8, 8, bits=8))["grey.png"], "features.npy": npy(noise(9, 9))}
    index = pack(write(tmp_path / "in", named), tmp_path / "out", size=8, workers=1)
    assert index.num_samples == 1


def test_the_index_of_eight_bits_is_as_it_was(tmp_path: Path) -> None:
    """No field is added to it, so that bytes and fingerprints stay."""
    named = {"a.png": files(noise(1, 8, 8, bits=8))["grey.png"]}
    index = pack(write(tmp_path / "in", named), tmp_path / "out", size=8, workers=1)
    assert "bits" not in json.loads(contents(index.path)["index.json"])
    assert index.image_shape == (3, 8, 8)
