"""Colour profiles: what a file means by its numbers, converted to sRGB."""

from __future__ import annotations

import io
from functools import lru_cache
from typing import Any

from PIL import Image, features

_SPACES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # colour space of a profile -> Pillow's mode
_MAX_PROFILE_BYTES = 2**22


def has_profile(image: Image.Image) -> bool:
    """Return whether an image comes with a profile that is not sRGB's and can be used."""
    return bool(image.info.get("icc_profile")) and _mode_of(image.info["icc_profile"]) is not None


def profile_mode(image: Image.Image) -> str | None:
    """Return the mode in which the profile of an image describes colours, or None without one."""
    return _mode_of(image.info["icc_profile"]) if has_profile(image) else None


def to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Return an image in sRGB, or unchanged if its mode is not the profile's. Alpha stays."""
    mode = _mode_of(profile)
    if mode == "RGB" and image.mode == "RGBA":
        colours = to_srgb(image.convert("RGB"), profile)
        return Image.merge("RGBA", (*colours.split(), image.getchannel("A")))
    if mode is None or image.mode != mode:
        return image
    from PIL import ImageCms

    try:
        converted = ImageCms.applyTransform(image, _transform(profile, mode))
    except ImageCms.PyCMSError:
        return image
    assert converted is not None, "the image was not converted in place"
    return converted


@lru_cache(8)
def _mode_of(profile: bytes) -> str | None:
    """Return the mode of a profile that is to be applied; None for sRGB and damaged ones."""
    if not isinstance(profile, bytes) or len(profile) > _MAX_PROFILE_BYTES:
        return None
    if not features.check("littlecms2"):
        return None
    from PIL import ImageCms

    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = _SPACES.get(opened.profile.xcolor_space)
        if mode is None or "sRGB" in ImageCms.getProfileDescription(opened):
            return None
        _transform(profile, mode)
    except Exception:  # of a damaged profile, which makes an image no less usable
        return None
    return mode


@lru_cache(8)
def _transform(profile: bytes, mode: str) -> Any:
    from PIL import ImageCms

    return ImageCms.buildTransform(
        ImageCms.ImageCmsProfile(io.BytesIO(profile)),
        ImageCms.createProfile("sRGB"),
        mode,
        "L" if mode == "L" else "RGB",
    )
