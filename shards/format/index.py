"""`index.json`: what a packed dataset consists of, with checksums and one fingerprint of it all."""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from shards.errors import ShardError, printable
from shards.files import expand_user, read_regular
from shards.format.compressed import EXTENSION_OF, MAX_QUALITY, CompressedLayout
from shards.format.raw import BLOCK, NPY_HEADER_BYTES, TRAILER, RawLayout
from shards.images import EXTENSIONS
from shards.planes import MAX_CHANNELS

INDEX_FILE = "index.json"
LABELS_FILE = "labels.npy"
SPANS_FILE = "spans.npy"
REJECTED_FILE = "rejected.jsonl"
WORK_FOLDER = ".packing"  # of an unfinished pack
FORMAT, VERSION, RAW = "distgan-shards", 1, "npy"
_SHARD_FILE = re.compile(r"[0-9]{6,9}\.tar")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class ShardRecord:
    """One tar of the dataset."""

    file: str
    num_samples: int
    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class ShardIndex:
    """A packed dataset. Labels are in a file of their own, so that the index stays small."""

    path: Path
    image_shape: tuple[int, int, int]  # C, H, W
    num_samples: int
    class_names: tuple[str, ...] | None
    class_counts: tuple[int, ...] | None
    labels_sha256: str | None
    cls: bool  # whether the tars hold the labels too
    num_rejected: int  # images left out, listed in rejected.jsonl
    shards: tuple[ShardRecord, ...]
    plan: str  # identity of what was packed and how: the same plan gives the same bytes
    encoding: str = RAW  # or a key of EXTENSION_OF
    quality: int | None = None  # of JPEG
    spans_sha256: str | None = None  # of PNG and JPEG
    source_sha256: str | None = None  # of the files that were packed; None if it was no files
    bits: int = 8  # per channel, or 16

    @cached_property
    def fingerprint(self) -> str:
        """The identity of the content (sha256, hex).

        The same images packed on any machine at any time have the same fingerprint.
        """
        content = [
            FORMAT,
            VERSION,
            self.encoding,
            self.image_shape,
            self.class_names,
            self.labels_sha256,
            [(shard.num_samples, shard.sha256) for shard in self.shards],
        ]
        if self.is_compressed:
            content.append(self.spans_sha256)
        if self.bits != 8:
            content.append(self.bits)
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    @property
    def is_compressed(self) -> bool:
        """Whether the images are PNG or JPEG files, each of its own length."""
        return self.encoding != RAW

    @property
    def num_bytes(self) -> int:
        """The size of all tars."""
        return sum(shard.num_bytes for shard in self.shards)

    @property
    def raw_num_bytes(self) -> int:
        """The size that all tars have, or would have, with raw pixels."""
        return sum(self.raw_layout.shard_bytes(shard.num_samples) for shard in self.shards)

    @property
    def side_files(self) -> dict[str, tuple[int, str]]:
        """Size and sha256 of the npy files beside the tars, by name."""
        files = {}
        if self.class_names is not None and self.labels_sha256 is not None:
            files[LABELS_FILE] = NPY_HEADER_BYTES + 4 * self.num_samples, self.labels_sha256
        if self.spans_sha256 is not None:
            files[SPANS_FILE] = NPY_HEADER_BYTES + 16 * self.num_samples, self.spans_sha256
        return files

    @property
    def raw_layout(self) -> RawLayout:
        return RawLayout(self.image_shape, self.cls, self.bits)

    @property
    def compressed_layout(self) -> CompressedLayout:
        return CompressedLayout(self.image_shape, self.cls, self.encoding, self.quality)

    def to_json(self) -> bytes:
        """Return the bytes of `index.json`, which name no path, time or machine."""
        fields = asdict(self)
        del fields["path"]
        if not self.is_compressed:
            del fields["quality"], fields["spans_sha256"]
        if self.source_sha256 is None:
            del fields["source_sha256"]
        if self.bits == 8:
            del fields["bits"]
        header = {"format": FORMAT, "version": VERSION, "fingerprint": self.fingerprint}
        return json.dumps(header | fields, indent=1).encode()


def read_index(path: str | Path) -> ShardIndex:
    """Read the index of the shards in folder `path`, without opening a tar.

    Raises ShardError if the folder or its index is missing, damaged or of another version.
    """
    folder = expand_user(path)
    name = printable(path)
    try:
        text = read_regular(folder / INDEX_FILE)
    except FileNotFoundError:
        if not folder.is_dir():
            raise ShardError(
                f"no folder {name}: pack your images with `distgan pack SOURCE {name}`"
            ) from None
        if (folder / WORK_FOLDER).is_dir():
            join = " for each part that is left, and then with --join"
            again = join if (folder / WORK_FOLDER / "parts").exists() else ""
            raise ShardError(
                f"{name} holds an unfinished pack: run the same `distgan pack` again{again}"
            ) from None
        if _holds_images(folder):
            raise ShardError(_unpacked(name)) from None
        raise ShardError(
            f"{name} holds no index.json: name a folder that `distgan pack SOURCE {name}` made"
        ) from None
    except OSError as error:
        if folder.is_file():
            raise ShardError(_unpacked(name)) from None
        raise ShardError(
            f"cannot read {name}/{INDEX_FILE}: {error.strerror}; give the folder of the shards"
        ) from None
    return parse_index(text, folder, place=name)


