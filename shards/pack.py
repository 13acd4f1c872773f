"""Packing: images become tar shards. It can resume, and always gives the same bytes.

source ──pack_workers──> .packing/000000.<pid>.tmp ──hash, sync, rename──> 000000.tar
                                                                           .packing/000000.json

Once all shards exist, labels.npy, spans.npy, rejected.jsonl and index.json follow, and .packing is
removed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from shards.errors import ShardError, printable
from shards.files import locked, readable_errors, sha256_of_file, sync_path, write_atomic
from shards.format.compressed import DEFAULT_QUALITY, MAX_QUALITY, CompressedLayout
from shards.format.index import (
    INDEX_FILE,
    LABELS_FILE,
    RAW,
    REJECTED_FILE,
    SPANS_FILE,
    WORK_FOLDER,
    ShardIndex,
    ShardRecord,
    read_index,
)
from shards.format.raw import TRAILER, RawLayout, npy_of_labels, npy_of_spans
from shards.pack_workers import Chunk, Packing, Rejected, Written, pwrite_all, run
from shards.processes import num_usable_cores
from shards.sources.registry import open_source
from shards.sources.source import Source

BadImages = Literal["fail", "skip"]
Labels = Literal["keep", "ignore"]
Encoding = Literal["raw", "jpeg", "png"]
Progress = Callable[[int, int], None]


class FinishedShard(NamedTuple):
    """A shard that has its final name, and the spans [n, 2] of its image files, if it has any."""

    record: ShardRecord
    rejected: list[Rejected]
    spans: NDArray[np.int64]


def pack(
    source: str | Path | Source,
    out: str | Path,
    *,
    size: int | None = None,
    channels: int | None = None,
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
        size: Pixels per side; by default the source's own.
        channels: 1 or 3; by default the source's own.
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

    If `out` already holds the dataset, it is returned as it is. Raises ShardError for an unusable
    source, folder or setting; finished shards remain.
    """
    _check_settings(size, channels, shard_size_mb, workers, bad_images, labels)
    _check_encoding(encoding, quality)
    if not isinstance(source, Source):
        source = open_source(source, split=split, root=root, with_labels=labels == "keep")
    packing = _plan(source, size, channels, shard_size_mb, encoding, quality, cls)
    out = Path(out).expanduser()
    work, name = out / WORK_FOLDER, printable(out)
    with readable_errors(out, doing="cannot pack into"):
        index = _read_finished(out, packing, bad_images)
        if index is not None:
            # It may remain from a pack that died after writing the index.
            shutil.rmtree(work, ignore_errors=True)
            return index
        if out.is_dir() and not work.is_dir() and any(out.iterdir()):
            raise ShardError(f"{name} is not empty and holds no packed shards: give a new folder")
        busy = f"another pack is writing to {name}: wait for it, or give another folder"
        with locked(work / "lock", busy=busy):
            # The previous holder of the lock may have finished the dataset.
            index = _read_finished(out, packing, bad_images)
            if index is None:
                _claim(work, packing, name)
                shards = _write_shards(packing, out, workers, bad_images, progress)
                index = _write_index(packing, out, shards)
            shutil.rmtree(work, ignore_errors=True)
    return index


