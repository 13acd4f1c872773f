"""The strided convolutions of a DCGAN (kernel 4, stride 2, padding 1) as matrix products.

In bf16 on a CPU, PyTorch's convolutions of few pixels and many channels reach only a tenth to a
half of the speed of its matrix products. As one product with 4x4 patches of the larger map, they
reach nearly full speed:

down  images -> patches [B*h*w, 16*C] @ weight -> [B, D, h, w]
up    images [B*h*w, D] @ weight -> patches [B*h*w, 16*C] -> sum of overlaps [B, C, 2h, 2w]
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

# Most pixels in the smaller map for which the product is faster (docs/performance.md).
# In larger maps, extracting the patches costs more than the product saves.
MAX_PIXELS = 4 * 4


class Im2Col(torch.autograd.Function):
    """Channels-last images [B, C, 2h, 2w] to the patches of the convolution [B, h, w, 16 * C]."""

    @staticmethod
    def forward(ctx: Any, images: Tensor) -> Tensor:
        batch, channels, height, width = images.shape
        padded = images.new_zeros(batch, height + 2, width + 2, channels)
        padded[:, 1:-1, 1:-1] = images.permute(0, 2, 3, 1)
        along_batch, along_height, along_width, _ = padded.stride()
        # The four pixels of one row of a patch are contiguous: [..., 4 rows, 4 * channels].
        windows = padded.as_strided(
            (batch, height // 2, width // 2, 4, 4 * channels),
            (along_batch, 2 * along_height, 2 * along_width, along_height, 1),
        )
        return windows.reshape(batch, height // 2, width // 2, 16 * channels)

    @staticmethod
    def backward(ctx: Any, patches: Tensor) -> Tensor:
        return Col2Im.apply(patches)


class Col2Im(torch.autograd.Function):
    """Adjoint of `Im2Col`: patches [B, h, w, 16 * C] to channels-last images [B, C, 2h, 2w].

    Overlapping patches are summed.
    """

    @staticmethod
    def forward(ctx: Any, patches: Tensor) -> Tensor:
        batch, height, width, length = patches.shape
        # Row 2a + b and column 2c + d of a patch: quarters [B, h, w, a, b, c, d, C].
        quarters = patches.view(batch, height, width, 2, 2, 2, 2, length // 16)
        blocks = patches.new_zeros(batch, height + 1, 2, width + 1, 2, length // 16)
        for a in range(2):
            for c in range(2):
                quarter = quarters[:, :, :, a, :, c].transpose(2, 3)
                blocks[:, a : a + height, :, c : c + width] += quarter
        images = blocks.view(batch, 2 * height + 2, 2 * width + 2, -1)[:, 1:-1, 1:-1]
        return images.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)

    @staticmethod
    def backward(ctx: Any, images: Tensor) -> Tensor:
        return Im2Col.apply(images)


class DownConv(nn.Conv2d):
    """A strided convolution, [B, C, 2h, 2w] to [B, D, h, w]."""

    def forward(self, images: Tensor) -> Tensor:
        if not is_product_faster(images, images.shape[2] * images.shape[3] // 4):
            return super().forward(images)
        patches = Im2Col.apply(images.to(torch.bfloat16))
        maps = linear(patches, as_matrix(self.weight.to(torch.bfloat16)), self.bias)
        return maps.permute(0, 3, 1, 2)


class UpConv(nn.ConvTranspose2d):
    """A transposed convolution without bias, [B, D, h, w] to [B, C, 2h, 2w]."""

    def forward(self, images: Tensor, output_size: list[int] | None = None) -> Tensor:
        if not is_product_faster(images, images.shape[2] * images.shape[3]):
            return super().forward(images)
        small = images.to(torch.bfloat16).permute(0, 2, 3, 1)
        return Col2Im.apply(small @ as_matrix(self.weight.to(torch.bfloat16)))


def as_matrix(weight: Tensor) -> Tensor:
    """Return a weight [D, C, 4, 4] as [D, 16 * C], without a copy if it is channels-last."""
    return weight.permute(0, 2, 3, 1).flatten(1)


def is_product_faster(images: Tensor, num_pixels: int) -> bool:
    """Return whether a product is faster; `num_pixels` is the size of the smaller map."""
    return (
        images.device.type == "cpu"
        and num_pixels <= MAX_PIXELS
        and not torch.compiler.is_compiling()  # compiled patches are many times slower
        and torch.is_autocast_enabled("cpu")
        and torch.get_autocast_dtype("cpu") is torch.bfloat16
    )


def use_fast_convolutions(network: nn.Module) -> None:
    """Convert matching convolutions of a network into `DownConv` and `UpConv`, in place.

    Only the class of a module changes: names, weights and `state_dict` stay as they are.
    """
    for module in network.modules():
        if type(module) is nn.Conv2d and matches(module):
            module.__class__ = DownConv
        elif type(module) is nn.ConvTranspose2d and matches(module) and module.bias is None:
            module.__class__ = UpConv


def matches(conv: nn.Conv2d | nn.ConvTranspose2d) -> bool:
    """Return whether a convolution has kernel 4, stride 2, padding 1, and defaults otherwise."""
    return (
        (conv.kernel_size, conv.stride, conv.padding) == ((4, 4), (2, 2), (1, 1))
        and (conv.dilation, conv.output_padding, conv.groups) == ((1, 1), (0, 0), 1)
        and conv.padding_mode == "zeros"
    )
