"""Tar and zip archives, folders with links, and what is refused in them."""

from __future__ import annotations

import os
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from shards.errors import ShardError
from shards.sources.registry import open_source
from shards.sources.source import Skipped
from tests.shards.images import WRITERS, png, value, write_folder, write_tar, write_zip


@pytest.mark.parametrize("kind", ["images.tar", "images.zip"])
def test_hostile_names_are_only_names(kind: str, tmp_path: Path) -> None:
    """Paths that lead out of the folder are only names, and control characters are escaped."""
    victim = tmp_path / "victim.png"
    names = ["../victim.png", str(victim), "a/../../victim.png", "esc\x1b[2J.png"]
    source = open_source(
        WRITERS[kind](
            tmp_path / "in" / kind if kind == "images.tar" else tmp_path / kind,
            dict.fromkeys(names, png(7)),
        ),
        with_labels=False,
    )
    assert len(source) == 4
    assert all(value(source, item) == 7 for item in range(4))
    assert all(name.isprintable() for name in source.names)
    assert not victim.exists()


def test_links_and_sparse_members_of_tars_are_named(tmp_path: Path) -> None:
    """What is no range of bytes in the tar is skipped with its reason, and nothing is followed."""
    path = write_tar(tmp_path / "x.tar", {"a.png": png()})
    kinds = {
        tarfile.SYMTYPE: "symbolic link",
        tarfile.LNKTYPE: "hard link to a file that is not in the archive",
        tarfile.FIFOTYPE: "not a regular file",
        tarfile.GNUTYPE_SPARSE: "sparse file",
    }
    with tarfile.open(path, "a", format=tarfile.GNU_FORMAT) as tar:
        for number, kind in enumerate(kinds):
            member = tarfile.TarInfo(f"{number}.png")
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
        link = tarfile.TarInfo("readme")
        link.type, link.linkname = tarfile.SYMTYPE, "elsewhere"
        tar.addfile(link)
    source = open_source(path)
    assert len(source) == 1
    skipped = [Skipped(f"{number}.png", reason) for number, reason in enumerate(kinds.values())]
    assert list(source.skipped) == skipped


def test_hard_links_in_tars_are_the_file(tmp_path: Path) -> None:
    """`tar` stores the second name of a file as a link to the first."""
    write_folder(tmp_path, {"a/1.png": png(5)})
    (tmp_path / "b").mkdir()
    os.link(tmp_path / "a" / "1.png", tmp_path / "b" / "2.png")
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name in ("a/1.png", "b/2.png"):
            tar.add(tmp_path / name, name)
        assert tar.getmember("b/2.png").islnk()
    source = open_source(tmp_path / "x.tar")
    assert [value(source, item) for item in range(len(source))] == [5, 5]
    assert source.class_names == ("a", "b")


def test_concatenated_tars_are_read_to_the_last(tmp_path: Path) -> None:
    """`cat a.tar b.tar` leaves zeros between two archives; the second must not be lost."""
    parts = [
        write_tar(tmp_path / f"{number}.tar", {f"{number}.png": png(number)}).read_bytes()
        for number in range(3)
    ]
    path = tmp_path / "all.tar"
    path.write_bytes(b"".join(parts))
    source = open_source(path)
    assert [value(source, item) for item in range(len(source))] == [0, 1, 2]
    path.write_bytes(parts[0] + parts[1][:300])
    with pytest.raises(ShardError, match="not a whole tar"):
        open_source(path)


def test_members_of_one_name_are_all_packed(tmp_path: Path) -> None:
    """Two members of an archive may have one name; neither hides the other."""
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a.png", png(3))
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("a.png", png(4))
    source = open_source(tmp_path / "x.zip")
    assert [value(source, item) for item in range(len(source))] == [3, 4]


def test_a_tar_that_ends_in_a_zip_is_a_tar(tmp_path: Path) -> None:
    """The end of a zip is also the end of a tar whose last member it is."""
    data = write_zip(tmp_path / "x.zip", {"inside.png": png(1)}).read_bytes()
    path = write_tar(tmp_path / "x.tar", {"a.png": png(2), "b.zip": data})
    assert list(open_source(path).names) == ["a.png"]


