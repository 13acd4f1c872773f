"""Packing: images become tar shards. It can resume, and always gives the same bytes.

source ──pack_workers──> .packing/000000.<pid>.tmp ──hash, sync, rename──> 000000.tar
                                                                           .packing/000000.json

Once all shards exist, labels.npy, spans.npy, rejected.jsonl and index.json follow, and .packing is
removed.
"""

from __future__ import annotations

import warnings
from collections.abc import Container, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, get_args

from PIL import ImageColor

from shards.errors import BadImage, ShardError, printable
from shards.files import expand_user
from shards.format.compressed import DEFAULT_QUALITY, MAX_QUALITY, CompressedLayout
from shards.format.index import ShardIndex
from shards.format.raw import TRAILER, RawLayout
from shards.images import Fit, describe_image
from shards.output import OutputFolder
from shards.pack_shards import Progress, write_shards
from shards.pack_workers import Packing
from shards.planes import MAX_CHANNELS
from shards.sources.registry import open_source
from shards.sources.source import Source

MAX_BAND = 1000
BadImages = Literal["fail", "skip"]
Labels = str  # keep, ignore, or the path of a CSV file
Encoding = Literal["raw", "jpeg", "png"]


def pack(
    source: str | Path | Source,
    out: str | Path,
    *,
    size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    bits: int | None = None,
    bands: Sequence[int] | None = None,
    background: str = "white",
    fit: Fit = "crop",
    shard_size_mb: int = 32,
    encoding: Encoding = "raw",
    quality: int | None = None,
    workers: int | None = None,
    bad_images: BadImages = "fail",
    labels: Labels = "keep",
    cls: bool = True,
    split: str = "train",
    root: Path | None = None,
    progress: Progress = lambda done, total: None,
) -> ShardIndex:
    """Pack the images of `source` (see `open_source`) into folder `out`, and return the index.

    Args:
        workers: Processes; by default as many as there are cores.
        bad_images: Whether a broken image ends packing, or is left out and listed.
        progress: Called with the number of images done and in total. The first call counts what
            an interrupted pack had done.

    The others are those of `plan_packing`. If `out` already holds the dataset, and the files of the
    source are as they were when it was packed, it is returned as it is. Raises ShardError for an
    unusable source, folder or setting; finished shards remain.
    """
    packing = plan_packing(
        source, size=size, channels=channels, bits=bits, bands=bands, background=background,
        fit=fit, shard_size_mb=shard_size_mb, encoding=encoding, quality=quality, labels=labels,
        cls=cls, split=split, root=root,
    )  # fmt: skip
    return write_dataset(packing, out, workers=workers, bad_images=bad_images, progress=progress)


