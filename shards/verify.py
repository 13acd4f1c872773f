"""Verification: whether packed shards still are, byte for byte, what their index says."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shards.errors import printable
from shards.files import sha256_of_file
from shards.format.compressed import key_of
from shards.format.index import (
    LABELS_FILE,
    REJECTED_FILE,
    SPANS_FILE,
    WORK_FOLDER,
    ShardIndex,
    ShardRecord,
    read_index,
)
from shards.format.raw import (
    BLOCK,
    KEY_DIGITS,
    NPY_HEADER_BYTES,
    TRAILER,
    npy_of_labels,
    npy_of_spans,
)

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
    spans = None
    if index.is_encoded:
        spans, found = _read_spans(index)
        problems += found
    first, last_key = 0, -1
    for shard in index.shards:
        samples = slice(first, first + shard.num_samples)
        own = None if labels is None else labels[samples]
        found, last_key = _problems_of_shard(
            index, shard, own, None if spans is None else spans[samples], last_key
        )
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
            problems.append(
                Problem(REJECTED_FILE, f"lists {num_lines} images, not {index.num_rejected}")
            )
    return problems


def _read_side_file(index: ShardIndex, file: str) -> tuple[bytes, list[Problem]]:
    try:
        data = (index.path / file).read_bytes()
    except OSError as error:
        return b"", [Problem(file, f"cannot be read: {error.strerror}")]
    _, sha256 = index.side_files[file]
    if hashlib.sha256(data).hexdigest() != sha256:
        return b"", [Problem(file, "has another checksum than the index says")]
    return data, []


def _read_labels(index: ShardIndex) -> tuple[NDArray[np.int32] | None, list[Problem]]:
    data, problems = _read_side_file(index, LABELS_FILE)
    if problems:
        return None, problems
    labels = np.frombuffer(data[NPY_HEADER_BYTES:][: 4 * index.num_samples], "<i4")
    if npy_of_labels(labels) != data or len(labels) != index.num_samples:
        return None, [Problem(LABELS_FILE, f"is not an npy file of {index.num_samples} labels")]
    counts = tuple(
        int(np.count_nonzero(labels == label)) for label in range(len(index.class_counts or ()))
    )
    if counts != index.class_counts:
        return None, [Problem(LABELS_FILE, "has other class counts than the index says")]
    return labels, []


def _read_spans(index: ShardIndex) -> tuple[NDArray[np.int64] | None, list[Problem]]:
    data, problems = _read_side_file(index, SPANS_FILE)
    if problems:
        return None, problems
    spans = np.frombuffer(data[NPY_HEADER_BYTES:][: 16 * index.num_samples], "<i8")
    if len(spans) != 2 * index.num_samples or npy_of_spans(spans.reshape(-1, 2)) != data:
        return None, [Problem(SPANS_FILE, f"is not an npy file of {index.num_samples} spans")]
    return spans.reshape(-1, 2), []


def _problems_of_shard(
    index: ShardIndex,
    shard: ShardRecord,
    labels: NDArray[np.int32] | None,
    spans: NDArray[np.int64] | None,
    last_key: int,
) -> tuple[list[Problem], int]:
    """The problems of one shard, and its last key: keys rise through the whole dataset."""
    path, layout = index.path / shard.file, index.layout
    try:
        num_bytes = path.stat().st_size
        if num_bytes != shard.num_bytes:
            return [
                Problem(shard.file, f"has {num_bytes:,} bytes, not {shard.num_bytes:,}")
            ], last_key
        if sha256_of_file(path) != shard.sha256:
            return [Problem(shard.file, "has another checksum than the index says")], last_key
    except OSError as error:
        return [Problem(shard.file, f"cannot be read: {error.strerror}")], last_key
    if index.is_encoded:
        return _problems_of_samples(index, shard, labels, spans, last_key)
    with open(path, "rb") as file:
        for first in range(0, shard.num_samples, _CHUNK):
            count = min(_CHUNK, shard.num_samples - first)
            rows = np.frombuffer(bytearray(file.read(count * layout.stride)), np.uint8).reshape(
                count, layout.stride
            )
            keys = layout.keys(rows)
            if not np.all(np.diff(keys, prepend=last_key) > 0) or keys[-1] >= 10**KEY_DIGITS:
                return [Problem(shard.file, "has keys out of order")], last_key
            last_key = int(keys[-1])
            if layout.cls and labels is None:
                continue  # no labels to compare with, as reported
            layout.pixels(rows)[:] = 0
            wrong = np.flatnonzero(
                (
                    rows != layout.blank(keys, labels if labels is None else labels[first:][:count])
                ).any(1)
            )
            if len(wrong):
                return [
                    Problem(shard.file, f"has unexpected bytes around sample {first + wrong[0]}")
                ], last_key
        if file.read() != TRAILER:
            return [Problem(shard.file, "does not end as a tar does")], last_key
    return [], last_key


def _problems_of_samples(
    index: ShardIndex,
    shard: ShardRecord,
    labels: NDArray[np.int32] | None,
    spans: NDArray[np.int64] | None,
    last_key: int,
) -> tuple[list[Problem], int]:
    """The problems of a shard of image files, and its last key: each sample is built again from its key, file and label."""
    layout, end = index.encoded_layout, 0
    if spans is None or (layout.cls and labels is None):
        return [], last_key  # nothing to compare with, as reported
    with open(index.path / shard.file, "rb") as file:
        for number, (offset, length) in enumerate(spans.tolist()):
            header = file.read(BLOCK)
            key = key_of(header)
            if key is None or key <= last_key:
                return [Problem(shard.file, "has keys out of order")], last_key
            last_key = key
            image = (
                file.read(length)
                if offset == end + BLOCK and 0 < length <= shard.num_bytes
                else b""
            )
            label = labels[number : number + 1] if labels is not None and layout.cls else None
            sample, _ = layout.join(np.array([key]), [image], label)
            rest = sample[BLOCK + len(image) :]
            if (
                not sample.startswith(header)
                or file.read(len(rest)) != rest
                or not layout.is_image(image)
            ):
                return [
                    Problem(shard.file, f"has unexpected bytes around sample {number}")
                ], last_key
            end += len(sample)
        if file.read() != TRAILER:
            return [Problem(shard.file, "does not end as a tar does")], last_key
    return [], last_key