def _check_settings(
    size: int | None,
    channels: int | None,
    shard_size_mb: int,
    workers: int | None,
    bad_images: str,
    labels: str,
) -> None:
    for name, value, allowed, remedy in (
        ("--size", size, range(1, 8193), "1 to 8192"),
        ("--channels", channels, (1, 3), "1 or 3"),
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
    size: int | None,
    channels: int | None,
    shard_size_mb: int,
    encoding: Encoding,
    quality: int | None,
    cls: bool,
) -> Packing:
    size, channels = size or source.default_size, channels or source.default_channels
    raw = RawLayout((channels, size, size), cls and source.labels is not None)
    compressed = None
    if encoding != "raw":
        quality = quality or DEFAULT_QUALITY if encoding == "jpeg" else None
        compressed = CompressedLayout(raw.image_shape, raw.cls, encoding, quality)
    samples_per_shard = max(1, (shard_size_mb * 2**20 - len(TRAILER)) // raw.stride)
    return Packing(source, raw, samples_per_shard, compressed)


def _read_finished(out: Path, packing: Packing, bad_images: str) -> ShardIndex | None:
    """Return the index of the finished dataset in `out`, or None if there is none.

    Raises ShardError if it is another dataset.
    """
    if not (out / INDEX_FILE).exists():
        return None
    index, name = read_index(out), printable(out)
    if index.plan != packing.plan:
        raise ShardError(
            f"{name} holds another dataset (of other images or settings): give a new folder"
        )
    count = index.num_rejected
    if count and bad_images == "fail":
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


def _write_shards(
    packing: Packing, out: Path, workers: int | None, bad_images: str, progress: Progress
) -> list[FinishedShard]:
    """Write every shard that is not finished yet."""
    finished = {shard: _read_record(out, shard) for shard in range(packing.num_shards)}
    for shard in finished.values():
        _check_rejected(shard.rejected if shard else [], bad_images)
    pending = [number for number, shard in finished.items() if shard is None]
    num_items = len(packing.source)
    num_done = num_items - sum(len(packing.slots(number)) for number in pending)
    progress(num_done, num_items)
    if workers is None:  # no more than there is work for
        num_chunks = sum(len(packing.chunks(number)) for number in pending)
        workers = max(1, min(num_usable_cores(), num_chunks // 2))
        workers = 1 if packing.source.in_memory else workers
    with closing(run(packing, _chunks(packing, out, pending), workers=workers)) as results:
        for number, chunks in groupby(results, key=lambda result: result[0].shard):
            done: list[tuple[Chunk, Written]] = []
            for chunk, written in chunks:
                _check_rejected(written.rejected, bad_images)
                done.append((chunk, written))
                num_done += len(chunk.slots)
                progress(num_done, num_items)
            finished[number] = _finish_shard(packing, out, number, done)
    return [shard for shard in finished.values() if shard is not None]


def _chunks(packing: Packing, out: Path, shards: list[int]) -> Iterator[Chunk]:
    """Yield the chunks of shards, and create the file of each shard before its first chunk."""
    for shard in shards:
        file = _temporary(out, shard)
        file.touch(exist_ok=False)
        yield from packing.chunks(shard, str(file))


def _check_rejected(rejected: list[Rejected], bad_images: str) -> None:
    if rejected and bad_images == "fail":
        raise ShardError(
            f"broken image {rejected[0].name} ({rejected[0].reason}): go on without such images "
            "with --bad-images skip, or repair it and pack into a new folder"
        )


def _finish_shard(
    packing: Packing, out: Path, shard: int, chunks: list[tuple[Chunk, Written]]
) -> FinishedShard:
    """Close the gaps between chunks, end the tar, rename it and record it, durably in this order."""
    temporary, end, spans = _temporary(out, shard), 0, []
    handle = os.open(temporary, os.O_RDWR)
    try:
        for chunk, written in chunks:
            if chunk.offset != end:
                pwrite_all(handle, os.pread(handle, written.num_bytes, chunk.offset), end)
            spans.append(written.spans + np.array([end, 0]))
            end += written.num_bytes
        os.ftruncate(handle, end)
        pwrite_all(handle, TRAILER, end)
        os.fsync(handle)
    finally:
        os.close(handle)
    record = ShardRecord(
        file=f"{shard:06d}.tar",
        num_samples=sum(len(chunk.slots) - len(written.rejected) for chunk, written in chunks),
        num_bytes=temporary.stat().st_size,
        sha256=sha256_of_file(temporary),
    )
    os.replace(temporary, out / record.file)
    sync_path(out)
    rejected = [image for _, written in chunks for image in written.rejected]
    finished = FinishedShard(record, rejected, np.concatenate(spans))
    fields = [asdict(record), rejected, finished.spans.tolist()]
    write_atomic(_record_file(out, shard), json.dumps(fields))
    return finished


def _read_record(out: Path, shard: int) -> FinishedShard | None:
    """Return a finished shard if its bytes still are what its record says, otherwise None."""
    try:
        fields, rejected, spans = json.loads(_record_file(out, shard).read_bytes())
        record = ShardRecord(**fields)
        file = out / f"{shard:06d}.tar"
        if file.stat().st_size != record.num_bytes or sha256_of_file(file) != record.sha256:
            return None
        images = [Rejected(*image) for image in rejected]
        return FinishedShard(record, images, np.array(spans, np.int64).reshape(-1, 2))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def _write_index(packing: Packing, out: Path, shards: list[FinishedShard]) -> ShardIndex:
    """Write the files that describe the shards. `index.json` comes last and makes the dataset."""
    source, compressed = packing.source, packing.compressed
    rejected = [image for shard in shards for image in shard.rejected]
    if len(rejected) == len(source):
        raise ShardError(
            f"all {len(source):,} images are broken (the first is {rejected[0].name}, "
            f"{rejected[0].reason}): give other images and a new folder"
        )
    if rejected:
        lines = [json.dumps({"name": image.name, "reason": image.reason}) for image in rejected]
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
        num_rejected=len(rejected),
        shards=tuple(shard.record for shard in shards),
        plan=packing.plan,
        encoding=RAW if compressed is None else compressed.encoding,
        quality=None if compressed is None else compressed.quality,
        spans_sha256=spans_sha256,
    )
    write_atomic(out / INDEX_FILE, index.to_json())
    return index


def _write_side_file(path: Path, data: bytes) -> str:
    """Write a file beside the tars and return its sha256."""
    write_atomic(path, data)
    return hashlib.sha256(data).hexdigest()


def _temporary(out: Path, shard: int) -> Path:
    # With the process id: a worker of a killed pack may live a moment longer, and must not write
    # into the file of the pack that resumes.
    return out / WORK_FOLDER / f"{shard:06d}.{os.getpid()}.tmp"


def _record_file(out: Path, shard: int) -> Path:
    return out / WORK_FOLDER / f"{shard:06d}.json"
