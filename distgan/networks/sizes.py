"""Sizes of images that the networks make: b * 2^k pixels, with b from 3 to 7, from 16 to 256.

A generator begins with maps of b_h x b_w pixels and doubles them k times, a discriminator goes the
other way. Height and width have the same k.
"""

from typing import NamedTuple

BASES = range(3, 8)
DOUBLINGS = range(1, 7)
LEAST, MOST = 16, 256

ImageSize = int | tuple[int, int]
"""Pixels per side of square images, or (height, width) of others."""


class Pyramid(NamedTuple):
    """The maps between the smallest ones and an image."""

    height: int  # of the smallest maps
    width: int
    num_doublings: int


def sides(size: ImageSize) -> tuple[int, int]:
    """Return (height, width) of a size."""
    return (size, size) if isinstance(size, int) else size


def image_size(height: int, width: int) -> ImageSize:
    """Return the size of images of this height and width."""
    return height if height == width else (height, width)


def size_text(size: ImageSize) -> str:
    """Return a size as `64x64`, height first."""
    height, width = sides(size)
    return f"{height}x{width}"


def pyramid(size: ImageSize) -> Pyramid:
    """Return the smallest maps and the number of doublings for images of this size.

    Of several possibilities the one with the smallest maps is taken. Raises ValueError, with the
    nearest sizes, if the networks are not built for this one.
    """
    height, width = sides(size)
    for k in reversed(DOUBLINGS):
        if is_possible(height, k) and is_possible(width, k):
            return Pyramid(height >> k, width >> k, k)
    nearest = [f"{h}x{w}" for h, w in nearest_sizes(height, width)]
    raise ValueError(
        f"the networks make no images of {size_text(size)} pixels; "
        f"the nearest sizes are {' and '.join(nearest)}"
    )


def is_possible(side: int, k: int) -> bool:
    """Return whether a side is a base, doubled k times, within the limits."""
    return LEAST <= side <= MOST and side % 2**k == 0 and side >> k in BASES


def nearest_sizes(height: int, width: int) -> list[tuple[int, int]]:
    """Return the two possible sizes, of those of a similar shape, that differ least from this."""
    is_square = height == width
    possible = {
        (h, w)
        for k in DOUBLINGS
        for h in range(LEAST, MOST + 1)
        for w in ([h] if is_square else range(LEAST, MOST + 1))
        if is_possible(h, k) and is_possible(w, k)
    }

    def distance(size: tuple[int, int]) -> tuple[int, int]:
        return abs(size[0] - height) + abs(size[1] - width), size[0]

    return sorted(sorted(possible, key=distance)[:2])
