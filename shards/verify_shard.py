"""Verification of one shard: its bytes, and what `webdataset` and training read of it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shards.errors import printable
from shards.files import sha256_of_file
from shards.format.index import LABELS_FILE, SPANS_FILE, ShardIndex, ShardRecord
from shards.format.raw import BLOCK, KEY_DIGITS, TRAILER
from shards.reader import ShardReader

_CHUNK = 1024  # samples compared at a time
_MAX_DECODER_DIFFERENCE = 2  # grey levels by which two JPEG decoders may differ
OUT_OF_ORDER = "has keys out of order"


class Damage(Exception):
    """What is wrong with the file that is being checked."""


class Keys(NamedTuple):
    """The first and the last key of a shard."""

    first: int
    last: int


@dataclass(frozen=True)
class BytesCheck:
    """Compares the bytes of shards with the index. `intact` names the side files that are whole."""

    index: ShardIndex
    intact: frozenset[str]

    def __call__(self, number: int) -> Keys | str | None:
        """Return the keys of a shard, or what is wrong with it.

        None if its samples cannot be checked because a side file is damaged.
        """
        shard = self.index.shards[number]
        part = slice(self._starts[number], self._starts[number] + shard.num_samples)
        labels, spans = (
            values[part] if values is not None else None for values in (self._labels, self._spans)
        )
        try:
            _check_file(self.index, shard)
            if self.index.is_compressed:
                return _check_compressed(self.index, shard, labels, spans)
            return _check_raw(self.index, shard, labels)
        except Damage as damage:
            return str(damage)

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        return starts_of(self.index)

    @cached_property
    def _labels(self) -> NDArray[Any] | None:
        return self._map(LABELS_FILE)

    @cached_property
    def _spans(self) -> NDArray[Any] | None:
        return self._map(SPANS_FILE)

    def _map(self, file: str) -> NDArray[Any] | None:
        values: NDArray[Any] | None = None
        if file in self.intact:
            values = np.load(self.index.path / file, mmap_mode="r")
        return values


@dataclass(frozen=True)
class SamplesCheck:
    """Compares the samples that `webdataset` reads with those that training reads."""

    index: ShardIndex

    def __call__(self, number: int) -> str | None:
        """Return what is wrong with a shard, or None."""
        shard, start = self.index.shards[number], int(starts_of(self.index)[number])
        ids = range(start, start + shard.num_samples)
        try:
            _compare_with_webdataset(self._reader, self.index.path / shard.file, ids)
        except Damage as damage:
            return str(damage)
        return None

    @cached_property
    def _reader(self) -> ShardReader:
        return ShardReader(self.index)


def starts_of(index: ShardIndex) -> NDArray[np.int64]:
    """Return the number of samples before each shard."""
    counts = np.array([shard.num_samples for shard in index.shards], np.int64)
    starts: NDArray[np.int64] = np.cumsum(counts) - counts
    return starts


def _check_file(index: ShardIndex, shard: ShardRecord) -> None:
    """Compare size and checksum of a shard with the index. Raises Damage."""
    path = index.path / shard.file
    try:
        num_bytes = path.stat().st_size
        if num_bytes != shard.num_bytes:
            raise Damage(f"has {num_bytes:,} bytes, not {shard.num_bytes:,}")
        if sha256_of_file(path) != shard.sha256:
            raise Damage("has another checksum than the index says")
    except OSError as error:
        raise Damage(f"cannot be read: {error.strerror}") from None


def _check_raw(
    index: ShardIndex, shard: ShardRecord, labels: NDArray[np.int32] | None
) -> Keys | None:
    """Compare the samples of a shard with what packing would write around their images.

    Keys increase. Raises Damage.
    """
    layout = index.raw_layout
    if layout.cls and labels is None:
        return None  # the labels are damaged, as reported
    first_key, last_key = None, -1
    with open(index.path / shard.file, "rb") as file:
        for first in range(0, shard.num_samples, _CHUNK):
            count = min(_CHUNK, shard.num_samples - first)
            data = bytearray(file.read(count * layout.stride))
            rows = np.frombuffer(data, np.uint8).reshape(count, layout.stride)
            keys = layout.keys(rows)
            if not np.all(np.diff(keys, prepend=last_key) > 0) or keys[-1] >= 10**KEY_DIGITS:
                raise Damage(OUT_OF_ORDER)
            last_key = int(keys[-1])
            first_key = int(keys[0]) if first_key is None else first_key
            layout.pixels(rows)[:] = 0
            expected = layout.blank(keys, None if labels is None else labels[first:][:count])
            wrong = np.flatnonzero((rows != expected).any(axis=1))
            if len(wrong):
                raise Damage(f"has unexpected bytes around sample {first + wrong[0]}")
        if file.read() != TRAILER:
            raise Damage("does not end as a tar does")
    return None if first_key is None else Keys(first_key, last_key)


def _check_compressed(
    index: ShardIndex,
    shard: ShardRecord,
    labels: NDArray[np.int32] | None,
    spans: NDArray[np.int64] | None,
) -> Keys | None:
    layout, end, first_key, last_key = index.compressed_layout, 0, None, -1
    if spans is None or (layout.cls and labels is None):
        return None  # spans or labels are damaged, as reported
    with open(index.path / shard.file, "rb") as file:
        for number, (offset, length) in enumerate(spans.tolist()):
            header = file.read(BLOCK)
            key = _key_of(header)
            if key is None or key <= last_key:
                raise Damage(OUT_OF_ORDER)
            last_key = key
            first_key = key if first_key is None else first_key
            is_span = offset == end + BLOCK and 0 < length <= shard.num_bytes
            image = file.read(length) if is_span else b""
            label = labels[number : number + 1] if labels is not None and layout.cls else None
            sample, _ = layout.join(np.array([key]), [image], label)
            rest = sample[BLOCK + len(image) :]
            if not sample.startswith(header) or file.read(len(rest)) != rest or not image:
                raise Damage(f"has unexpected bytes around sample {number}")
            end += len(sample)
        if file.read() != TRAILER:
            raise Damage("does not end as a tar does")
    return None if first_key is None else Keys(first_key, last_key)


def _key_of(header: bytes) -> int | None:
    """Return the key at the beginning of a tar header, or None if it is no number."""
    digits = header[:KEY_DIGITS]
    return int(digits) if len(digits) == KEY_DIGITS and digits.isdigit() else None


def _compare_with_webdataset(reader: ShardReader, path: Path, ids: range) -> None:
    """Read every sample of a shard through `webdataset` and compare it. Raises Damage."""
    num_read = 0
    try:
        for id_, (image, label) in zip(ids, _webdataset_samples(reader.index, path), strict=True):
            expected = reader.gather(np.array([id_]))[0]
            limit = _MAX_DECODER_DIFFERENCE if reader.index.encoding == "jpeg" else 0
            differs = image.shape != expected.shape or image.dtype != expected.dtype
            if differs or np.abs(image.astype(int) - expected).max() > limit:
                raise Damage(f"holds another image for webdataset in sample {num_read}")
            if reader.index.cls and label != reader.labels(np.array([id_]))[0]:
                raise Damage(f"holds another label for webdataset in sample {num_read}")
            num_read += 1
    except Damage:
        raise
    except Exception as error:  # webdataset and its decoders raise nearly every type
        reason = printable(next(iter(str(error).splitlines()), type(error).__name__))[:160]
        raise Damage(f"cannot be read by webdataset after {num_read} samples: {reason}") from error


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
