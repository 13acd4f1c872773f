"""The shards of a dataset: written one after another, recorded, and found again when resuming.

A shard is recorded in `.packing/NNNNNN.json` together with a stamp of the files it was packed from.
It is packed again if its own bytes have changed, or if any of those files has.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shards.errors import ShardError
from shards.files import sha256_of_file, sync_path, write_atomic
from shards.format.index import WORK_FOLDER, ShardRecord
from shards.format.raw import TRAILER
from shards.pack_workers import Chunk, Packing, Rejected, Written, pwrite_all
from shards.processes import num_usable_cores, run

Progress = Callable[[int, int], None]


class FinishedShard(NamedTuple):
    """A shard that has its final name, and the spans [n, 2] of its image files, if it has any."""

    record: ShardRecord
    rejected: list[Rejected]
    spans: NDArray[np.int64]
    stamp: str  # of its source files, see Packing.stamp
    content_sha256: str  # over the digests of its source files


def write_shards(
    packing: Packing,
    out: Path,
    numbers: Sequence[int],
    workers: int | None,
    bad_images: str,
    progress: Progress,
) -> list[FinishedShard]:
    """Write every shard of these numbers that is not finished yet, and return them all."""
    finished: dict[int, FinishedShard | None] = {}
    for number in numbers:
        shard = read_finished(out, number)
        is_current = shard is not None and shard.stamp == packing.stamp(number)
        finished[number] = shard if is_current else None
        check_rejected(shard.rejected if shard and is_current else [], bad_images)
    pending = [number for number, shard in finished.items() if shard is None]
    num_items = sum(len(packing.slots(number)) for number in numbers)
    num_done = num_items - sum(len(packing.slots(number)) for number in pending)
    progress(num_done, num_items)
    workers = workers or _default_num_workers(packing, pending)
    with closing(run(packing.write, _chunks(packing, out, pending), workers=workers)) as results:
        for number, chunks in groupby(results, key=lambda result: result[0].shard):
            done: list[tuple[Chunk, Written]] = []
            for chunk, written in chunks:
                if written.rejected:  # they may be bytes of another file
                    packing.source.check()
                check_rejected(written.rejected, bad_images)
                done.append((chunk, written))
                num_done += len(chunk.slots)
                progress(num_done, num_items)
            packing.source.check()
            finished[number] = _finish_shard(packing, out, number, done)
    return [shard for shard in finished.values() if shard is not None]


def source_sha256(packing: Packing, workers: int | None) -> str | None:
    """Read the source, and return the sha256 that the index of its dataset records."""
    if packing.source.in_memory:
        return None
    return combine_sha256(content_of_shards(packing, range(packing.num_shards), workers))


def content_of_shards(
    packing: Packing, numbers: Sequence[int], workers: int | None
) -> Iterator[str]:
    """Read the source files of shards, and yield the `content_sha256` of each shard."""
    chunks = (chunk for number in numbers for chunk in packing.chunks(number))
    workers = workers or _default_num_workers(packing, numbers)
    with closing(run(packing.digests, chunks, workers=workers)) as results:
        for _, group in groupby(results, key=lambda result: result[0].shard):
            yield _sha256_of(digests for _, digests in group)


def combine_sha256(shards: Iterable[str]) -> str:
    """Return the sha256 of the source from those of the content of all shards."""
    return hashlib.sha256("\n".join(shards).encode()).hexdigest()


def _default_num_workers(packing: Packing, shards: Sequence[int]) -> int:
    """Return a number of processes, no more than there is work for."""
    num_chunks = sum(len(packing.chunks(number)) for number in shards)
    return 1 if packing.source.in_memory else max(1, min(num_usable_cores(), num_chunks // 2))


def _sha256_of(parts: Iterable[bytes]) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()


def _chunks(packing: Packing, out: Path, shards: list[int]) -> Iterator[Chunk]:
    """Yield the chunks of shards, and create the file of each shard before its first chunk."""
    for shard in shards:
        file = _temporary(out, shard)
        file.touch(exist_ok=False)
        yield from packing.chunks(shard, str(file))


def check_rejected(rejected: list[Rejected], bad_images: str) -> None:
    """Raise ShardError for the first broken image, unless those are to be left out."""
    if rejected and bad_images == "fail":
        raise ShardError(
            f"broken image {rejected[0].name} ({rejected[0].reason}): go on without such images "
            "with --bad-images skip, or repair it and pack into a new folder"
        )


def _finish_shard(
    packing: Packing, out: Path, shard: int, chunks: list[tuple[Chunk, Written]]
) -> FinishedShard:
    """Close the gaps between chunks, end the tar, rename it and record it, each durably."""
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
    content = _sha256_of(written.digests for _, written in chunks)
    finished = FinishedShard(record, rejected, np.concatenate(spans), packing.stamp(shard), content)
    fields = [asdict(record), rejected, finished.spans.tolist(), finished.stamp, content]
    write_atomic(_record_file(out, shard), json.dumps(fields))
    return finished


def read_finished(out: Path, shard: int) -> FinishedShard | None:
    """Return a shard that was recorded, or None if there is none or its bytes have changed."""
    try:
        fields, rejected, spans, stamp, content = json.loads(_record_file(out, shard).read_bytes())
        record = ShardRecord(**fields)
        file = out / f"{shard:06d}.tar"
        if file.stat().st_size != record.num_bytes or sha256_of_file(file) != record.sha256:
            return None
        images = [Rejected(*image) for image in rejected]
        spans = np.array(spans, np.int64).reshape(-1, 2)
        return FinishedShard(record, images, spans, str(stamp), str(content))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def _temporary(out: Path, shard: int) -> Path:
    # With the process id: a worker of a killed pack may live a moment longer, and must not write
    # into the file of the pack that resumes.
    return out / WORK_FOLDER / f"{shard:06d}.{os.getpid()}.tmp"


def _record_file(out: Path, shard: int) -> Path:
    return out / WORK_FOLDER / f"{shard:06d}.json"
