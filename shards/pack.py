"""Packing: images become tar shards. It can resume, and always gives the same bytes.

source ──pack_workers──> .packing/000000.<pid>.tmp ──hash, sync, rename──> 000000.tar
                                                                           .packing/000000.json

Once all shards exist, labels.npy, spans.npy, rejected.jsonl and index.json follow, and .packing is
removed.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from shards.errors import ShardError, printable
from shards.files import expand_user, locked, readable_errors, write_atomic
from shards.format.compressed import DEFAULT_QUALITY, MAX_QUALITY, CompressedLayout
from shards.format.index import (
    INDEX_FILE,
    LABELS_FILE,
    RAW,
    REJECTED_FILE,
    SPANS_FILE,
    WORK_FOLDER,
    ShardIndex,
    read_index,
)
from shards.format.raw import TRAILER, RawLayout, npy_of_labels, npy_of_spans
from shards.images import Fit
from shards.pack_shards import (
    FinishedShard,
    Progress,
    combine_sha256,
    source_sha256,
    write_shards,
)
from shards.pack_workers import Packing
from shards.sources.registry import open_source
from shards.sources.source import Skipped, Source

BadImages = Literal["fail", "skip"]
Labels = Literal["keep", "ignore"]
Encoding = Literal["raw", "jpeg", "png"]


def pack(
    source: str | Path | Source,
    out: str | Path,
    *,
    size: int | tuple[int, int] | None = None,
    channels: int | None = None,
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
        size: Pixels per side, or (height, width); by default the source's own.
        channels: 1 or 3; by default the source's own.
        fit: Whether images of other proportions are cropped to their centre, or stretched.
        shard_size_mb: Size of a shard of raw pixels. With any `encoding` a shard has as many
            samples as that.
        quality: Of JPEG, 95 by default.
        workers: Processes; by default as many as there are cores.
        bad_images: Whether a broken image ends packing, or is left out and listed.
        labels: Whether the labels of the source are kept; if so, every image must have one.
        cls: Whether the tars hold the labels, which `labels.npy` always does.
        split, root: Of named sources.
        progress: Called with the number of images done and in total. The first call counts what
            an interrupted pack had done.

    If `out` already holds the dataset, and the files of the source are as they were when it was
    packed, it is returned as it is. Raises ShardError for an unusable
    source, folder or setting; finished shards remain.
    """
    _check_settings(size, channels, fit, shard_size_mb, workers, bad_images, labels)
    _check_encoding(encoding, quality)
    if not isinstance(source, Source):
        source = open_source(source, split=split, root=root, with_labels=labels == "keep")
    packing = _plan(source, size, channels, fit, shard_size_mb, encoding, quality, cls)
    out = expand_user(out)
    work, name = out / WORK_FOLDER, printable(out)
    with readable_errors(out, doing="cannot pack into"):
        index = _read_finished(out, packing, bad_images, workers)
        if index is not None:
            # It may remain from a pack that died after writing the index.
            shutil.rmtree(work, ignore_errors=True)
            return index
        if out.is_dir() and not work.is_dir() and any(out.iterdir()):
            raise ShardError(f"{name} is not empty and holds no packed shards: give a new folder")
        busy = f"another pack is writing to {name}: wait for it, or give another folder"
        with locked(work / "lock", busy=busy):
            # The previous holder of the lock may have finished the dataset.
            index = _read_finished(out, packing, bad_images, workers)
            if index is None:
                _claim(work, packing, name)
                shards = write_shards(packing, out, workers, bad_images, progress)
                index = _write_index(packing, out, shards)
            shutil.rmtree(work, ignore_errors=True)
    return index


def _check_settings(
    size: int | tuple[int, int] | None,
    channels: int | None,
    fit: Fit,
    shard_size_mb: int,
    workers: int | None,
    bad_images: str,
    labels: str,
) -> None:
    for name, value, allowed, remedy in (
        *[("--size", side, range(1, 8193), "1 to 8192") for side in _sides(size)],
        ("--channels", channels, (1, 3), "1 or 3"),
        ("--fit", fit, get_args(Fit), "crop or stretch"),
        ("--shard-size-mb", shard_size_mb, range(1, 65537), "1 to 65536"),
        ("--workers", workers, range(1, 1025), "1 to 1024"),
        ("--bad-images", bad_images, get_args(BadImages), "fail or skip"),
        ("--labels", labels, get_args(Labels), "keep or ignore"),
    ):
        if value is not None and value not in allowed:
            raise ShardError(f"{name} {value} is not possible: give {remedy}")


def _check_encoding(encoding: str, quality: int | None) -> None:
    if encoding not in get_args(Encoding):
        raise ShardError(
            f"--encoding {encoding} is not possible: give one of {', '.join(get_args(Encoding))}"
        )
    if quality is not None and encoding != "jpeg":
        raise ShardError(
            f"--quality {quality} is for --encoding jpeg, and this is {encoding}: leave it out"
        )
    if quality is not None and not 1 <= quality <= MAX_QUALITY:
        raise ShardError(f"--quality {quality} is not possible: give 1 to {MAX_QUALITY}")


