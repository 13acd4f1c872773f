"""Atomic writes."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from shards.files import make_folder, write_atomic


@pytest.mark.parametrize("shared", [False, True])
def test_text_and_bytes_replace_the_old_content(tmp_path: Path, shared: bool) -> None:
    """The file holds exactly the new content, and no temporary file remains."""
    path = tmp_path / "file"
    for data in (b"old", "neu \u00fc\n", b"\x00new"):
        write_atomic(path, data, shared=shared)
        assert path.read_bytes() == (data.encode() if isinstance(data, str) else data)
    assert os.listdir(tmp_path) == ["file"]


def test_a_failed_write_keeps_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error is raised, the old content stays, and no temporary file remains."""
    path = tmp_path / "file"
    write_atomic(path, "old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_shared_writers_never_mix_their_content(tmp_path: Path) -> None:
    """Four writers at once: every reader sees the whole content of one of them."""
    path, contents = tmp_path / "file", [bytes([number]) * 200_000 for number in range(4)]
    write_atomic(path, contents[0])

    def write(data: bytes) -> None:
        for _ in range(10):
            write_atomic(path, data, shared=True)

    threads = [threading.Thread(target=write, args=(data,)) for data in contents]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert path.read_bytes() in contents
    assert os.listdir(tmp_path) == ["file"]


def test_the_umask_decides_who_may_read(tmp_path: Path) -> None:
    """A file in a shared cache is readable for others unless the umask says otherwise."""
    before = os.umask(0o022)
    try:
        write_atomic(tmp_path / "file", b"", shared=True)
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("fails", ["open", "fsync"])
def test_folders_that_cannot_be_synced_are_written_to(
    fails: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as those of some virtual machines, or those that a user may write to but not list."""
    whole, error = getattr(os, fails), {"open": errno.EACCES, "fsync": errno.EINVAL}[fails]

    def refuse(what: Path | int, *options: int) -> int | None:
        is_folder = os.path.isdir(what if fails == "open" else f"/proc/self/fd/{what}")
        if is_folder:
            raise OSError(error, os.strerror(error))
        return whole(what, *options)

    monkeypatch.setattr(os, fails, refuse)
    make_folder(tmp_path / "a" / "b")
    write_atomic(tmp_path / "a" / "b" / "file", "text")
    assert (tmp_path / "a" / "b" / "file").read_text() == "text"