def plan_packing(
    source: str | Path | Source,
    *,
    size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    bits: int | None = None,
    bands: Sequence[int] | None = None,
    background: str = "white",
    fit: Fit = "crop",
    shard_size_mb: int = 32,
    encoding: Encoding = "raw",
    quality: int | None = None,
    labels: Labels = "keep",
    cls: bool = True,
    split: str = "train",
    root: Path | None = None,
) -> Packing:
    """Return what is to be packed and how. Raises ShardError for an unusable source or setting.

    Args:
        size: Pixels per side, or (height, width); by default the source's own.
        channels: 1 to 16; by default 3, or as many as the first image has if these are neither 1
            nor 3 nor 4, or of 16 bits. 4 keeps transparency.
        bits: 8 or 16 per channel, to which all images are converted; by default those of the first
            image, and others are refused.
        bands: Numbers of the channels to pack, from 1, in this order. The first three are shown.
        background: Colour of transparent pixels, if transparency is not kept.
        fit: Whether images of other proportions are cropped to their centre, or stretched.
        shard_size_mb: Size of a shard of raw pixels. With any `encoding` a shard has as many
            samples as that.
        quality: Of JPEG, 95 by default.
        labels: `keep` those of the source, of which every image must have one, or `ignore` them, or
            take those of a CSV file of path and label.
        cls: Whether the tars hold the labels, which `labels.npy` always does.
        split, root: Of named sources.
    """
    _check_settings(size, channels, bits, bands, background, fit, shard_size_mb)
    _check_encoding(encoding, quality)
    if not isinstance(source, Source):
        source = open_source(
            source, split=split, root=root, with_labels=labels != "ignore",
            label_file=label_file(labels),
        )  # fmt: skip
    height, width = _sides(size or source.default_size)
    any_bits = bits is not None
    if channels is None or bits is None:
        usual_channels, usual_bits = _usual_pixels(source)
        channels, bits = channels or len(bands or ()) or usual_channels, bits or usual_bits
    raw = RawLayout((channels, height, width), cls and source.labels is not None, bits)
    compressed = None
    if encoding != "raw":
        _check_encodable(encoding, channels, bits)
        quality = quality or DEFAULT_QUALITY if encoding == "jpeg" else None
        compressed = CompressedLayout(raw.image_shape, raw.cls, encoding, quality)
    samples_per_shard = max(1, (shard_size_mb * 2**20 - len(TRAILER)) // raw.stride)
    return Packing(
        source, raw, samples_per_shard, compressed, fit, background,
        None if bands is None else tuple(bands), any_bits,
    )  # fmt: skip


def write_dataset(
    packing: Packing,
    out: str | Path,
    *,
    workers: int | None = None,
    bad_images: BadImages = "fail",
    progress: Progress = lambda done, total: None,
) -> ShardIndex:
    """Write all shards and the index, as `pack` does."""
    check_how(workers, bad_images)
    folder = OutputFolder(expand_user(out), packing)
    busy = f"another pack is writing to {folder.name}: wait for it, or give another folder"
    with folder.reserved(busy, bad_images=bad_images, workers=workers) as index:
        if index is not None:
            return index
        folder.claim()
        numbers = range(packing.num_shards)
        shards = write_shards(packing, folder.path, numbers, workers, bad_images, progress)
        return folder.write_index(shards)


def _check_settings(
    size: int | tuple[int, int] | None,
    channels: int | None,
    bits: int | None,
    bands: Sequence[int] | None,
    background: str,
    fit: Fit,
    shard_size_mb: int,
) -> None:
    for name, value, allowed, remedy in (
        *[("--size", side, range(1, 8193), "1 to 8192") for side in _sides(size)],
        ("--channels", channels, range(1, MAX_CHANNELS + 1), f"1 to {MAX_CHANNELS}"),
        ("--bits", bits, (8, 16), "8 or 16"),
        *[("--bands", band, range(1, MAX_BAND + 1), f"1 to {MAX_BAND}") for band in bands or ()],
        ("--fit", fit, get_args(Fit), "crop or stretch"),
        ("--shard-size-mb", shard_size_mb, range(1, 65537), "1 to 65536"),
    ):
        _check(name, value, allowed, remedy)
    if bands is not None and len(bands) != (channels or len(bands)):
        raise ShardError(
            f"--bands {','.join(map(str, bands))} are {len(bands)}, and --channels is {channels}: "
            "leave --channels out"
        )
    _check("--bands", len(bands or ()), range(MAX_CHANNELS + 1), f"at most {MAX_CHANNELS}")
    try:
        ImageColor.getrgb(background)
    except ValueError:
        raise ShardError(
            f"--background {printable(background)} is no colour: give a name such as black, or "
            "'#ff8800'"
        ) from None


def _usual_pixels(source: Source) -> tuple[int, int]:
    """Return the channels and bits that are packed by default, which the first image decides."""
    usual = source.default_channels, 8
    if source.in_memory:
        return usual
    # What is wrong with it is told when it is packed.
    with warnings.catch_warnings(), suppress(BadImage, OSError, ShardError):
        warnings.simplefilter("ignore")
        channels, bits = describe_image(source.read(0))
        return usual if bits == 8 and channels in (1, 3, 4) else (channels, bits)
    return usual


def _check_encodable(encoding: str, channels: int, bits: int) -> None:
    if channels not in (1, 3) or bits != 8:
        raise ShardError(
            f"--encoding {encoding} is for 1 or 3 channels of 8 bits, and this is {channels} of "
            f"{bits}: leave it out"
        )


def label_file(labels: Labels) -> Path | None:
    """Return the CSV file that `labels` names, if any."""
    return None if labels in ("keep", "ignore") else Path(labels)


def check_how(workers: int | None, bad_images: str) -> None:
    """Raise ShardError for a setting of how shards are written that cannot be."""
    _check("--workers", workers, range(1, 1025), "1 to 1024")
    _check("--bad-images", bad_images, get_args(BadImages), "fail or skip")


def _check(name: str, value: object, allowed: Container[Any], remedy: str) -> None:
    if value is not None and value not in allowed:
        raise ShardError(f"{name} {value} is not possible: give {remedy}")


def _check_encoding(encoding: str, quality: int | None) -> None:
    encodings = get_args(Encoding)
    _check("--encoding", encoding, encodings, f"one of {', '.join(encodings)}")
    if quality is not None and encoding != "jpeg":
        raise ShardError(
            f"--quality {quality} is for --encoding jpeg, and this is {encoding}: leave it out"
        )
    _check("--quality", quality, range(1, MAX_QUALITY + 1), f"1 to {MAX_QUALITY}")


def _sides(size: int | tuple[int, int] | None) -> tuple[int, ...]:
    """Return the height and the width of a size, or nothing."""
    if size is None:
        return ()
    return (size, size) if isinstance(size, int) else size
