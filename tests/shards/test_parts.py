"""Packing in parts: the same bytes as in one go, whatever happens to a part."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shards.errors import ShardError
from shards.format.index import ShardIndex, read_index
from shards.pack import Encoding, pack, plan_packing
from shards.parts import PackedPart, Part, join_parts, pack_part, parse_part
from shards.verify import verify
from tests.shards.images import contents, flip, overwrite

MakeImages = Callable[..., Path]
ROOT = Path(__file__).parents[2]
TOTAL = 3


def plan(images: Path, encoding: Encoding = "raw") -> Any:
    """Five shards of 64x64, with PNG or JPEG files or raw pixels."""
    return plan_packing(images, size=64, shard_size_mb=1, encoding=encoding)


def pack_parts(images: Path, out: Path, *numbers: int, **options: Any) -> None:
    for number in numbers:
        pack_part(plan(images), out, Part(number, TOTAL), workers=1, **options)


@pytest.fixture
def images(make_images: MakeImages) -> Path:
    """Images for five shards."""
    return make_images(300, size=8)


@pytest.fixture
def whole(images: Path, tmp_path: Path) -> dict[str, bytes]:
    """The files of the same images, packed in one go."""
    index = pack(images, tmp_path / "whole", size=64, shard_size_mb=1, workers=1)
    assert len(index.shards) == 5
    return contents(index.path)


@pytest.mark.parametrize("encoding", ["raw", "jpeg"])
def test_joined_parts_are_the_bytes_of_one_pack(
    images: Path, tmp_path: Path, encoding: Encoding
) -> None:
    """In any order, with broken images and more parts than shards."""
    (images / "a" / "0004.png").write_bytes(b"broken")
    how: Any = {"workers": 1, "bad_images": "skip"}
    packing, out = plan(images, encoding), tmp_path / "out"
    counts = []
    for number in (3, 7, 1, 2, 5, 4, 6):
        done = pack_part(packing, out, Part(number, 7), **how)
        assert isinstance(done, PackedPart)
        counts.append(done)
    index = join_parts(packing, out, **how)
    pack(images, tmp_path / "whole", size=64, shard_size_mb=1, encoding=encoding, **how)
    assert contents(out) == contents(tmp_path / "whole")
    assert sum(part.num_samples for part in counts) == index.num_samples == 299
    assert sum(part.num_shards for part in counts) == len(index.shards) == 5
    assert sum(part.num_rejected for part in counts) == 1
    assert join_parts(packing, out, **how) == index, "a join may be repeated"
    assert pack_part(packing, out, Part(1, 7)) == index, "and a part after it"


def test_missing_and_damaged_parts_are_named(
    images: Path, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    """In one line, and what is whole stays as it is."""
    out = tmp_path / "out"
    with pytest.raises(ShardError, match="holds no parts to join"):
        join_parts(plan(images), out)
    pack_parts(images, out, 2)
    with pytest.raises(ShardError, match=r"lacks 3 of 5 shards, of parts 1/3, 3/3: pack that"):
        join_parts(plan(images), out)
    pack_parts(images, out, 1, 3)
    flip(out / "000004.tar", 5000)
    with pytest.raises(ShardError, match=r"lacks 1 of 5 shards, of part 2/3: "):
        join_parts(plan(images), out)
    with pytest.raises(ShardError, match=r"again for each part that is left.*--join"):
        read_index(out)
    kept = (out / "000001.tar").stat().st_ino
    pack_parts(images, out, 2)
    join_parts(plan(images), out)
    assert (out / "000001.tar").stat().st_ino == kept
    assert contents(out) == whole


def test_parts_of_copies_of_the_source_are_joined_and_of_others_are_not(
    images: Path, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    """Each machine may have its own copy. Equal names and sizes do not make it the same."""
    out, copy = tmp_path / "out", Path(shutil.copytree(images, tmp_path / "copy"))
    pack_parts(images, out, 1, 2)
    pack_parts(copy, out, 3)
    for path in copy.rglob("*.png"):
        overwrite(path)
    with pytest.raises(ShardError, match=r"parts 1/3, 2/3, 3/3 of .* packed from other files"):
        join_parts(plan(copy), out)
    join_parts(plan(images), out)
    assert contents(out) == whole


def test_a_part_of_another_plan_or_division_is_refused(images: Path, tmp_path: Path) -> None:
    """The first part decides for all."""
    out = tmp_path / "out"
    pack_parts(images, out, 1)
    half = out / ".packing" / "000002.tar.tmp"
    half.write_bytes(b"what another part is writing")
    for part in (Part(2, 4), Part(1, 1)):
        with pytest.raises(ShardError, match=r"in 3 parts, not \d: give --part K/3"):
            pack_part(plan(images), out, part, workers=1)
        assert half.exists()
    (images / "a" / "0000.png").unlink()
    for act in (lambda: pack_parts(images, out, 2), lambda: join_parts(plan(images), out)):
        with pytest.raises(ShardError, match="unfinished pack of other images"):
            act()


def test_one_process_packs_a_part_and_none_joins_meanwhile(images: Path, tmp_path: Path) -> None:
    """Other parts go on; the same part, a join and a pack of everything are refused."""
    out, refused = tmp_path / "out", []

    def meanwhile(done: int, total: int) -> None:
        if not refused:
            with pytest.raises(ShardError, match=r"another process packs part 1/3"):
                pack_parts(images, out, 1)
            with pytest.raises(ShardError, match="parts are being packed"):
                join_parts(plan(images), out)
            with pytest.raises(ShardError, match="another pack is writing"):
                pack(images, out, size=64, shard_size_mb=1)
            refused.append(done)
            pack_parts(images, out, 2)

    pack_parts(images, out, 1, progress=meanwhile)
    assert refused
    with pytest.raises(ShardError, match=r"of part 3/3:"):
        join_parts(plan(images), out)


def test_a_pack_in_one_go_finishes_what_parts_began(
    images: Path, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    """Without --part, finished shards are kept and the rest is packed."""
    out = tmp_path / "out"
    pack_parts(images, out, 2)
    kept = (out / "000001.tar").stat().st_ino
    pack(images, out, size=64, shard_size_mb=1, workers=1)
    assert (out / "000001.tar").stat().st_ino == kept
    assert contents(out) == whole


KILLED = """
import os, signal, sys
from shards.pack import plan_packing
from shards.parts import Part, pack_part
def progress(done, total):
    if done >= 60:
        os.kill(os.getpid(), signal.SIGKILL)
