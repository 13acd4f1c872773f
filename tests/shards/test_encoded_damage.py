"""Damaged PNG and JPEG shards."""

from __future__ import annotations

import json
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from shards.errors import ShardError
from shards.format.index import read_index
from shards.format.raw import npy_of_spans
from shards.pack import pack
from shards.reader import ShardReader
from shards.verify import verify
from tests.shards.encodings import smooth_source


@pytest.mark.parametrize("encoding", ["png", "jpeg"])
@pytest.mark.parametrize("damage", ["header", "image", "end", "spans", "swapped", "missing"])
def test_damage_is_found(tmp_path: Path, encoding: str, damage: str) -> None:
    """A flipped byte and exchanged spans are found, even if the checksums were made to fit."""
    index = pack(smooth_source(), tmp_path / "out", encoding=encoding)
    record, tar, spans = index.shards[0], index.path / "000000.tar", index.path / "spans.npy"
    path = tar if damage in ("header", "image", "end") else spans
    data = bytearray(path.read_bytes())
    values = np.load(spans)
    if damage == "swapped":
        values[[3, 4]] = values[[4, 3]]
        data = bytearray(npy_of_spans(values))
    elif damage != "missing":
        offset = {
            "header": 130,
            "image": int(values[2].sum()) - 1,
            "end": len(data) - 1,
            "spans": 140,
        }[damage]
        data[offset] ^= 0x04
    path.unlink() if damage == "missing" else path.write_bytes(data)
    assert [problem.file for problem in verify(index.path)] == [path.name]
    if damage == "missing":
        with pytest.raises(ShardError, match=r"spans\.npy"):
            ShardReader(index)
        return
    digest = sha256(data).hexdigest()
    forged = (
        replace(index, shards=(replace(record, sha256=digest),))
        if path == tar
        else replace(index, spans_sha256=digest)
    )
    (index.path / "index.json").write_bytes(forged.to_json())
    if damage != "image":  # there may be other images than these
        assert [problem.file for problem in verify(index.path)] == ["000000.tar"]


def test_what_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    """An undecodable image, or one of another shape, is an error that names shard and sample."""
    index = pack(smooth_source(), tmp_path / "out", encoding="png")
    other = pack(smooth_source(), tmp_path / "other", size=16, encoding="png")
    spans = np.load(index.path / "spans.npy")
    small = np.load(other.path / "spans.npy")[0]
    image = (other.path / "000000.tar").read_bytes()[small[0] : small.sum()]
    for data, message in (
        (b"no image", "sample 5 cannot be decoded"),
        (image, r"sample 5 is \[3, 16, 16\]"),
    ):
        with open(index.path / "000000.tar", "r+b") as file:
            file.seek(spans[5, 0])
            file.write(data)
        with pytest.raises(
            ShardError, match=rf"000000\.tar: the image of {message}.*distgan verify"
        ) as caught:
            ShardReader(index).gather(np.array([4, 5]))
        assert "\n" not in str(caught.value)
    wild = np.array(spans)
    wild[5] = (-(2**62), 2**62)
    (index.path / "spans.npy").write_bytes(npy_of_spans(wild))
    with pytest.raises(ShardError, match="sample 5"):
        ShardReader(index).gather(np.array([5]))


@pytest.mark.parametrize(
    "change", [{"encoding": "webp"}, {"quality": None}, {"quality": 101}, {"spans_sha256": None}]
)
def test_a_changed_index_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    """What the index says of the encoding has to fit together."""
    path = pack(smooth_source(), tmp_path / "out", encoding="jpeg").path
    fields = json.loads((path / "index.json").read_text())
    (path / "index.json").write_text(json.dumps(fields | change))
    with pytest.raises(ShardError, match="damaged"):
        read_index(path)
