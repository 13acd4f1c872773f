"""Shards of PNG or JPEG files, for datasets that must stay small.

sample = [tar header 512][image file][padding] ([tar header 512][label][padding])

Samples differ in length, so `spans.npy` holds the offset and length of each image file.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from importlib.machinery import PathFinder
from importlib.util import find_spec

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from shards.errors import ShardError, printable
from shards.format.raw import BLOCK, label_members, tar_headers

EXTENSION_OF = {"png": ".png", "jpeg": ".jpg"}
DEFAULT_QUALITY, MAX_QUALITY = 95, 100


@dataclass(frozen=True)
class CompressedLayout:
    """The bytes of samples that hold an image [C, H, W] as a file; `cls`: and a label."""

    image_shape: tuple[int, int, int]
    cls: bool
    encoding: str  # a key of EXTENSION_OF
    quality: int | None  # of JPEG only

    @property
    def extension(self) -> str:
        return EXTENSION_OF[self.encoding]

    @property
    def max_sample_bytes(self) -> int:
        """Upper bound on the length of a sample.

        A coefficient of JPEG takes at most 27 bits, and PNG stores what it cannot compress.
        """
        channels, height, width = self.image_shape
        return 4 * channels * -(-height // 8) * -(-width // 8) * 64 + 8 * BLOCK

    def encode(self, pixels: NDArray[np.uint8]) -> bytes:
        """Return the image file of pixels [C, H, W]. JPEG keeps the full chroma resolution."""
        image = Image.fromarray(
            pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0))
        )
        file = io.BytesIO()
        if self.encoding == "png":
            image.save(file, "PNG")
        else:
            assert self.quality is not None, "a JPEG needs a quality"
            # Pillow's buffer must hold the whole file; its default is too small for noise.
            ImageFile.MAXBLOCK = max(ImageFile.MAXBLOCK, self.max_sample_bytes)
            image.save(file, "JPEG", quality=self.quality, subsampling=0, optimize=True)
        return file.getvalue()

    def join(
        self, keys: NDArray[np.int64], files: list[bytes], labels: NDArray[np.int32] | None
    ) -> tuple[bytes, NDArray[np.int64]]:
        """Return the samples of image files, and the spans [n, 2] (offset, length) of the files."""
        lengths = np.array([len(file) for file in files], np.int64)
        padding = -lengths % BLOCK
        ends = np.cumsum(BLOCK + lengths + padding + 2 * BLOCK * self.cls)
        offsets = np.concatenate([[0], ends])[:-1] + BLOCK
        headers = tar_headers(keys, self.extension, lengths)
        label_parts = np.empty((len(files), 0), np.uint8)
        if self.cls:
            assert labels is not None, "a layout with labels needs labels"
            label_parts = label_members(keys, labels)
        parts = zip(headers, files, padding.tolist(), label_parts, strict=True)
        joined = b"".join(
            part
            for header, file, num_zeros, label in parts
            for part in (header.tobytes(), file, bytes(num_zeros), label.tobytes())
        )
        return joined, np.stack([offsets, lengths], axis=1)


class CompressedImages:
    """The images of one shard by row. Each is decoded when it is asked for."""

    def __init__(
        self,
        data: NDArray[np.uint8],
        spans: NDArray[np.int64],
        image_shape: tuple[int, int, int],
        *,
        shard: str,
    ) -> None:
        self._data, self._spans, self._image_shape, self._shard = data, spans, image_shape, shard
        self._decode = _decoder(channels=image_shape[0])

    def __getitem__(self, row: int) -> NDArray[np.uint8]:
        """Decode an image uint8 [C, H, W]. Raises ShardError if the bytes are no such image."""
        offset, length = (max(number, 0) for number in self._spans[row].tolist())
        try:
            pixels = self._decode(self._data[offset : offset + length].copy())
        except (RuntimeError, ValueError) as error:
            reason = (str(error) or "no reason given").splitlines()[0]
            raise self._damaged(row, f"cannot be decoded ({reason})") from error
        if pixels.shape != self._image_shape:
            raise self._damaged(row, f"is {list(pixels.shape)}, not {list(self._image_shape)}")
        return pixels

    def _damaged(self, row: int, what: str) -> ShardError:
        return ShardError(
            f"{self._shard}: the image of sample {row} {printable(what)[:160]}; "
            "run `distgan verify` and restore or pack it again"
        )


def _decoder(*, channels: int) -> Callable[[NDArray[np.uint8]], NDArray[np.uint8]]:
    """Return a function from the bytes of a PNG or JPEG file to pixels [channels, H, W].

    Pillow would give the same pixels, but takes twice as long for a JPEG file of 32x32.
    """
    import torch

    load_image_operations()
    # What `torchvision.io.decode_image` calls after a deprecation warning for every image, with the
    # values of its ImageReadMode.GRAY and RGB.
    decode_image, mode = torch.ops.image.decode_image, 1 if channels == 1 else 3

    def decode(file: NDArray[np.uint8]) -> NDArray[np.uint8]:
        pixels: NDArray[np.uint8] = decode_image(torch.from_numpy(file), mode, False).numpy()
        return pixels

    return decode


def load_image_operations() -> None:
    """Register `torch.ops.image` without an import of torchvision, which takes seconds."""
    import torch

    package = find_spec("torchvision")
    folders = package.submodule_search_locations if package else []
    for name in ("image_stable", "image"):  # of torchvision since 0.29, and before
        library = PathFinder.find_spec(name, folders)
        if library is not None and library.origin is not None:
            torch.ops.load_library(library.origin)
            return
    import torchvision.io  # noqa: F401