packing = plan_packing(sys.argv[1], size=64, shard_size_mb=1)
pack_part(packing, sys.argv[2], Part(1, 3), workers=1, progress=progress)
"""


def test_a_killed_part_is_resumed_and_leaves_others_alone(
    images: Path, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    """Its half-written shard is removed when it is repeated, not by another part."""
    out = tmp_path / "out"
    command = [sys.executable, "-c", KILLED, str(images), str(out)]
    killed = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert killed.returncode == -signal.SIGKILL
    (leftover,) = (out / ".packing").glob("*.tmp")
    pack_parts(images, out, 2, 3)
    assert leftover.exists()
    pack_parts(images, out, 1)
    assert not leftover.exists()
    join_parts(plan(images), out)
    assert contents(out) == whole


def test_part_as_text() -> None:
    """Parts count from 1; anything else is refused with its value."""
    assert parse_part("3/64") == Part(3, 64)
    assert [list(Part(k, 3).shards(5)) for k in (1, 2, 3)] == [[0, 3], [1, 4], [2]]
    for text in ("0/3", "4/3", "3", "1/0", "-1/3", "1/3/5", "1/9999999"):
        with pytest.raises(ShardError, match=re.escape(f"--part {text} is not possible")):
            parse_part(text)


def test_verify_in_parallel_and_by_part_names_the_same_damage(packed: ShardIndex) -> None:
    """Any number of processes finds it, and only the part that holds it."""
    assert len(packed.shards) == 2
    flip(packed.path / "000001.tar", 3)
    found = verify(packed.path, workers=1)
    assert [problem.file for problem in found] == ["000001.tar"]
    assert verify(packed.path, workers=2) == found
    assert verify(packed.path, part=Part(1, 2), workers=1) == []
    assert verify(packed.path, part=Part(2, 2), workers=1) == found


def test_shards_in_another_order_are_found(make_images: MakeImages, tmp_path: Path) -> None:
    """Each shard is checked alone, but keys increase throughout the dataset."""
    images = make_images(300, size=8, classes=())
    index = pack(images, tmp_path / "out", size=32, shard_size_mb=1, workers=1)
    swapped = replace(index, shards=index.shards[::-1])
    (index.path / "index.json").write_bytes(swapped.to_json())
    assert list(map(str, verify(index.path, workers=2))) == ["000000.tar has keys out of order"]
