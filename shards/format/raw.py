"""Shards of raw pixels: a USTAR tar whose samples all have one length, and so an array on disk.

sample = [tar header 512][npy header 128][pixels C*H*W][padding] ([tar header 512][label][padding])
shard  = sample * num_samples, then two empty blocks of 512

The label, as text, is there only if the tars hold class numbers.
"""

from __future__ import annotations

import io
import math
import tarfile
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK = tarfile.BLOCKSIZE
NPY_HEADER_BYTES = 128
KEY_DIGITS = 9
TRAILER = bytes(2 * BLOCK)
_POWERS = 10 ** np.arange(KEY_DIGITS - 1, -1, -1)
_SIZE, _SIZE_SHIFTS = slice(124, 135), np.arange(30, -1, -3)  # of a tar header: 11 octal digits
_CHECKSUM, _CHECKSUM_SHIFTS = slice(148, 154), np.arange(15, -1, -3)  # 6 octal digits


@dataclass(frozen=True)
class RawLayout:
    """The bytes of samples of pixels [C, H, W]; `cls` says whether they hold a label."""

    image_shape: tuple[int, int, int]
    cls: bool
    bits: int = 8  # per channel, or 16

    @property
    def image_bytes(self) -> int:
        return math.prod(self.image_shape) * self.dtype.itemsize

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype("|u1" if self.bits == 8 else "<u2")

    @property
    def _image_member_bytes(self) -> int:
        return BLOCK + -(-(NPY_HEADER_BYTES + self.image_bytes) // BLOCK) * BLOCK

    @property
    def stride(self) -> int:
        """Bytes from the beginning of one sample to the beginning of the next."""
        return self._image_member_bytes + 2 * BLOCK * self.cls

    def shard_bytes(self, num_samples: int) -> int:
        """Return the size of the file of a shard."""
        return num_samples * self.stride + len(TRAILER)

    @cached_property
    def npy_header(self) -> bytes:
        """The 128 bytes that make the pixels after them an array [C, H, W]."""
        file = io.BytesIO()
        header = {"descr": self.dtype.str, "fortran_order": False, "shape": self.image_shape}
        np.lib.format.write_array_header_1_0(file, header)
        assert len(file.getvalue()) == NPY_HEADER_BYTES, "an npy header has another length"
        return file.getvalue()

    def blank(self, keys: NDArray[np.int64], labels: NDArray[np.int32] | None) -> NDArray[np.uint8]:
        """Return samples [n, stride] that are complete except for their pixels, which are zero."""
        rows = np.zeros((len(keys), self.stride), np.uint8)
        rows[:, :BLOCK] = tar_headers(keys, ".npy", NPY_HEADER_BYTES + self.image_bytes)
        rows[:, BLOCK : BLOCK + NPY_HEADER_BYTES] = np.frombuffer(self.npy_header, np.uint8)
        if self.cls:
            assert labels is not None, "a layout with labels needs labels"
            rows[:, self._image_member_bytes :] = label_members(keys, labels)
        return rows

    def pixels(self, rows: NDArray[np.uint8]) -> NDArray[Any]:
        """Return a view [n, C, H, W] of the pixels of samples [n, stride]."""
        start = BLOCK + NPY_HEADER_BYTES
        pixels = rows[:, start : start + self.image_bytes].view(self.dtype)
        return pixels.reshape(len(rows), *self.image_shape)

    def keys(self, rows: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Return the keys of samples [n, stride]; bytes that are no digits give any number."""
        return (rows[:, :KEY_DIGITS].astype(np.int64) - ord("0")) @ _POWERS


def npy_of_labels(labels: NDArray[np.int32]) -> bytes:
    """Return the bytes of `labels.npy`: a header of NPY_HEADER_BYTES, then int32, little-endian."""
    return _npy(labels.astype("<i4"))


def npy_of_spans(spans: NDArray[np.int64]) -> bytes:
    """Return the bytes of `spans.npy`: a header of NPY_HEADER_BYTES, then int64 [n, 2]."""
    return _npy(spans.astype("<i8"))


def _npy(array: NDArray[np.generic]) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def label_members(keys: NDArray[np.int64], labels: NDArray[np.int32]) -> NDArray[np.uint8]:
    """Return tar members [n, 1024] that hold the labels as text."""
    texts = labels.astype("S")  # zero-padded ASCII
    rows = np.zeros((len(keys), 2 * BLOCK), np.uint8)
    rows[:, :BLOCK] = tar_headers(keys, ".cls", np.strings.str_len(texts).astype(np.int64))
    rows[:, BLOCK : BLOCK + texts.itemsize] = texts.view(np.uint8).reshape(len(keys), -1)
    return rows


def tar_headers(
    keys: NDArray[np.int64], extension: str, num_bytes: int | NDArray[np.int64]
) -> NDArray[np.uint8]:
    """Return the USTAR headers [n, 512] of members `<key><extension>` of `num_bytes`.

    They equal those of `tarfile`, which makes the template; keys, sizes and checksums are filled in
    for all samples at once. `webdataset.TarWriter` writes one member at a time, which takes six
    times as long per sample (87 against 14 microseconds at 64x64), puts the label before the image
    and pads every archive to a multiple of 10,240 bytes.
    """
    in_range = len(keys) == 0 or (keys.min() >= 0 and keys.max() < 10**KEY_DIGITS)
    assert in_range, "a key does not fit into its digits"
    member = tarfile.TarInfo("0" * KEY_DIGITS + extension)
    template = np.frombuffer(member.tobuf(tarfile.USTAR_FORMAT), np.uint8)
    rows = np.tile(template, (len(keys), 1))
    digits = keys[:, None] // _POWERS % 10
    rows[:, :KEY_DIGITS] += digits.astype(np.uint8)
    sizes = np.atleast_1d(np.asarray(num_bytes, np.int64))[:, None] >> _SIZE_SHIFTS & 7
    rows[:, _SIZE] += sizes.astype(np.uint8)
    # the sum of all bytes of the header
    checksums = int(template[_CHECKSUM].tobytes(), 8) + digits.sum(axis=1) + sizes.sum(axis=1)
    rows[:, _CHECKSUM] = ord("0") + (checksums[:, None] >> _CHECKSUM_SHIFTS & 7)
    return rows
