"""`distgan pack --preview`: some images as they would be packed."""

import warnings
from pathlib import Path

import numpy as np
import torch

from distgan.commands.output import writing_to
from distgan.errors import UserError
from distgan.images import save_grid
from shards.images import BadImage, Fit, decode_image
from shards.sources.source import Source

NUM_IMAGES = 64


def write_preview(
    source: Source, out: Path, *, size: tuple[int, int] | None, channels: int | None, fit: Fit
) -> str:
    """Write a grid of up to 64 images from all over the source; return what was written."""
    sides, channels = size or source.default_size, channels or source.default_channels
    num_images = min(NUM_IMAGES, len(source))
    pixels, broken = [], []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's about odd but readable content
        for item in np.linspace(0, len(source) - 1, num_images).round().astype(int).tolist():
            try:
                data = source.read(item)
                pixels.append(decode_image(data, size=sides, channels=channels, fit=fit))
            except BadImage as error:
                broken.append(f"{source.names[item]} ({error})")
    if not pixels:
        raise UserError(f"all of {num_images} images are broken; the first is {broken[0]}")
    with writing_to(out, option="--preview"):
        out.parent.mkdir(parents=True, exist_ok=True)
        save_grid(torch.from_numpy(np.stack(pixels)), out)
    note = f"; {len(broken)} others are broken, the first is {broken[0]}" if broken else ""
    return (
        f"wrote {out}: {len(pixels)} of {len(source):,} images as they would be packed{note}; "
        "to pack, leave out --preview"
    )
