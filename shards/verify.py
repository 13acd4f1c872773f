"""Verification: whether packed shards still are, byte for byte, what their index says."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.errors import printable
from shards.files import sha256_of_file
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
from shards.reader import ShardReader

_CHUNK = 1024  # samples compared at a time
_MAX_DECODER_DIFFERENCE = 2  # grey levels by which two JPEG decoders may differ


@dataclass(frozen=True)
class Problem:
    """What is wrong with one file."""

    file: str
    message: str

    def __str__(self) -> str:
        return f"{self.file} {self.message}"


class _Damage(Exception):
    """What is wrong with the file that is being checked."""


def verify(path: str | Path) -> list[Problem]:
    """Return every problem of the shards in folder `path`. Reads every byte.

    Checksums, headers, keys, labels and spans are compared with the index. Then each sample is read
    through `webdataset`, which shares no code with this package, and compared with the memory map
    from which training reads. Raises ShardError if there is no readable index.
    """
    index = read_index(path)
    problems = _problems_of_folder(index)
    side_files: dict[str, NDArray[Any]] = {}
    for file in index.side_files:
        try:
            side_files[file] = _read_side_file(index, file)
        except _Damage as damage:
            problems.append(Problem(file, str(damage)))
    first, last_key = 0, -1
    for shard in index.shards:
        part = slice(first, first + shard.num_samples)
        labels, spans = (
            values[part] if values is not None else None
            for values in (side_files.get(LABELS_FILE), side_files.get(SPANS_FILE))
        )
        try:
            _check_file(index, shard)
            last_key = _check_samples(index, shard, labels, spans, last_key)
        except _Damage as damage:
            problems.append(Problem(shard.file, str(damage)))
        first += shard.num_samples
    return problems or _problems_for_webdataset(index)


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


def _read_side_file(index: ShardIndex, file: str) -> NDArray[Any]:
    """Return the labels [n] or the spans [n, 2]. Raises _Damage."""
    try:
        data = (index.path / file).read_bytes()
    except OSError as error:
        raise _Damage(f"cannot be read: {error.strerror}") from None
    num_bytes, sha256 = index.side_files[file]
    if hashlib.sha256(data).hexdigest() != sha256:
        raise _Damage("has another checksum than the index says")
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
        raise _Damage(f"is not an npy file for {index.num_samples} samples")
    if file == LABELS_FILE:
        classes = range(len(index.class_counts or ()))
        if tuple(int(np.count_nonzero(values == c)) for c in classes) != index.class_counts:
            raise _Damage("has other class counts than the index says")
    return values


def _check_file(index: ShardIndex, shard: ShardRecord) -> None:
    """Compare size and checksum of a shard with the index. Raises _Damage."""
    path = index.path / shard.file
    try:
        num_bytes = path.stat().st_size
        if num_bytes != shard.num_bytes:
            raise _Damage(f"has {num_bytes:,} bytes, not {shard.num_bytes:,}")
        if sha256_of_file(path) != shard.sha256:
            raise _Damage("has another checksum than the index says")
    except OSError as error:
        raise _Damage(f"cannot be read: {error.strerror}") from None


def _check_samples(
    index: ShardIndex,
    shard: ShardRecord,
    labels: NDArray[np.int32] | None,
    spans: NDArray[np.int64] | None,
    last_key: int,
) -> int:
    """Compare the samples of a shard with what packing would write around their images.

    Keys increase throughout the dataset; returns the last one. Raises _Damage.
    """
    if index.is_compressed:
        return _check_compressed(index, shard, labels, spans, last_key)
    layout = index.raw_layout
    with open(index.path / shard.file, "rb") as file:
        for first in range(0, shard.num_samples, _CHUNK):
            count = min(_CHUNK, shard.num_samples - first)
            data = bytearray(file.read(count * layout.stride))
            rows = np.frombuffer(data, np.uint8).reshape(count, layout.stride)
            keys = layout.keys(rows)
            if not np.all(np.diff(keys, prepend=last_key) > 0) or keys[-1] >= 10**KEY_DIGITS:
                raise _Damage("has keys out of order")
            last_key = int(keys[-1])
            if layout.cls and labels is None:
                continue  # the labels are damaged, as reported
            layout.pixels(rows)[:] = 0
            expected = layout.blank(keys, None if labels is None else labels[first:][:count])
            wrong = np.flatnonzero((rows != expected).any(axis=1))
            if len(wrong):
                raise _Damage(f"has unexpected bytes around sample {first + wrong[0]}")
        if file.read() != TRAILER:
            raise _Damage("does not end as a tar does")
    return last_key


def _check_compressed(
    index: ShardIndex,
    shard: ShardRecord,
    labels: NDArray[np.int32] | None,
    spans: NDArray[np.int64] | None,
    last_key: int,
) -> int:
    layout, end = index.compressed_layout, 0
    if spans is None or (layout.cls and labels is None):
        return last_key  # spans or labels are damaged, as reported
    with open(index.path / shard.file, "rb") as file:
        for number, (offset, length) in enumerate(spans.tolist()):
            header = file.read(BLOCK)
            key = _key_of(header)
            if key is None or key <= last_key:
                raise _Damage("has keys out of order")
            last_key = key
            is_span = offset == end + BLOCK and 0 < length <= shard.num_bytes
            image = file.read(length) if is_span else b""
            label = labels[number : number + 1] if labels is not None and layout.cls else None
            sample, _ = layout.join(np.array([key]), [image], label)
            rest = sample[BLOCK + len(image) :]
            if not sample.startswith(header) or file.read(len(rest)) != rest or not image:
                raise _Damage(f"has unexpected bytes around sample {number}")
            end += len(sample)
        if file.read() != TRAILER:
            raise _Damage("does not end as a tar does")
    return last_key


def _key_of(header: bytes) -> int | None:
    """Return the key at the beginning of a tar header, or None if it is no number."""
    digits = header[:KEY_DIGITS]
    return int(digits) if len(digits) == KEY_DIGITS and digits.isdigit() else None


def _problems_for_webdataset(index: ShardIndex) -> list[Problem]:
    """Return the shards whose samples `webdataset` reads otherwise than the memory map holds."""
    reader, problems, first = ShardReader(index), [], 0
    for shard in index.shards:
        ids = range(first, first + shard.num_samples)
        try:
            _compare_with_webdataset(reader, index.path / shard.file, ids)
        except _Damage as damage:
            problems.append(Problem(shard.file, str(damage)))
        first += shard.num_samples
    return problems


def _compare_with_webdataset(reader: ShardReader, path: Path, ids: range) -> None:
    """Read every sample of a shard through `webdataset` and compare it. Raises _Damage."""
    num_read = 0
    try:
        for id_, (image, label) in zip(ids, _webdataset_samples(reader.index, path), strict=True):
            expected = reader.gather(np.array([id_]))[0]
            limit = _MAX_DECODER_DIFFERENCE if reader.index.encoding == "jpeg" else 0
            differs = image.shape != expected.shape or image.dtype != np.uint8
            if differs or np.abs(image.astype(int) - expected).max() > limit:
                raise _Damage(f"holds another image for webdataset in sample {num_read}")
            if reader.index.cls and label != reader.labels(np.array([id_]))[0]:
                raise _Damage(f"holds another label for webdataset in sample {num_read}")
            num_read += 1
    except _Damage:
        raise
    except Exception as error:  # webdataset and its decoders raise nearly every type
        reason = printable(next(iter(str(error).splitlines()), type(error).__name__))[:160]
        raise _Damage(f"cannot be read by webdataset after {num_read} samples: {reason}") from error


def _webdataset_samples(index: ShardIndex, path: Path) -> Iterator[tuple[NDArray[Any], Any]]:
    """Yield image [C, H, W] and label, or None, of each sample of a shard."""
    import webdataset

    grey = index.image_shape[0] == 1
    with open(path, "rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # webdataset leaves files to be collected
        # By descriptor, since a path with # or ? would be taken for a URL.
        dataset = webdataset.WebDataset(
            [f"/dev/fd/{file.fileno()}"],
            shardshuffle=False,
            nodesplitter=None,
            empty_check=False,
            seed=0,
        )
        for sample in dataset.decode("l8" if grey else "rgb8"):
            if index.is_compressed:
                image = np.asarray(sample[index.compressed_layout.extension[1:]])
                image = image[None] if grey else image.transpose(2, 0, 1)
            else:
                image = sample["npy"]
            yield image, sample.get("cls")
