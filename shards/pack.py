"""Packing: images become tar shards, resumable, and the same bytes every time.

source ──encoding.run──> .packing/000000.<pid>.tmp ──hash, sync, rename──> 000000.tar + .packing/000000.json
and once all shards are there: labels.npy, spans.npy, rejected.jsonl, index.json, and .packing goes
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
from shards.files import explained, locked, sha256_of_file, sync_path, usable_cores, write_atomic
from shards.format.compressed import DEFAULT_QUALITY, MAX_QUALITY, EncodedLayout
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
from shards.format.raw import TRAILER, ShardLayout, npy_of_labels, npy_of_spans
from shards.pack_workers import Chunk, Packing, Rejected, Written, pwrite_all, run
from shards.sources.listing import Source
from shards.sources.open import open_source

BadImages = Literal["fail", "skip"]
Encoding = Literal["raw", "jpeg", "png"]
Progress = Callable[[int, int], None]


class Finished(NamedTuple):
    """A shard that has its name; with spans [n, 2] of its image files, none of raw pixels."""

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
    cls: bool = True,
    split: str = "train",
    root: Path | None = None,
    progress: Progress | None = None,
) -> ShardIndex:
    """Pack the images of `source` (see `open_source`) into shards in folder `out`, and return their index.

    `size` in pixels and `channels` (1 or 3) are the source's own where None; `workers` are all cores where None. Whatever
    the `encoding`, a shard gets as many samples as raw pixels of `shard_size_mb` have; `quality` of JPEG is 95 where None.
    `progress` is told (images done, images in all), first with what an earlier, interrupted pack had done.
    `cls=False` leaves the labels out of the tars; `labels.npy` has them anyway. A finished dataset of the same plan is
    returned as it is. Raises ShardError for a source, a folder or a setting that will not do; finished shards stay.
    """
    _check_settings(size, channels, shard_size_mb, workers, bad_images)
    _check_encoding(encoding, quality)
    if not isinstance(source, Source):
        source = open_source(source, split=split, root=root)
    size, channels = size or source.default_size, channels or source.default_channels
    layout = ShardLayout((channels, size, size), cls and source.labels is not None)
    if encoding == "jpeg":
        quality = quality or DEFAULT_QUALITY
    encoded = (
        None
        if encoding == "raw"
        else EncodedLayout(layout.image_shape, layout.cls, encoding, quality)
    )
    packing = Packing(
        source, layout, max(1, (shard_size_mb * 2**20 - len(TRAILER)) // layout.stride), encoded
    )
    out = Path(out).expanduser()
    with explained(out, doing="cannot pack into"):
        work, shown = out / WORK_FOLDER, printable(str(out))
        finished = _finished(out, packing, bad_images)
        if finished is not None:
            shutil.rmtree(
                work, ignore_errors=True
            )  # of a pack that died between its index and this
            return finished
        if out.is_dir() and not work.is_dir() and any(out.iterdir()):
            raise ShardError(f"{shown} is not empty and holds no packed shards: give a new folder")
        with locked(
            work / "lock",
            busy=f"another pack is writing to {shown}: wait for it, or give another folder",
        ):
            finished = _finished(out, packing, bad_images)  # by whoever held the lock
            if finished is None:
                _claim(work, packing, shown)
                records = _write_shards(
                    packing, out, workers, bad_images, progress or (lambda done, total: None)
                )
                finished = _write_index(packing, out, records)
            shutil.rmtree(work, ignore_errors=True)
    return finished


def _check_settings(
    size: int | None, channels: int | None, shard_size_mb: int, workers: int | None, bad_images: str
) -> None:
    for name, value, allowed, remedy in (
        ("--size", size, range(1, 8193), "1 to 8192"),
        ("--channels", channels, (1, 3), "1 or 3"),
        ("--shard-size-mb", shard_size_mb, range(1, 65537), "1 to 65536"),
        ("--workers", workers, range(1, 1025), "1 to 1024"),
        ("--bad-images", bad_images, ("fail", "skip"), "fail or skip"),
    ):
        if value is not None and value not in allowed:
            raise ShardError(f"{name} {value} cannot be: give {remedy}")


def _check_encoding(encoding: str, quality: int | None) -> None:
    if encoding not in get_args(Encoding):
        raise ShardError(
            f"--encoding {encoding} cannot be: give one of {', '.join(get_args(Encoding))}"
        )
    if quality is not None and encoding != "jpeg":
        raise ShardError(
            f"--quality {quality} is for --encoding jpeg, and this is {encoding}: leave it out"
        )
    if quality is not None and not 1 <= quality <= MAX_QUALITY:
        raise ShardError(f"--quality {quality} cannot be: give 1 to {MAX_QUALITY}")


def _finished(out: Path, packing: Packing, bad_images: str) -> ShardIndex | None:
    """The finished dataset in `out`, or None; raises ShardError where it is another one."""
    if not (out / INDEX_FILE).exists():
        return None
    index, shown = read_index(out), printable(str(out))
    if index.plan != packing.plan:
        raise ShardError(
            f"{shown} holds another dataset (of other images or settings): give a new folder"
        )
    count = index.num_rejected
    if count and bad_images == "fail":
        raise ShardError(
            f"{shown} holds these images without {count} broken image{'s' if count > 1 else ''} (see {REJECTED_FILE}): "
            "accept that with --bad-images skip, or repair them and give a new folder"
        )
    return index


def _claim(work: Path, packing: Packing, shown: str) -> None:
    """Make the unfinished folder this plan's, or find that it is; clear away what a killed pack left half written."""
    plan_file = work / "plan"
    if not plan_file.exists():
        write_atomic(plan_file, packing.plan.encode())
    elif plan_file.read_bytes() != packing.plan.encode():
        raise ShardError(
            f"{shown} holds an unfinished pack of other images or settings: delete it or give a new folder"
        )
    for leftover in work.glob("*.tmp"):
        leftover.unlink()


