"""Shards of PNG or JPEG members, for archives that must stay small: their bytes, and the images in them.

sample = [tar header 512][image file][padding] ([tar header 512][label as text][padding])
Lengths differ from sample to sample, so `spans.npy` says where each image file lies in its shard.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from shards.errors import ShardError, printable
from shards.format.raw import BLOCK, KEY_DIGITS, label_members, tar_headers

MEMBERS = {"png": ".png", "jpeg": ".jpg"}  # encoding -> extension
DEFAULT_QUALITY, MAX_QUALITY = 95, 100


@dataclass(frozen=True)
class EncodedLayout:
    """The bytes of samples of `image_shape` = (C, H, W) as image files; `cls`: with a label member."""

    image_shape: tuple[int, int, int]
    cls: bool
    encoding: str
    quality: int | None  # of JPEG

    @property
    def max_sample_bytes(self) -> int:
        """No sample is longer: a coefficient of JPEG takes at most 27 bits, and PNG stores what it cannot compress."""
        channels, size, _ = self.image_shape
        return 4 * channels * (-(-size // 8) * 8) ** 2 + 8 * BLOCK

    def encode(self, pixels: NDArray[np.uint8]) -> bytes:
        """The image file of pixels [C, H, W]; JPEG at full chroma resolution."""
        image = Image.fromarray(
            pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0))
        )
        file = io.BytesIO()
        if self.encoding == "png":
            image.save(file, "PNG")
        else:
            assert self.quality is not None, "a JPEG has a quality"
            # Pillow's buffer has to hold the whole file: what it takes by itself is less than noise needs
            ImageFile.MAXBLOCK = max(ImageFile.MAXBLOCK, self.max_sample_bytes)
            image.save(file, "JPEG", quality=self.quality, subsampling=0, optimize=True)
        return file.getvalue()

    def join(
        self, keys: NDArray[np.int64], files: list[bytes], labels: NDArray[np.int32] | None
    ) -> tuple[bytes, NDArray[np.int64]]:
        """The samples of image files one after another, and their spans [n, 2]: offset and length of each file."""
        lengths = np.array([len(file) for file in files], np.int64)
        padding = -lengths % BLOCK
        ends = np.cumsum(BLOCK + lengths + padding + 2 * BLOCK * self.cls)
        offsets = np.concatenate([[0], ends])[:-1] + BLOCK
        headers = tar_headers(keys, MEMBERS[self.encoding], lengths)
        tails = np.empty((len(files), 0), np.uint8)
        if self.cls:
            assert labels is not None, "a layout with label members needs labels"
            tails = label_members(keys, labels)
        parts = zip(headers, files, padding.tolist(), tails, strict=True)
        joined = b"".join(
            part
            for header, file, gap, tail in parts
            for part in (header.tobytes(), file, bytes(gap), tail.tobytes())
        )
        return joined, np.stack([offsets, lengths], axis=1)

    def is_image(self, file: bytes) -> bool:
        """Whether these are the bytes of an image as `encode` makes them; reads all of it."""
        try:
            with Image.open(io.BytesIO(file), formats=[self.encoding.upper()]) as image:
                image.load()
                channels, height, width = self.image_shape
                return image.size == (width, height) and image.mode == (
                    "L" if channels == 1 else "RGB"
                )
        except Exception:  # Pillow's readers raise nearly every type
            return False


class EncodedImages:
    """The images of one shard by row, each decoded when it is asked for."""

    def __init__(
        self,
        data: NDArray[np.uint8],
        spans: NDArray[np.int64],
        image_shape: tuple[int, int, int],
        *,
        shown: str,
    ) -> None:
        self._data, self._spans, self._image_shape, self._shown = data, spans, image_shape, shown

    def __getitem__(self, row: int) -> NDArray[np.uint8]:
        """uint8 [C, H, W]. Raises ShardError where the bytes are no such image."""
        import torch
        from torchvision.io import ImageReadMode

        begin, length = self._spans[row].tolist()
        file = torch.from_numpy(self._data[max(begin, 0) : max(begin, 0) + max(length, 0)].copy())
        mode = ImageReadMode.GRAY if self._image_shape[0] == 1 else ImageReadMode.RGB
        try:
            # `torchvision.io.decode_image` is this and a warning at every call that it will move to TorchCodec
            pixels = torch.ops.image.decode_image(file, mode.value, False)
        except (RuntimeError, ValueError) as error:
            raise self._damaged(
                row, f"cannot be decoded ({(str(error) or 'no reason').splitlines()[0]})"
            ) from error
        if pixels.shape != self._image_shape:
            raise self._damaged(row, f"is {list(pixels.shape)}, not {list(self._image_shape)}")
        decoded: Any = pixels.numpy()
        return decoded

    def _damaged(self, row: int, what: str) -> ShardError:
        message = f"{self._shown}: the image of sample {row} {printable(what)[:160]}"
        return ShardError(f"{message}; run `distgan verify` and restore or pack it again")


def key_of(header: bytes) -> int | None:
    """The key that a sample's first bytes bear, or None where they are no digits."""
    digits = header[:KEY_DIGITS]
    return int(digits) if len(digits) == KEY_DIGITS and digits.isdigit() else None
