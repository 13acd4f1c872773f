"""`distgan pack --preview`: some images as they would be packed."""

import warnings
from pathlib import Path

import numpy as np
import torch

from distgan.commands.output import writing_to
from distgan.errors import UserError
from distgan.images import save_grid
from shards.errors import BadImage
from shards.pack_workers import Packing
from shards.planes import with_bits

NUM_IMAGES = 64


def write_preview(packing: Packing, out: Path) -> str:
    """Write a grid of up to 64 images from all over the source; return what was written."""
    source = packing.source
    num_images = min(NUM_IMAGES, len(source))
    pixels, broken = [], []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's about odd but readable content
        for item in np.linspace(0, len(source) - 1, num_images).round().astype(int).tolist():
            try:
                pixels.append(with_bits(packing.decode(source.read(item)), 8))
            except BadImage as error:
                broken.append(f"{source.names[item]} ({error})")
    if not pixels:
        raise UserError(f"all of {num_images} images are broken; the first is {broken[0]}")
    with writing_to(out, option="--preview"):
        out.parent.mkdir(parents=True, exist_ok=True)
        save_grid(torch.from_numpy(np.stack(pixels)), out)
    note = f"; left out as broken: {len(broken)}, the first is {broken[0]}" if broken else ""
    return (
        f"wrote {out}: {len(pixels)} of {len(source):,} images as they would be packed{note}; "
        "to pack, leave out --preview"
    )
