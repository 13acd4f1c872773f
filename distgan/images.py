"""Conversion of images to pixels, sample grids, and the plot of a run's losses."""

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad

from shards.files import read_regular, write_atomic

PLOT_SIZE_INCHES, PLOT_DPI = (9, 6), 110


def to_uint8(images: Tensor) -> Tensor:
    """Return images [B, C, H, W] in [-1, 1] as uint8, rounded to the nearest value."""
    return images.float().add(1.0).mul(127.5).round().clamp(0, 255).to(torch.uint8)


def to_uint16(images: Tensor) -> Tensor:
    """Return images [B, C, H, W] in [-1, 1] as values of 16 bits, in int32 for torch's sake."""
    return images.float().add(1.0).mul(32767.5).round().clamp(0, 65535).int()


def write_image(pixels: Tensor, path: Path) -> Path:
    """Write pixels [C, H, W] and return the file: a PNG, or an npy if a PNG cannot hold them.

    They are uint8, or values of 16 bits. `path` has no extension. Raises OSError.
    """
    array = pixels.cpu().numpy().astype("u1" if pixels.dtype == torch.uint8 else "<u2")
    is_png = len(array) in ((1, 3, 4) if array.itemsize == 1 else (1,))
    path = path.with_suffix(".png" if is_png else ".npy")
    if not is_png:
        np.save(path, array)
    elif len(array) == 1:
        Image.fromarray(array[0]).save(path)
    else:
        to_image(pixels).save(path)
    return path


def grid_pixels(images: Tensor, *, columns: int | None = None, scale: int | None = None) -> Tensor:
    """Return uint8 images [B, C, H, W] as one grid, uint8 [3, H', W'].

    By default the grid is almost square, and images of fewer than 64 pixels are enlarged.
    """
    columns = columns or math.ceil(math.sqrt(len(images)))
    scale = scale or max(1, 64 // images.shape[-1])
    pixels = visible(images.cpu()).repeat_interleave(scale, dim=2).repeat_interleave(scale, dim=3)
    return tile(pixels, columns=min(columns, len(pixels)), gap=2 * scale)


def visible(images: Tensor) -> Tensor:
    """Return uint8 images [B, C, H, W] as they are shown, [B, 1 or 3, H, W].

    A fourth channel is transparency, shown on white. Of two channels or more than four, the first
    three are red, green and blue.
    """
    num_channels = images.shape[1]
    if num_channels == 2:
        return images[:, [0, 1, 1]]
    if num_channels != 4:
        return images[:, :3]
    alpha = images[:, 3:].float() / 255
    return (images[:, :3] * alpha + 255 * (1 - alpha)).round().to(torch.uint8)


def tile(images: Tensor, *, columns: int, gap: int) -> Tensor:
    """Return images [B, C, H, W] in rows with black gaps around them, [3, H', W'].

    One image has no gaps. These are the pixels of `torchvision.utils.make_grid`, whose import takes
    as long as that of torch.
    """
    images = images.expand(-1, 3, -1, -1)
    if len(images) == 1:
        return images[0]
    rows = math.ceil(len(images) / columns)
    cells = pad(images, (gap, 0, gap, 0, 0, 0, 0, rows * columns - len(images)))
    grid = cells.unflatten(0, (rows, columns)).permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)
    return pad(grid, (0, gap, 0, gap))


def to_image(pixels: Tensor) -> Image.Image:
    """Return uint8 pixels [1, 3 or 4, H, W] as a grey or colour image, or one with alpha."""
    grey = len(pixels) == 1
    return Image.fromarray((pixels[0] if grey else pixels.permute(1, 2, 0)).cpu().numpy())


def save_grid(images: Tensor, path: Path, *, columns: int | None = None) -> Path:
    """Write uint8 images [B, C, H, W] as a PNG grid; raises OSError."""
    buffer = io.BytesIO()
    to_image(grid_pixels(images, columns=columns)).save(buffer, format="png")
    write_atomic(path, buffer.getvalue())
    return path


def is_whole_image(path: Path) -> bool:
    """Return whether an image file exists and can be decoded to its last pixel."""
    try:
        with Image.open(io.BytesIO(read_regular(path))) as image:
            image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return False
    return True


def save_losses_plot(
    rows: list[dict[str, Any]],
    path: Path,
    *,
    images_per_epoch: int,
    equilibrium: tuple[float, float],
) -> None:
    """Plot losses and discriminator accuracies over thousands of images, if there are any.

    Dashed lines mark the ends of the first and the last epoch of `images_per_epoch` images; dotted
    ones the losses (discriminator, generator) at equilibrium. Raises OSError.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [row for row in rows if "loss/d" in row]
    if not rows:
        return
    figure = Figure(figsize=PLOT_SIZE_INCHES, layout="constrained")
    FigureCanvasAgg(figure)
    losses, accuracies = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    plot_losses(losses, rows, equilibrium)
    plot_accuracies(accuracies, rows)
    last_epoch = int(rows[-1]["progress/kimg"] * 1000 / images_per_epoch + 1e-9)
    for axes in (losses, accuracies):
        for epoch in {1, last_epoch} if last_epoch else ():
            axes.axvline(
                epoch * images_per_epoch / 1000, color="grey", linewidth=0.8, linestyle="--"
            )
        axes.legend(loc="best")
        axes.grid(alpha=0.3)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=PLOT_DPI)
    write_atomic(path, buffer.getvalue())


def plot_losses(axes: Any, rows: list[dict[str, Any]], equilibrium: tuple[float, float]) -> None:
    """Plot both losses, each with its value at equilibrium."""
    kimg = [row["progress/kimg"] for row in rows]
    curves = [
        ("loss/d", "discriminator", "tab:blue", equilibrium[0]),
        ("loss/g", "generator", "tab:orange", equilibrium[1]),
    ]
    for name, label, color, level in curves:
        axes.plot(kimg, [row[name] for row in rows], label=label, color=color)
        axes.axhline(level, color=color, linestyle=":", linewidth=1)
    axes.plot([], [], color="grey", linestyle=":", label="at equilibrium")
    axes.set(ylabel="loss", title="Losses (dashed: ends of the first and the last epoch)")


def plot_accuracies(axes: Any, rows: list[dict[str, Any]]) -> None:
    """Plot the discriminator's accuracies on real and generated images."""
    kimg = [row["progress/kimg"] for row in rows]
    for name, label in (
        ("accuracy/d_real", "real images"),
        ("accuracy/d_fake", "generated images"),
    ):
        axes.plot(kimg, [row[name] for row in rows], label=label)
    axes.set(xlabel="images seen (thousands)", ylabel="discriminator accuracy", ylim=(-0.02, 1.02))
