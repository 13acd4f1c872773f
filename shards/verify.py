"""Verification: whether packed shards still are, byte for byte, what their index says."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.errors import printable
from shards.format.index import (
    LABELS_FILE,
    REJECTED_FILE,
    WORK_FOLDER,
    ShardIndex,
    read_index,
)
from shards.format.raw import NPY_HEADER_BYTES, npy_of_labels, npy_of_spans
from shards.parts import Part
from shards.processes import num_usable_cores, run
from shards.verify_shard import OUT_OF_ORDER, BytesCheck, Damage, Keys, SamplesCheck

_WHOLE = Part(1, 1)


@dataclass(frozen=True)
class Problem:
    """What is wrong with one file."""

    file: str
    message: str

    def __str__(self) -> str:
        return f"{self.file} {self.message}"


def verify(path: str | Path, *, part: Part = _WHOLE, workers: int | None = None) -> list[Problem]:
    """Return every problem of the shards in folder `path`. Reads every byte, or those of one part.

    Checksums, headers, keys, labels and spans are compared with the index. Then each sample is read
    through `webdataset`, which shares no code with this package, and compared with the memory map
    from which training reads. `workers` processes do so, by default one per core. Raises ShardError
    if there is no readable index.
    """
    index = read_index(path)
    numbers = part.shards(len(index.shards))
    workers = workers or max(1, min(num_usable_cores(), len(numbers) // 2))
    problems, intact = _problems_of_folder(index), set[str]()
    for file in index.side_files:
        try:
            _check_side_file(index, file)
            intact.add(file)
        except Damage as damage:
            problems.append(Problem(file, str(damage)))
    problems += _problems_of_bytes(index, numbers, frozenset(intact), workers)
    return problems or _problems_for_webdataset(index, numbers, workers)


def _problems_of_bytes(
    index: ShardIndex, numbers: Sequence[int], intact: frozenset[str], workers: int
) -> list[Problem]:
    """Return the shards whose bytes are not what the index says, or whose keys do not increase."""
    problems, last_key = [], -1
    with closing(run(BytesCheck(index, intact), numbers, workers=workers)) as results:
        for number, found in results:
            if isinstance(found, Keys) and found.first <= last_key:
                found = OUT_OF_ORDER
            if isinstance(found, Keys):
                last_key = found.last
            elif found is not None:
                problems.append(Problem(index.shards[number].file, found))
    return problems


def _problems_for_webdataset(
    index: ShardIndex, numbers: Sequence[int], workers: int
) -> list[Problem]:
    """Return the shards whose samples `webdataset` reads otherwise than the memory map holds."""
    with closing(run(SamplesCheck(index), numbers, workers=workers)) as results:
        return [
            Problem(index.shards[number].file, found)
            for number, found in results
            if found is not None
        ]


def _problems_of_folder(index: ShardIndex) -> list[Problem]:
    known = {shard.file for shard in index.shards}
    extra = sorted(file.name for file in index.path.glob("*.tar") if file.name not in known)
    problems = [Problem(printable(name), "is no part of this dataset: remove it") for name in extra]
    if (index.path / WORK_FOLDER).exists():
        problems.append(Problem(WORK_FOLDER, "is left over from packing: pack again, or remove it"))
    if index.num_rejected:
        rejected = index.path / REJECTED_FILE
        num_lines = len(rejected.read_bytes().splitlines()) if rejected.is_file() else 0
        if num_lines != index.num_rejected:
            message = f"lists {num_lines} images, not {index.num_rejected}"
            problems.append(Problem(REJECTED_FILE, message))
    return problems


def _check_side_file(index: ShardIndex, file: str) -> None:
    """Check the labels [n] or the spans [n, 2]. Raises Damage."""
    try:
        data = (index.path / file).read_bytes()
    except OSError as error:
        raise Damage(f"cannot be read: {error.strerror}") from None
    num_bytes, sha256 = index.side_files[file]
    if hashlib.sha256(data).hexdigest() != sha256:
        raise Damage("has another checksum than the index says")
    values: NDArray[Any]
    body = data[NPY_HEADER_BYTES:num_bytes]
    if file == LABELS_FILE:
        values = np.frombuffer(body, "<i4") if len(body) % 4 == 0 else np.empty(0, "<i4")
        is_whole = npy_of_labels(values) == data
    else:
        values = np.frombuffer(body, "<i8") if len(body) % 16 == 0 else np.empty(0, "<i8")
        values = values.reshape(-1, 2)
        is_whole = npy_of_spans(values) == data
    if not is_whole or len(values) != index.num_samples:
        raise Damage(f"is not an npy file for {index.num_samples} samples")
    if file == LABELS_FILE:
        counts = np.bincount(values.clip(0), minlength=len(index.class_counts or ()))
        if values.min() < 0 or tuple(counts.tolist()) != index.class_counts:
            raise Damage("has other class counts than the index says")
