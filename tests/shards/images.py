"""Images, and the folders and archives that hold them, written by tests."""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from shards.images import decode_image
from shards.sources.source import Source


def png(value: int = 0, size: int = 8) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (size, size), (value, value, value)).save(file, "PNG")
    return file.getvalue()


def write_tar(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def write_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def write_folder(path: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


WRITERS = {"folder": write_folder, "images.tar": write_tar, "images.zip": write_zip}


def value(source: Source, item: int) -> int:
    """Return the grey value of an image of one colour."""
    return int(decode_image(source.read(item), size=8, channels=1)[0, 0, 0])


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its name."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def overwrite(path: Path) -> None:
    """Replace an image by another of the same length, as the user's next export would."""
    data = path.read_bytes()
    image = Image.open(path)
    flipped = io.BytesIO()
    Image.fromarray(255 - np.asarray(image)).save(flipped, "PNG")
    other = flipped.getvalue()
    assert len(other) <= len(data) + 200
    status = path.stat()
    path.write_bytes(other[: len(data)].ljust(len(data), b"\0"))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # not even the time tells
