"""Packing on several machines: each writes the shards of one part, and one joins them.

Part 3/64 holds shards 2, 66, 130, ... of the dataset. Parts share the lock of the output folder and
hold one of their own, so that a part is packed once at a time; a join, like `pack`, needs the
folder for itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from shards.errors import ShardError
from shards.files import expand_user, locked, readable_errors, write_atomic
from shards.format.index import ShardIndex
from shards.output import OutputFolder
from shards.pack import BadImages, check_how
from shards.pack_shards import (
    FinishedShard,
    Progress,
    check_rejected,
    content_of_shards,
    read_finished,
    write_shards,
)
from shards.pack_workers import Packing
from shards.processes import num_usable_cores

MAX_PARTS = 100_000
_MAX_NAMED = 8  # parts in a message


class Part(NamedTuple):
    """One of `total` parts of a dataset, counted from 1: every `total`th shard."""

    number: int
    total: int

    def __str__(self) -> str:
        return f"{self.number}/{self.total}"

    def shards(self, num_shards: int) -> range:
        """Return the numbers of its shards, of which there may be none."""
        return range(self.number - 1, num_shards, self.total)


class PackedPart(NamedTuple):
    """What a part holds: its shards and their images, without those that were left out."""

    num_shards: int
    num_samples: int
    num_rejected: int


def parse_part(text: str) -> Part:
    """Return the part that a text such as `3/64` names. Raises ShardError."""
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    part = Part(*map(int, match.groups())) if match else Part(0, 0)
    if not 1 <= part.number <= part.total <= MAX_PARTS:
        raise ShardError(
            f"--part {text} is not possible: give a number from 1 and how many parts there are, "
            f"such as 3/64"
        )
    return part


def pack_part(
    packing: Packing,
    out: str | Path,
    part: Part,
    *,
    workers: int | None = None,
    bad_images: BadImages = "fail",
    progress: Progress = lambda done, total: None,
) -> PackedPart | ShardIndex:
    """Write the shards of one part into folder `out`, while other machines write other parts.

    Repeat it to resume. Returns the index instead if the parts were joined already. Raises
    ShardError for another plan, another number of parts, and if another process packs this part.
    """
    check_how(workers, bad_images)
    folder = OutputFolder(expand_user(out), packing)
    numbers = part.shards(packing.num_shards)
    busy = f"another pack is writing to {folder.name}: wait for it, or give another folder"
    busy_part = f"another process packs part {part} into {folder.name}: wait for it"
    own = folder.work / f"part-{part.number}.lock"
    with readable_errors(folder.path, doing="cannot pack into"):
        joined = folder.read_same()
        if joined is not None:
            return joined
        folder.check_empty()
        lock = folder.work / "lock"
        with locked(lock, busy=busy, shared=True), locked(own, busy=busy_part):
            joined = folder.read_same()
            if joined is not None:
                return joined
            folder.claim(numbers, check=lambda: _claim_parts(folder, part))
            shards = write_shards(packing, folder.path, numbers, workers, bad_images, progress)
    return PackedPart(
        len(shards),
        sum(shard.record.num_samples for shard in shards),
        sum(len(shard.rejected) for shard in shards),
    )


def join_parts(
    packing: Packing,
    out: str | Path,
    *,
    workers: int | None = None,
    bad_images: BadImages = "fail",
    progress: Progress = lambda done, total: None,
) -> ShardIndex:
    """Check the shards of all parts in folder `out`, write the index, and return it.

    Every shard is read. If its source files are not those that this machine sees, but copies, or
    written again, their content is compared. Raises ShardError if a part is missing, damaged,
    being packed, or was packed from other files.
    """
    check_how(workers, bad_images)
    folder = OutputFolder(expand_user(out), packing)
    busy = f"parts are being packed into {folder.name}: wait until they have ended"
    with folder.reserved(busy, bad_images=bad_images, workers=workers) as index:
        if index is not None:
            return index
        total = _num_parts(folder)
        if total is None:
            raise ShardError(
                f"{folder.name} holds no parts to join: pack them first, with --part 1/N to N/N"
            )
        folder.claim()
        shards = _read_shards(folder, total, workers, progress)
        for shard in shards:
            check_rejected(shard.rejected, bad_images)
        _check_content(folder, shards, total, workers)
        return folder.write_index(shards)


def _claim_parts(folder: OutputFolder, part: Part) -> None:
    """Record the number of parts, or check that it is the same. Raises ShardError."""
    total = _num_parts(folder)
    if total is None:
        write_atomic(folder.work / "parts", str(part.total))
    elif total != part.total:
        raise ShardError(
            f"{folder.name} is packed in {total} parts, not {part.total}: give --part K/{total}"
            ", or pack what is left in one go without --part"
        )


def _num_parts(folder: OutputFolder) -> int | None:
    try:
        return int((folder.work / "parts").read_text())
    except FileNotFoundError:
        return None


def _read_shards(
    folder: OutputFolder, num_parts: int, workers: int | None, progress: Progress
) -> list[FinishedShard]:
    """Read every shard, in threads, since checksums release the interpreter lock."""
    packing, found, missing, done = folder.packing, list[FinishedShard](), list[int](), 0
    numbers, num_items = range(packing.num_shards), len(folder.packing.source)
    with ThreadPoolExecutor(workers or num_usable_cores()) as threads:
        shards = threads.map(lambda number: read_finished(folder.path, number), numbers)
        for number, shard in zip(numbers, shards, strict=True):
            if shard is None:
                missing.append(number)
            else:
                found.append(shard)
            done += len(packing.slots(number))
            progress(done, num_items)
    if missing:
        parts = _name_parts(missing, num_parts)
        raise ShardError(
            f"{folder.name} lacks {len(missing):,} of {len(numbers):,} shards, of {parts}: "
            "pack that again and repeat --join"
        )
    return found


def _check_content(
    folder: OutputFolder, shards: list[FinishedShard], num_parts: int, workers: int | None
) -> None:
    """Raise ShardError if shards were packed from files with another content than the source's."""
    packing = folder.packing
    moved = [number for number, shard in enumerate(shards) if shard.stamp != packing.stamp(number)]
    contents = content_of_shards(packing, moved, workers)
    changed = [
        number
        for number, content in zip(moved, contents, strict=True)
        if content != shards[number].content_sha256
    ]
    if changed:
        raise ShardError(
            f"{_name_parts(changed, num_parts)} of {folder.name} was packed from other files than "
            "the source holds now: pack that again and repeat --join"
        )


def _name_parts(shards: Iterable[int], num_parts: int) -> str:
    numbers = sorted({shard % num_parts + 1 for shard in shards})
    named = ", ".join(f"{number}/{num_parts}" for number in numbers[:_MAX_NAMED])
    more = f" and {len(numbers) - _MAX_NAMED} more" if len(numbers) > _MAX_NAMED else ""
    return f"part{'s' if len(numbers) > 1 else ''} {named}{more}"
