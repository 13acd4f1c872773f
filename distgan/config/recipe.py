"""The recipe of a run that names no preset: the strong settings for the size of its images."""

import math
from typing import Any

from distgan.config.load import read_preset

RECIPE = "strong"
PENALTY_GROWTH = 3  # of the strong presets' penalties from 32 to 64 pixels; assumed beyond
EPOCHS = 25
FEWEST_KIMG = 100  # cifar10-strong is then nearly where cifar10 is after 1,000 (lab/presets.md)
MOST_KIMG = 500  # from here to 1,000 kimg, the distance of cifar10-strong falls by 17 to 28 %


def recipe_for(height: int, width: int, *, num_images: int) -> dict[str, Any]:
    """Return the tables of settings for images of one's own."""
    tree = read_preset(preset_for(height, width))
    tree["train"] |= {"kimg": default_kimg(num_images)}
    del tree["train"]["epochs"]
    if (octaves := octaves_above_64(height, width)) > 0:
        for name in ("r1", "r2"):
            tree["loss"][name] = round(tree["loss"][name] * PENALTY_GROWTH**octaves, 3)
    return tree


def octaves_above_64(height: int, width: int) -> int:
    """Return how often 64 pixels per side must be doubled to come nearest to the images' size."""
    return round(math.log2(math.sqrt(height * width) / 64))


def preset_for(height: int, width: int) -> str:
    """Return the strong preset whose images are nearest in size."""
    return "cifar10-strong" if octaves_above_64(height, width) < 0 else "anime-faces-strong"


def default_kimg(num_images: int) -> float:
    """Return the length of a run, in thousands of images, that suits the size of a dataset."""
    return min(MOST_KIMG, max(FEWEST_KIMG, round(EPOCHS * num_images / 1000)))


def describe_recipe(height: int, width: int) -> str:
    """Return a line about the recipe for the table at the start of a run."""
    penalties = ", with stronger penalties" if octaves_above_64(height, width) > 0 else ""
    return (
        f"{RECIPE}, chosen for {height}x{width} pixels: the settings of "
        f"{preset_for(height, width)}{penalties}. "
        "data.flip=false if mirrored images would be wrong; --preset classic for a plain DCGAN"
    )