def _write_shards(
    packing: Packing, out: Path, workers: int | None, bad_images: str, progress: Progress
) -> list[Finished]:
    """Write every shard that is not finished yet."""
    finished = {shard: _read_record(out, shard) for shard in range(packing.num_shards)}
    for record in finished.values():
        _refuse(record.rejected if record else [], bad_images)
    pending = [shard for shard, record in finished.items() if record is None]
    num_chunks, num_items = (
        sum(len(packing.chunks(shard)) for shard in pending),
        len(packing.source),
    )
    num_done = num_items - sum(len(packing.slots(shard)) for shard in pending)
    progress(num_done, num_items)
    if workers is None:  # not more than there is work for
        workers = 1 if packing.source.in_memory else max(1, min(usable_cores(), num_chunks // 2))
    with closing(run(packing, _chunks(packing, out, pending), workers=workers)) as results:
        for shard, chunks in groupby(results, key=lambda result: result[0].shard):
            done: list[tuple[Chunk, Written]] = []
            for chunk, written in chunks:
                _refuse(written.rejected, bad_images)
                done.append((chunk, written))
                num_done += len(chunk.slots)
                progress(num_done, num_items)
            finished[shard] = _finish_shard(packing, out, shard, done)
    return [record for record in finished.values() if record is not None]


def _chunks(packing: Packing, out: Path, shards: list[int]) -> Iterator[Chunk]:
    """The chunks of shards; the file of each shard is made when its first chunk is wanted."""
    for shard in shards:
        file = _temporary(out, shard)
        file.touch(exist_ok=False)
        yield from packing.chunks(shard, str(file))


def _refuse(rejected: list[Rejected], bad_images: str) -> None:
    if rejected and bad_images == "fail":
        raise ShardError(
            f"broken image {rejected[0].name} ({rejected[0].reason}): go on without such images with "
            "--bad-images skip, or repair it and pack into a new folder"
        )


def _finish_shard(
    packing: Packing, out: Path, shard: int, chunks: list[tuple[Chunk, Written]]
) -> Finished:
    """Close the gaps between chunks, end the tar, and give it its name and its record, durably and in this order."""
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
    finished = Finished(record, rejected, np.concatenate(spans))
    fields = [asdict(record), rejected, finished.spans.tolist()]
    write_atomic(_record_file(out, shard), json.dumps(fields).encode())
    return finished


def _read_record(out: Path, shard: int) -> Finished | None:
    """The record of a shard that is finished, and whose bytes still are what the record says."""
    try:
        fields, rejected, spans = json.loads(_record_file(out, shard).read_bytes())
        record = ShardRecord(**fields)
        file = out / f"{shard:06d}.tar"
        whole = file.stat().st_size == record.num_bytes and sha256_of_file(file) == record.sha256
        images = [Rejected(*image) for image in rejected]
        return Finished(record, images, np.array(spans, np.int64).reshape(-1, 2)) if whole else None
    except (FileNotFoundError, ValueError, TypeError):
        return None


def _write_index(packing: Packing, out: Path, records: list[Finished]) -> ShardIndex:
    """Write what describes the finished shards; `index.json` comes last and makes them a dataset."""
    source = packing.source
    rejected = [image for record in records for image in record.rejected]
    if len(rejected) == len(source):
        first = f"the first is {rejected[0].name}, {rejected[0].reason}"
        raise ShardError(
            f"all {len(source):,} images are broken ({first}): give other images and a new folder"
        )
    if rejected:
        lines = [
            json.dumps({"name": image.name, "reason": image.reason}) + "\n" for image in rejected
        ]
        write_atomic(out / REJECTED_FILE, "".join(lines).encode())
    labels_sha256 = class_counts = None
    if source.labels is not None and source.class_names is not None:
        slots = np.delete(np.arange(len(source)), [image.slot for image in rejected])
        labels = source.labels[packing.items(slots)]
        data = npy_of_labels(labels)
        write_atomic(out / LABELS_FILE, data)
        labels_sha256 = hashlib.sha256(data).hexdigest()
        class_counts = tuple(np.bincount(labels, minlength=len(source.class_names)).tolist())
    encoded, spans_sha256 = packing.encoded, None
    if encoded is not None:
        data = npy_of_spans(np.concatenate([record.spans for record in records]))
        write_atomic(out / SPANS_FILE, data)
        spans_sha256 = hashlib.sha256(data).hexdigest()
    index = ShardIndex(
        path=out,
        image_shape=packing.layout.image_shape,
        num_samples=len(source) - len(rejected),
        class_names=source.class_names,
        class_counts=class_counts,
        labels_sha256=labels_sha256,
        cls=packing.layout.cls,
        num_rejected=len(rejected),
        shards=tuple(finished.record for finished in records),
        plan=packing.plan,
        encoding=RAW if encoded is None else encoded.encoding,
        quality=None if encoded is None else encoded.quality,
        spans_sha256=spans_sha256,
    )
    write_atomic(out / INDEX_FILE, index.to_json())
    return index


def _temporary(out: Path, shard: int) -> Path:
    # with the process id: an orphan of a killed pack may live a moment longer and must not write into the new file
    return out / WORK_FOLDER / f"{shard:06d}.{os.getpid()}.tmp"


def _record_file(out: Path, shard: int) -> Path:
    return out / WORK_FOLDER / f"{shard:06d}.json"
