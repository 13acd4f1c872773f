"""The index of packed shards: what lies in the folder, with a checksum of each file and one fingerprint of it all."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from shards.errors import ShardError, printable
from shards.format.compressed import MAX_QUALITY, MEMBERS, EncodedLayout
from shards.format.raw import BLOCK, NPY_HEADER_BYTES, TRAILER, ShardLayout

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
    """A packed dataset. Labels lie in `labels.npy` in sample order, so that an index is small for any dataset."""

    path: Path
    image_shape: tuple[int, int, int]  # C, H, W
    num_samples: int
    class_names: tuple[str, ...] | None
    class_counts: tuple[int, ...] | None
    labels_sha256: str | None
    cls: bool  # whether the tars hold the labels too
    num_rejected: int  # broken images, listed in rejected.jsonl
    shards: tuple[ShardRecord, ...]
    plan: str  # what was packed and how: the same plan gives the same bytes
    encoding: str = RAW  # or one of MEMBERS, and then:
    quality: int | None = None  # of JPEG
    spans_sha256: str | None = None

    @cached_property
    def fingerprint(self) -> str:
        """The identity of the content (sha256, hex): the same images packed anywhere, at any time, have the same."""
        content = [
            FORMAT,
            VERSION,
            self.encoding,
            self.image_shape,
            self.class_names,
            self.labels_sha256,
            [(shard.num_samples, shard.sha256) for shard in self.shards],
        ]
        if self.is_encoded:
            content.append(self.spans_sha256)
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    @property
    def is_encoded(self) -> bool:
        """Whether images are PNG or JPEG, each of a length of its own."""
        return self.encoding != RAW

    @property
    def num_bytes(self) -> int:
        """The size of all tars."""
        return sum(shard.num_bytes for shard in self.shards)

    @property
    def raw_num_bytes(self) -> int:
        """The size that all tars have, or would have, with raw pixels."""
        return sum(self.layout.shard_bytes(shard.num_samples) for shard in self.shards)

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
    def layout(self) -> ShardLayout:
        """Of raw pixels."""
        return ShardLayout(self.image_shape, self.cls)

    @property
    def encoded_layout(self) -> EncodedLayout:
        """Of PNG or JPEG members."""
        return EncodedLayout(self.image_shape, self.cls, self.encoding, self.quality)

    def to_json(self) -> bytes:
        """The bytes of `index.json`: no path, time or machine in them."""
        fields = asdict(self)
        del fields["path"]
        if not self.is_encoded:
            del fields["quality"], fields["spans_sha256"]
        return json.dumps(
            {"format": FORMAT, "version": VERSION, "fingerprint": self.fingerprint, **fields},
            indent=1,
        ).encode()


def read_index(path: str | Path) -> ShardIndex:
    """The index of the shards in folder `path`; opens no tar.

    Raises ShardError where there is no such folder, no index in it, or an index that is damaged or of another version.
    """
    folder = Path(path).expanduser()
    shown = printable(str(path))
    try:
        text = (folder / INDEX_FILE).read_bytes()
    except FileNotFoundError:
        if not folder.is_dir():
            raise ShardError(
                f"no folder {shown}: pack your images with `distgan pack SOURCE {shown}`"
            ) from None
        unfinished = (folder / WORK_FOLDER).is_dir()
        state = (
            "an unfinished pack: run the same `distgan pack` again"
            if unfinished
            else "no index.json"
        )
        remedy = "" if unfinished else f": name a folder that `distgan pack SOURCE {shown}` made"
        raise ShardError(f"{shown} holds {state}{remedy}") from None
    except OSError as error:
        raise ShardError(
            f"cannot read {shown}/{INDEX_FILE}: {error.strerror}; give the folder of the shards"
        ) from None
    return parse_index(text, folder, shown=shown)


def parse_index(text: bytes, folder: Path, *, shown: str) -> ShardIndex:
    """The index in the bytes of an `index.json`, whose files lie in `folder`. Raises ShardError, which says `shown`."""
    try:
        fields = json.loads(text)
        if fields["format"] == FORMAT and fields["version"] != VERSION:
            raise ShardError(
                f"{shown} has shard format {fields['version']!r}, and this distgan reads {VERSION}: pack again"
            )
        return _parse(folder, fields)
    except ShardError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = printable(f"{type(error).__name__}: {error}")[:120]
        raise ShardError(
            f"{shown}/{INDEX_FILE} is damaged ({reason}): delete the folder and pack again"
        ) from error


def _parse(folder: Path, fields: dict[str, Any]) -> ShardIndex:
    """The index in a parsed `index.json`; raises ValueError, KeyError or TypeError for anything amiss."""
    _require(fields["format"] == FORMAT, "format")
    channels, height, width = (_count(side) for side in fields["image_shape"])
    encoding, quality = fields["encoding"], fields.get("quality")
    _require(encoding in (RAW, *MEMBERS) and isinstance(fields["cls"], bool), "encoding")
    _require((quality is not None) == (encoding == "jpeg"), "quality")
    _require(quality is None or 1 <= _count(quality) <= MAX_QUALITY, "quality")
    _require(channels in (1, 3) and height == width and 1 <= height <= 8192, "image_shape")
    layout = ShardLayout((channels, height, width), fields["cls"])
    shards = []
    for record in fields["shards"]:
        shard = ShardRecord(
            record["file"],
            _count(record["num_samples"]),
            _count(record["num_bytes"]),
            _sha256(record["sha256"]),
        )
        _require(_SHARD_FILE.fullmatch(shard.file) is not None, "file")  # no path out of the folder
        if encoding == RAW:
            _require(
                shard.num_bytes == layout.shard_bytes(shard.num_samples),
                f"num_bytes of {shard.file}",
            )
        else:
            least = len(TRAILER) + 2 * BLOCK * (1 + layout.cls) * shard.num_samples
            _require(
                shard.num_bytes >= least and shard.num_bytes % BLOCK == 0,
                f"num_bytes of {shard.file}",
            )
        shards.append(shard)
    _require(len({shard.file for shard in shards}) == len(shards), "a file twice")
    class_names, class_counts = fields["class_names"], fields["class_counts"]
    num_samples = _count(fields["num_samples"])
    _require(num_samples == sum(shard.num_samples for shard in shards) > 0, "num_samples")
    if class_names is not None:
        _require(
            len(class_names) >= 1 and all(name.isprintable() for name in class_names), "class_names"
        )
        _require(len(class_counts) == len(class_names), "class_counts")
        _require(sum(_count(count) for count in class_counts) == num_samples, "class_counts")
    _require(class_names is not None or (class_counts is None and not layout.cls), "cls")
    index = ShardIndex(
        path=folder,
        image_shape=layout.image_shape,
        num_samples=num_samples,
        class_names=None if class_names is None else tuple(class_names),
        class_counts=None if class_names is None else tuple(class_counts),
        labels_sha256=None if class_names is None else _sha256(fields["labels_sha256"]),
        cls=layout.cls,
        num_rejected=_count(fields["num_rejected"]),
        shards=tuple(shards),
        plan=_sha256(fields["plan"]),
        encoding=encoding,
        quality=quality,
        spans_sha256=None if encoding == RAW else _sha256(fields["spans_sha256"]),
    )
    _require(fields["fingerprint"] == index.fingerprint, "fingerprint")
    return index


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(what)


def _count(value: Any) -> int:
    _require(type(value) is int and value >= 0, f"{value!r} is no count")
    return int(value)


def _sha256(value: Any) -> str:
    _require(
        isinstance(value, str) and _SHA256.fullmatch(value) is not None, f"{value!r} is no sha256"
    )
    return str(value)
