"""The index and its verification: damage of every kind is found and named."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shards.errors import ShardError
from shards.files import sha256_of_file
from shards.format.index import ShardIndex, read_index
from shards.reader import ShardReader
from shards.verify import verify


def rewrite(path: Path, offset: int, data: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)


def test_whole_shards_have_no_problem(packed: ShardIndex) -> None:
    """What was just packed is whole, also after it was moved."""
    assert verify(packed.path) == []
    moved = packed.path.rename(packed.path.with_name("moved"))
    assert verify(moved) == []
    assert read_index(moved).fingerprint == packed.fingerprint


@pytest.mark.parametrize("offset", [0, 200, 520, 700, 3_900, 5_000, -1])
def test_a_flipped_byte_is_found(packed: ShardIndex, offset: int) -> None:
    """One changed byte in a header, pixel, label, padding or the end is found in its shard."""
    path = packed.path / packed.shards[1].file
    offset %= packed.shards[1].num_bytes
    rewrite(path, offset, bytes([path.read_bytes()[offset] ^ 0x10]))
    assert [problem.file for problem in verify(packed.path)] == [path.name]


@pytest.mark.parametrize("keep", [0, 1, 512, 5120, 5120 * 7, -1])
def test_truncation_is_found(packed: ShardIndex, keep: int) -> None:
    """A shard cut anywhere is found, and not even opened for reading."""
    path = packed.path / packed.shards[0].file
    path.write_bytes(path.read_bytes()[:keep])
    assert [problem.file for problem in verify(packed.path)] == [path.name]
    with pytest.raises(ShardError, match=r"000000.tar has .*distgan verify"):
        ShardReader(packed)


def test_missing_extra_and_swapped_shards_are_found(packed: ShardIndex) -> None:
    """A shard that is gone, one too many, and two that changed places."""
    one, two = (packed.path / shard.file for shard in packed.shards[:2])
    shutil.copy(one, packed.path / "000099.tar")
    assert [problem.file for problem in verify(packed.path)] == ["000099.tar"]
    (packed.path / "000099.tar").unlink()
    kept = one.read_bytes()
    shutil.copy(two, one)
    two.write_bytes(kept)
    assert {problem.file for problem in verify(packed.path)} == {one.name, two.name}
    one.unlink()
    assert "No such file" in verify(packed.path)[0].message
    with pytest.raises(ShardError, match=r"000000.tar: No such file.*distgan verify"):
        ShardReader(packed)


def test_labels_are_checked(packed: ShardIndex) -> None:
    """A changed, a short and a missing labels.npy are found."""
    path = packed.path / "labels.npy"
    whole = path.read_bytes()
    for data in (whole[:-4], whole[:-4] + b"\1\0\0\1", b""):
        path.write_bytes(data)
        assert [problem.file for problem in verify(packed.path)] == ["labels.npy"]
    path.unlink()
    assert [problem.file for problem in verify(packed.path)] == ["labels.npy"]
    with pytest.raises(ShardError, match=r"labels.npy"):
        ShardReader(packed)


def test_an_index_that_fits_wrong_bytes_is_found(packed: ShardIndex) -> None:
    """Even with checksums made to fit, samples that are not as they should be are found."""
    record = packed.shards[0]
    path = packed.path / record.file
    whole = path.read_bytes()
    for offset, data in (
        (0, b"999"),
        (0, b"\xff" * 9),
        (514, b"X"),
        (4608, b"7"),
        (3_800, b"X"),
        (len(whole) - 1, b"X"),
    ):
        rewrite(path, offset, data)
        forged = replace(record, sha256=sha256_of_file(path))
        (packed.path / "index.json").write_bytes(
            replace(packed, shards=(forged, *packed.shards[1:])).to_json()
        )
        assert record.file in {problem.file for problem in verify(packed.path)}
        path.write_bytes(whole)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "shard format 2, and this distgan reads 1"),
        ({"format": "other"}, "damaged"),
        ({"num_samples": 3}, "damaged"),
        ({"fingerprint": "0" * 64}, "damaged"),
        ({"image_shape": [3, 32, 64]}, "damaged"),
        ({"shards": []}, "damaged"),
        ({"shards": None}, "damaged"),
        ({"class_counts": [1]}, "damaged"),
        ({"class_names": ["x", "y"]}, "damaged"),
        ({"num_rejected": -1}, "damaged"),
        ({"num_rejected": True}, "damaged"),
    ],
)
def test_a_changed_index_is_refused(
    packed: ShardIndex, change: dict[str, object], message: str
) -> None:
    """An index that was edited, or is of another version, is refused in one line."""
    path = packed.path / "index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ShardError, match=message) as caught:
        read_index(packed.path)
    assert "\n" not in str(caught.value)


def test_an_index_cannot_name_files_elsewhere(packed: ShardIndex) -> None:
    """Shards lie beside their index, whatever it says."""
    path = packed.path / "index.json"
    for name in ("../000000.tar", "/etc/passwd", "000000.tar\n", "a/000000.tar"):
        fields = json.loads(path.read_text())
        fields["shards"][0]["file"] = name
        with pytest.raises(ShardError, match="damaged"):
            _read(packed, json.dumps(fields).encode())


def _read(packed: ShardIndex, data: bytes) -> ShardIndex:
    folder = packed.path.with_name("edited")
    folder.mkdir(exist_ok=True)
    (folder / "index.json").write_bytes(data)
    return read_index(folder)


@given(st.data())
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_damaged_index_is_refused(packed: ShardIndex, data: st.DataObject) -> None:
    """Any damaged byte of the index gives the same content or a ShardError, nothing else."""
    text = bytearray((packed.path / "index.json").read_bytes())
    text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(0, 255))
    damaged = bytes(text[: data.draw(st.integers(len(text) // 2, len(text)))])
    with suppress(ShardError):
        assert _read(packed, damaged).fingerprint == packed.fingerprint


SCALARS = st.none() | st.booleans() | st.integers() | st.text()


@given(
    st.recursive(
        SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=5
    )
)
@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_other_json_is_no_index(packed: ShardIndex, value: object) -> None:
    """Any other JSON is refused."""
    with pytest.raises(ShardError, match="damaged"):
        _read(packed, json.dumps(value).encode())


def test_folders_without_an_index(tmp_path: Path) -> None:
    """No folder, and a folder of other things, say what to type."""
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(ShardError, match="distgan pack"):
            read_index(path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(ShardError, match="folder"):
        read_index(tmp_path / "file")