def test_linked_folders_are_followed_and_loops_are_not(tmp_path: Path) -> None:
    """Class folders may be links; a link to a folder above is not followed."""
    write_folder(tmp_path / "real", {"1.png": png()})
    write_folder(tmp_path / "images", {"b/2.png": png()})
    os.symlink(tmp_path / "real", tmp_path / "images" / "a")
    os.symlink(tmp_path / "images", tmp_path / "images" / "b" / "loop")
    assert list(open_source(tmp_path / "images").names) == ["a/1.png", "b/2.png"]


def test_each_folder_is_packed_once(tmp_path: Path) -> None:
    """A class folder that is a link to another class is skipped, in favour of the real one."""
    write_folder(tmp_path, {"images/b/1.png": png(), "images/c/2.png": png(), "far/3.png": png()})
    for link, target in (("a", "images/b"), ("d", "far"), ("e", "far")):
        os.symlink(tmp_path / target, tmp_path / "images" / link)
    os.symlink("nowhere", tmp_path / "images" / "b" / "x.png")
    os.symlink("y.png", tmp_path / "images" / "b" / "y.png")
    source = open_source(tmp_path / "images")
    assert list(source.names) == ["b/1.png", "c/2.png", "d/3.png"]
    expected = [
        Skipped("a", "same folder as b"),
        Skipped("b/x.png", "broken link"),
        Skipped("b/y.png", "broken link"),
        Skipped("e", "same folder as d"),
    ]
    assert list(source.skipped) == expected


def test_class_folders_may_be_links_to_hidden_folders(tmp_path: Path) -> None:
    """As of tools that keep the files in a store of their own; the store is not listed itself."""
    write_folder(tmp_path / ".store", {"cats/1.png": png(), "dogs/2.png": png()})
    for name in ("cats", "dogs"):
        os.symlink(f".store/{name}", tmp_path / name)
    source = open_source(tmp_path)
    assert list(source.names) == ["cats/1.png", "dogs/2.png"]
    assert source.class_names == ("cats", "dogs")
    assert (list(source.skipped), source.other_files) == ([], {"hidden folder": 1})


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_compressed_tars_are_refused_with_a_remedy(mode: str, tmp_path: Path) -> None:
    """A compressed tar cannot be read in place; the message says what to type."""
    path = write_tar(tmp_path / "x.tar", {"a.png": png()}, mode)
    with pytest.raises(ShardError, match=r"compressed.*type `") as refused:
        open_source(path)
    command = str(refused.value).split("`")[1]
    path.rename(path.with_name(f"x.tar.{mode[2:]}"))
    subprocess.run(command.replace("x.tar", f"x.tar.{mode[2:]}"), shell=True, check=True)
    assert len(open_source(tmp_path)) == 1  # the compressed file is no longer in the way


def test_truncated_tars_are_refused(tmp_path: Path) -> None:
    """A tar that ends inside a member or a header is refused instead of read in part."""
    whole = write_tar(tmp_path / "x.tar", {f"{i}.png": png(i) for i in range(3)}).read_bytes()
    stride = 512 + -(-len(png()) // 512) * 512
    for cut in (1, 100, 511, 513, stride - 300 + 200, stride + 10, stride + 511, 2 * stride + 513):
        (tmp_path / "cut.tar").write_bytes(whole[:cut])
        with pytest.raises(ShardError, match="not a whole tar"):
            open_source(tmp_path / "cut.tar")
    garbage = whole[:stride] + b"\xff" * 512 + whole[stride + 512 :]
    (tmp_path / "cut.tar").write_bytes(garbage)
    with pytest.raises(ShardError, match="not a whole tar"):
        open_source(tmp_path / "cut.tar")


def test_damaged_and_encrypted_zips_are_refused(tmp_path: Path) -> None:
    """A zip that is none, or that needs a password, is refused."""
    data = bytearray(write_zip(tmp_path / "x.zip", {"a.png": png()}).read_bytes())
    (tmp_path / "cut.zip").write_bytes(data[:-30])
    with pytest.raises(ShardError, match="damaged"):
        open_source(tmp_path / "cut.zip")
    data[data.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "locked.zip").write_bytes(data)
    with pytest.raises(ShardError, match="encrypted"):
        open_source(tmp_path / "locked.zip")