def _plan(
    source: Source,
    size: int | tuple[int, int] | None,
    channels: int | None,
    fit: Fit,
    shard_size_mb: int,
    encoding: Encoding,
    quality: int | None,
    cls: bool,
) -> Packing:
    height, width = _sides(size or source.default_size)
    shape = (channels or source.default_channels, height, width)
    raw = RawLayout(shape, cls and source.labels is not None)
    compressed = None
    if encoding != "raw":
        quality = quality or DEFAULT_QUALITY if encoding == "jpeg" else None
        compressed = CompressedLayout(raw.image_shape, raw.cls, encoding, quality)
    samples_per_shard = max(1, (shard_size_mb * 2**20 - len(TRAILER)) // raw.stride)
    return Packing(source, raw, samples_per_shard, compressed, fit)


def _sides(size: int | tuple[int, int] | None) -> tuple[int, ...]:
    """Return the height and the width of a size, or nothing."""
    if size is None:
        return ()
    return (size, size) if isinstance(size, int) else size


def _read_finished(
    out: Path, packing: Packing, bad_images: str, workers: int | None
) -> ShardIndex | None:
    """Return the index of the finished dataset in `out`, or None if there is none.

    Raises ShardError if it is another dataset, or if files of the source were changed since. They
    are read to find out, because the time of a change does not survive a copy of the source.
    """
    if not (out / INDEX_FILE).exists():
        return None
    index, name = read_index(out), printable(out)
    if index.plan != packing.plan:
        raise ShardError(
            f"{name} holds another dataset (of other images or settings): give a new folder"
        )
    recorded = index.source_sha256  # absent in datasets of earlier versions
    if recorded is not None and recorded != source_sha256(packing, workers):
        raise ShardError(
            f"{name} was packed before files of the source were changed: give a new folder, or "
            f"delete {name} to pack it again"
        )
    count = index.num_rejected - len(packing.source.skipped)
    if count > 0 and bad_images == "fail":
        raise ShardError(
            f"{name} holds these images without {count} broken image{'s' if count > 1 else ''} "
            f"(see {REJECTED_FILE}): accept that with --bad-images skip, or repair them and give "
            "a new folder"
        )
    return index


def _claim(work: Path, packing: Packing, name: str) -> None:
    """Record the plan in the work folder, or check that it is the same.

    Also removes what a killed pack had half written. Raises ShardError.
    """
    plan_file = work / "plan"
    if not plan_file.exists():
        write_atomic(plan_file, packing.plan)
    elif plan_file.read_text() != packing.plan:
        raise ShardError(
            f"{name} holds an unfinished pack of other images or settings: "
            "delete it or give a new folder"
        )
    for leftover in work.glob("*.tmp"):
        leftover.unlink()


def _write_index(packing: Packing, out: Path, shards: list[FinishedShard]) -> ShardIndex:
    """Write the files that describe the shards. `index.json` comes last and makes the dataset."""
    source, compressed = packing.source, packing.compressed
    rejected = [image for shard in shards for image in shard.rejected]
    if len(rejected) == len(source):
        raise ShardError(
            f"all {len(source):,} images are broken (the first is {rejected[0].name}, "
            f"{rejected[0].reason}): give other images and a new folder"
        )
    left_out = [*source.skipped, *(Skipped(image.name, image.reason) for image in rejected)]
    if left_out:
        lines = [json.dumps(image._asdict()) for image in left_out]
        write_atomic(out / REJECTED_FILE, "\n".join(lines) + "\n")
    labels_sha256 = class_counts = spans_sha256 = None
    if source.labels is not None and source.class_names is not None:
        slots = np.delete(np.arange(len(source)), [image.slot for image in rejected])
        labels = source.labels[packing.items(slots)]
        labels_sha256 = _write_side_file(out / LABELS_FILE, npy_of_labels(labels))
        class_counts = tuple(np.bincount(labels, minlength=len(source.class_names)).tolist())
    if compressed is not None:
        spans = np.concatenate([shard.spans for shard in shards])
        spans_sha256 = _write_side_file(out / SPANS_FILE, npy_of_spans(spans))
    index = ShardIndex(
        path=out,
        image_shape=packing.raw.image_shape,
        num_samples=len(source) - len(rejected),
        class_names=source.class_names,
        class_counts=class_counts,
        labels_sha256=labels_sha256,
        cls=packing.raw.cls,
        num_rejected=len(left_out),
        shards=tuple(shard.record for shard in shards),
        plan=packing.plan,
        encoding=RAW if compressed is None else compressed.encoding,
        quality=None if compressed is None else compressed.quality,
        spans_sha256=spans_sha256,
        source_sha256=(
            None if source.in_memory else combine_sha256(shard.content_sha256 for shard in shards)
        ),
    )
    write_atomic(out / INDEX_FILE, index.to_json())
    return index


def _write_side_file(path: Path, data: bytes) -> str:
    """Write a file beside the tars and return its sha256."""
    write_atomic(path, data)
    return hashlib.sha256(data).hexdigest()
