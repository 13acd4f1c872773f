"""Verification: whether packed shards still are, byte for byte, what their index says."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shards.errors import printable
from shards.files import sha256_of_file
from shards.index import LABELS_FILE, REJECTED_FILE, WORK_FOLDER, ShardIndex, ShardRecord, read_index
from shards.layout import KEY_DIGITS, NPY_HEADER_BYTES, TRAILER, npy_of_labels

_CHUNK = 1024  # samples compared at a time


@dataclass(frozen=True)
class Problem:
    """What is wrong with one file."""

    file: str
    message: str


def verify(path: str | Path) -> list[Problem]:
    """Every problem of the shards in folder `path`; none where all is well. Reads every byte.

    Raises ShardError where there is no readable index, since then there is nothing to compare with.
    """
    index = read_index(path)
    problems = _problems_of_folder(index)
    labels = None
    if index.class_names is not None:
        labels, found = _read_labels(index)
        problems += found
    first, last_key = 0, -1
    for shard in index.shards:
        own = None if labels is None else labels[first : first + shard.num_samples]
        found, last_key = _problems_of_shard(index, shard, own, last_key)
        problems += found
        first += shard.num_samples
    return problems


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
            problems.append(Problem(REJECTED_FILE, f"lists {num_lines} images, not {index.num_rejected}"))
    return problems


def _read_labels(index: ShardIndex) -> tuple[NDArray[np.int32] | None, list[Problem]]:
    try:
        data = (index.path / LABELS_FILE).read_bytes()
    except OSError as error:
        return None, [Problem(LABELS_FILE, f"cannot be read: {error.strerror}")]
    if hashlib.sha256(data).hexdigest() != index.labels_sha256:
        return None, [Problem(LABELS_FILE, "has another checksum than the index says")]
    labels = np.frombuffer(data[NPY_HEADER_BYTES:][: 4 * index.num_samples], "<i4")
    if npy_of_labels(labels) != data or len(labels) != index.num_samples:
        return None, [Problem(LABELS_FILE, f"is not an npy file of {index.num_samples} labels")]
    counts = tuple(int(np.count_nonzero(labels == label)) for label in range(len(index.class_counts or ())))
    if counts != index.class_counts:
        return None, [Problem(LABELS_FILE, "has other class counts than the index says")]
    return labels, []


def _problems_of_shard(
    index: ShardIndex, shard: ShardRecord, labels: NDArray[np.int32] | None, last_key: int
) -> tuple[list[Problem], int]:
    """The problems of one shard, and its last key: keys rise through the whole dataset."""
    path, layout = index.path / shard.file, index.layout
    try:
        num_bytes = path.stat().st_size
        if num_bytes != shard.num_bytes:
            return [Problem(shard.file, f"has {num_bytes:,} bytes, not {shard.num_bytes:,}")], last_key
        if sha256_of_file(path) != shard.sha256:
            return [Problem(shard.file, "has another checksum than the index says")], last_key
    except OSError as error:
        return [Problem(shard.file, f"cannot be read: {error.strerror}")], last_key
    with open(path, "rb") as file:
        for first in range(0, shard.num_samples, _CHUNK):
            count = min(_CHUNK, shard.num_samples - first)
            rows = np.frombuffer(bytearray(file.read(count * layout.stride)), np.uint8).reshape(count, layout.stride)
            keys = layout.keys(rows)
            if not np.all(np.diff(keys, prepend=last_key) > 0) or keys[-1] >= 10**KEY_DIGITS:
                return [Problem(shard.file, "has keys out of order")], last_key
            last_key = int(keys[-1])
            if layout.cls and labels is None:
                continue  # no labels to compare with, as reported
            layout.pixels(rows)[:] = 0
            wrong = np.flatnonzero(
                (rows != layout.blank(keys, labels if labels is None else labels[first:][:count])).any(1)
            )
            if len(wrong):
                return [Problem(shard.file, f"has unexpected bytes around sample {first + wrong[0]}")], last_key
        if file.read() != TRAILER:
            return [Problem(shard.file, "does not end as a tar does")], last_key
    return [], last_key