def _holds_images(folder: Path) -> bool:
    """Return whether image files are among the first files in a folder and its subfolders."""
    files = (name for _, _, names in os.walk(folder) for name in names)
    return any(Path(name).suffix.lower() in EXTENSIONS for name in islice(files, 10_000))


def _unpacked(name: str) -> str:
    """Return the message about images that were given in place of packed shards."""
    return (
        f"{name} holds images that are not packed: pack them once with `distgan pack {name} SHARDS`"
        ", and give the folder SHARDS instead"
    )


def parse_index(text: bytes, folder: Path, *, place: str) -> ShardIndex:
    """Parse the bytes of an `index.json` for files in `folder`.

    Raises ShardError, in which the folder is called `place`.
    """
    try:
        fields = json.loads(text)
        if fields["format"] == FORMAT and fields["version"] != VERSION:
            raise ShardError(
                f"{place} has shard format {fields['version']!r}, "
                f"and this distgan reads {VERSION}: pack again"
            )
        return _parse(folder, fields)
    except ShardError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = printable(f"{type(error).__name__}: {error}")[:120]
        raise ShardError(
            f"{place}/{INDEX_FILE} is damaged ({reason}): delete the folder and pack again"
        ) from error


def _parse(folder: Path, fields: dict[str, Any]) -> ShardIndex:
    """Check and convert a parsed `index.json`.

    Raises ValueError, KeyError or TypeError for anything that does not fit together.
    """
    _require(fields["format"] == FORMAT, "format")
    channels, height, width = (_count(side) for side in fields["image_shape"])
    _require(
        1 <= channels <= MAX_CHANNELS and all(1 <= side <= 8192 for side in (height, width)),
        "image_shape",
    )
    encoding, quality, bits = fields["encoding"], fields.get("quality"), fields.get("bits", 8)
    is_usual = channels in (1, 3) and bits == 8
    _require(bits in (8, 16) and (is_usual or encoding == RAW), "bits")
    _require(encoding in (RAW, *EXTENSION_OF) and isinstance(fields["cls"], bool), "encoding")
    _require((quality is not None) == (encoding == "jpeg"), "quality")
    _require(quality is None or 1 <= _count(quality) <= MAX_QUALITY, "quality")
    class_names = fields["class_names"]
    is_labelled = class_names is not None
    index = ShardIndex(
        path=folder,
        image_shape=(channels, height, width),
        num_samples=_count(fields["num_samples"]),
        class_names=tuple(class_names) if is_labelled else None,
        class_counts=tuple(map(_count, fields["class_counts"])) if is_labelled else None,
        labels_sha256=_sha256(fields["labels_sha256"]) if is_labelled else None,
        cls=fields["cls"],
        num_rejected=_count(fields["num_rejected"]),
        shards=tuple(map(_parse_record, fields["shards"])),
        plan=_sha256(fields["plan"]),
        encoding=encoding,
        quality=quality,
        spans_sha256=None if encoding == RAW else _sha256(fields["spans_sha256"]),
        source_sha256=_sha256(fields["source_sha256"]) if "source_sha256" in fields else None,
        bits=bits,
    )
    _check_classes(index, fields)
    _check_shards(index)
    _require(fields["fingerprint"] == index.fingerprint, "fingerprint")
    return index


def _parse_record(record: dict[str, Any]) -> ShardRecord:
    file = record["file"]
    _require(_SHARD_FILE.fullmatch(file) is not None, "file")  # no path to another folder
    num_samples, num_bytes = _count(record["num_samples"]), _count(record["num_bytes"])
    return ShardRecord(file, num_samples, num_bytes, _sha256(record["sha256"]))


def _check_classes(index: ShardIndex, fields: dict[str, Any]) -> None:
    if index.class_names is None or index.class_counts is None:
        _require(fields["class_counts"] is None and not index.cls, "cls")
        return
    _require(len(index.class_names) >= 1, "class_names")
    _require(all(name.isprintable() for name in index.class_names), "class_names")
    _require(len(index.class_counts) == len(index.class_names), "class_counts")
    _require(sum(index.class_counts) == index.num_samples, "class_counts")


def _check_shards(index: ShardIndex) -> None:
    num_samples = sum(shard.num_samples for shard in index.shards)
    _require(index.num_samples == num_samples > 0, "num_samples")
    _require(len({shard.file for shard in index.shards}) == len(index.shards), "a file twice")
    least = 2 * BLOCK * (1 + index.cls)  # of a compressed sample: a header and a block per member
    for shard in index.shards:
        if index.is_compressed:
            fits = shard.num_bytes >= len(TRAILER) + least * shard.num_samples
            fits = fits and shard.num_bytes % BLOCK == 0
        else:
            fits = shard.num_bytes == index.raw_layout.shard_bytes(shard.num_samples)
        _require(fits, f"num_bytes of {shard.file}")


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(what)


def _count(value: Any) -> int:
    _require(type(value) is int and value >= 0, f"{value!r} is no count")
    return int(value)


def _sha256(value: Any) -> str:
    matches = isinstance(value, str) and _SHA256.fullmatch(value) is not None
    _require(matches, f"{value!r} is no sha256")
    return str(value)
