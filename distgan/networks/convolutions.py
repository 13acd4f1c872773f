"""The halving and doubling convolutions of a DCGAN: kernel 4, stride 2, padding 1, as `nn` has them, only faster in bf16 on a CPU.

There the library's kernels for few pixels and many channels, their weight gradient above all, run at a tenth to a half
of the rate of its matrix product. Written as one product with the patches of the larger map they run at nearly all of it:

halving   images -> patches [B*h*w, 16*C] @ weight -> [B, D, h, w]
doubling  images [B*h*w, D] @ weight -> patches [B*h*w, 16*C] -> their overlapping sum [B, C, 2h, 2w]

Parameters, their names and shapes, and what is computed are those of `nn.Conv2d` and `nn.ConvTranspose2d`.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

MOST_PIXELS = (
    4 * 4
)  # of the smaller map; with more, cutting patches costs what the product saves (docs/performance.md)


class Im2Col(torch.autograd.Function):
    """Images [B, C, 2h, 2w], channels last, to the 4x4 patches around every second pixel, [B, h, w, 16 * C]."""

    @staticmethod
    def forward(ctx: Any, images: Tensor) -> Tensor:
        batch, channels, height, width = images.shape
        padded = images.new_zeros(batch, height + 2, width + 2, channels)
        padded[:, 1:-1, 1:-1] = images.permute(0, 2, 3, 1)
        along_batch, along_height, along_width, _ = padded.stride()
        windows = padded.as_strided(
            (
                batch,
                height // 2,
                width // 2,
                4,
                4 * channels,
            ),  # four pixels of a row lie side by side
            (along_batch, 2 * along_height, 2 * along_width, along_height, 1),
        )
        return windows.reshape(batch, height // 2, width // 2, 16 * channels)

    @staticmethod
    def backward(ctx: Any, patches: Tensor) -> Tensor:
        return Col2Im.apply(patches)


class Col2Im(torch.autograd.Function):
    """The adjoint of `Im2Col`: patches [B, h, w, 16 * C] summed where they overlap, [B, C, 2h, 2w], channels last."""

    @staticmethod
    def forward(ctx: Any, patches: Tensor) -> Tensor:
        batch, height, width, length = patches.shape
        quarters = patches.view(
            batch, height, width, 2, 2, 2, 2, length // 16
        )  # rows 2a + b, columns 2c + d
        blocks = patches.new_zeros(batch, height + 1, 2, width + 1, 2, length // 16)
        for a in range(2):
            for c in range(2):
                blocks[:, a : a + height, :, c : c + width] += quarters[:, :, :, a, :, c].transpose(
                    2, 3
                )
        images = blocks.view(batch, 2 * height + 2, 2 * width + 2, -1)[:, 1:-1, 1:-1]
        return images.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)

    @staticmethod
    def backward(ctx: Any, images: Tensor) -> Tensor:
        return Im2Col.apply(images)


def as_matrix(weight: Tensor) -> Tensor:
    """A weight [D, C, 4, 4] as [D, 16 * C], a view of a channels-last one."""
    return weight.permute(0, 2, 3, 1).flatten(1)


def as_product(images: Tensor, num_pixels: int) -> bool:
    """Whether the product is the faster way for a convolution whose smaller map has so many pixels."""
    return (
        images.device.type == "cpu"
        and num_pixels <= MOST_PIXELS
        and not torch.compiler.is_compiling()  # a compiler makes loops of the patches, many times as slow
        and torch.is_autocast_enabled("cpu")
        and torch.get_autocast_dtype("cpu") is torch.bfloat16
    )


class DownConv(nn.Conv2d):
    """Images [B, C, 2h, 2w] -> [B, D, h, w]."""

    def __init__(self, channels: int, out_channels: int, *, bias: bool = True) -> None:
        super().__init__(channels, out_channels, 4, stride=2, padding=1, bias=bias)

    def forward(self, images: Tensor) -> Tensor:
        if not as_product(images, images.shape[2] * images.shape[3] // 4):
            return super().forward(images)
        patches = Im2Col.apply(images.to(torch.bfloat16))
        return linear(patches, as_matrix(self.weight.to(torch.bfloat16)), self.bias).permute(
            0, 3, 1, 2
        )


class UpConv(nn.ConvTranspose2d):
    """Images [B, D, h, w] -> [B, C, 2h, 2w]."""

    def __init__(self, channels: int, out_channels: int, *, bias: bool = True) -> None:
        super().__init__(channels, out_channels, 4, stride=2, padding=1, bias=bias)

    def forward(self, images: Tensor, output_size: list[int] | None = None) -> Tensor:
        if self.bias is not None or not as_product(images, images.shape[2] * images.shape[3]):
            return super().forward(images)
        small = images.to(torch.bfloat16).permute(0, 2, 3, 1)
        return Col2Im.apply(small @ as_matrix(self.weight.to(torch.bfloat16)))
