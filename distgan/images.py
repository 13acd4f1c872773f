"""Pictures of a run: sample grids and the plot of its losses."""

import math
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid


def to_uint8(images: Tensor) -> Tensor:
    """[B, C, H, W] in [-1, 1] -> uint8, rounded to the nearest."""
    return images.float().add(1.0).mul(127.5).round().clamp(0, 255).to(torch.uint8)


def grid_pixels(images: Tensor, *, columns: int | None = None, scale: int | None = None) -> Tensor:
    """uint8 images [B, C, H, W] as one grid uint8 [3, H', W'], as near to a square as may be; small images are enlarged."""
    columns = columns or math.ceil(math.sqrt(len(images)))
    scale = scale or max(1, 64 // images.shape[-1])
    pixels = images.cpu().repeat_interleave(scale, dim=2).repeat_interleave(scale, dim=3)
    return make_grid(pixels, nrow=columns, padding=2 * scale)


def save_grid(
    images: Tensor, path: Path, *, columns: int | None = None, scale: int | None = None
) -> Path:
    """Write uint8 images [B, C, H, W] as a PNG grid."""
    temporary = path.with_name(f".{path.name}.tmp")
    grid = grid_pixels(images, columns=columns, scale=scale).permute(1, 2, 0).numpy()
    Image.fromarray(grid).save(temporary, format="png")
    temporary.replace(path)
    return path


def save_losses_plot(
    rows: list[dict[str, Any]], path: Path, *, epoch_images: int, equilibrium: tuple[float, float]
) -> None:
    """Plot both losses and both accuracies over kimg, with the end of epoch 1 and of the last epoch marked."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [row for row in rows if "loss/d" in row]
    if not rows:
        return
    kimg = [row["progress/kimg"] for row in rows]
    figure = Figure(figsize=(9, 6), layout="constrained")
    FigureCanvasAgg(figure)
    losses, accuracies = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    for name, label, color, level in (
        ("loss/d", "discriminator", "tab:blue", equilibrium[0]),
        ("loss/g", "generator", "tab:orange", equilibrium[1]),
    ):
        losses.plot(kimg, [row[name] for row in rows], label=label, color=color)
        losses.axhline(level, color=color, linestyle=":", linewidth=1)
    losses.plot([], [], color="grey", linestyle=":", label="at equilibrium")
    for name, label in (
        ("accuracy/d_real", "reals held real"),
        ("accuracy/d_fake", "fakes seen through"),
    ):
        accuracies.plot(kimg, [row[name] for row in rows], label=label)
    last_epoch = int(kimg[-1] * 1000 / epoch_images + 1e-9)
    for axes in (losses, accuracies):
        for epoch in {1, last_epoch} & set(range(1, last_epoch + 1)):
            axes.axvline(epoch * epoch_images / 1000, color="grey", linewidth=0.8, linestyle="--")
        axes.legend(loc="best")
        axes.grid(alpha=0.3)
    losses.set(ylabel="loss (nats)", title="Losses; dashed: end of epoch 1 and of the last epoch")
    accuracies.set(xlabel="thousand images", ylabel="discriminator accuracy", ylim=(-0.02, 1.02))
    temporary = path.with_name(f".{path.name}.tmp")
    figure.savefig(temporary, format="png", dpi=110)
    temporary.replace(path)
