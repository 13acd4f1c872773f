"""Servers that are away, slow or silent, and caches that are damaged or belong to others."""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path

import numpy as np
import pytest

import shards.remote.cache
from shards.errors import ShardError
from shards.format.index import ShardIndex
from shards.reader import ShardReader
from shards.remote.cache import NodeCache
from shards.remote.files import open_shards
from tests.shards.servers import QUICK, Server, pack_noise, serving

pytest.importorskip("aiohttp")


pytestmark = pytest.mark.usefixtures("no_proxy")


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    """Pack three shards of a megabyte."""
    return pack_noise(tmp_path_factory.mktemp("noise") / "data", num_shards=3)


@pytest.fixture
def server(noise: ShardIndex) -> Iterator[Server]:
    with serving(noise.path) as server:
        yield server


def open_reader(url: str, cache: Path) -> ShardReader:
    index, files = open_shards(url, cache=cache, retry=QUICK)
    return ShardReader(index, files=files)


def test_an_outage_is_outlasted(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A server is tried for `outage_sec` at least, however often, and one warning says so."""
    server.faults["index.json"] = ["503"] * 20
    patient = replace(QUICK, max_backoff_sec=0.02, outage_sec=20)
    assert open_shards(server.url, cache=tmp_path, retry=patient)[0].num_samples
    assert server.gets["index.json"] == 21
    assert [
        record.message.endswith("(the server answered 503); trying again")
        for record in caplog.records
        if "index.json" in record.message
    ] == [True]
    server.faults["index.json"] = ["corrupt"] * 20
    with pytest.raises(ShardError, match="tried 3 times"):  # damage is no outage
        open_shards(server.url, cache=tmp_path, retry=patient)


def test_a_server_says_when_to_ask_again(server: Server, tmp_path: Path) -> None:
    """Retry-After is waited for if it is short, otherwise it is part of the error."""
    server.faults["index.json"] = ["busy 1"]
    began = time.monotonic()
    open_shards(server.url, cache=tmp_path, retry=replace(QUICK, outage_sec=5))
    assert 1 <= time.monotonic() - began < 5
    server.faults["index.json"] = ["busy 3600"]
    with pytest.raises(ShardError, match=r"tried once: .* 503 and asks to wait 3,600 s"):
        open_shards(server.url, cache=tmp_path, retry=replace(QUICK, outage_sec=5))
    server.faults["index.json"] = [f"busy {formatdate(time.time() + 90, usegmt=True)}"]
    with pytest.raises(ShardError, match=r"asks to wait (8\d|90) s"):
        open_shards(server.url, cache=tmp_path, retry=replace(QUICK, outage_sec=5))


def test_a_trickle_is_no_answer(server: Server, tmp_path: Path) -> None:
    """A byte now and then does not keep a try alive, however long the file might be."""
    server.faults["index.json"] = ["trickle"] * 3
    began = time.monotonic()
    with pytest.raises(ShardError, match=r"tried once: only \d bytes arrived"):
        open_shards(
            server.url,
            cache=tmp_path,
            retry=replace(QUICK, tries=1, connect_sec=0.1, stall_sec=0.2),
        )
    assert time.monotonic() - began < 5


def test_a_silent_s3_server_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The libraries beneath do not try again on their own, which would take minutes."""
    pytest.importorskip("s3fs")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "x")
        began = time.monotonic()
        with pytest.raises(ShardError, match="tried once: the server stopped answering"):
            open_shards("s3://faces/x", cache=tmp_path, retry=replace(QUICK, tries=1))
        assert time.monotonic() - began < 10


def test_a_damaged_file_of_the_cache_is_fetched_again(
    server: Server, noise: ShardIndex, tmp_path: Path
) -> None:
    """Each process compares the checksum of a cached file when it first opens it."""
    ids = np.arange(20)
    expected = open_reader(server.url, tmp_path).gather(ids)
    shard = tmp_path / noise.shards[0].sha256
    data = bytearray(shard.read_bytes())
    data[700] ^= 1
    shard.write_bytes(data)
    assert np.array_equal(open_reader(server.url, tmp_path).gather(ids), expected)
    assert server.gets[noise.shards[0].file] == 2


def test_what_a_killed_process_was_fetching_takes_no_room(tmp_path: Path) -> None:
    """The file that it left unfinished does not count beside the same file, fetched again."""
    (tmp_path / "b.9.part").write_bytes(b"half")
    cache = NodeCache(tmp_path, max_bytes=10, wait_sec=0.2)
    with cache.open("b", num_bytes=9, fetch=lambda path: path.write_bytes(b"0" * 9)) as file:
        assert file.read() == b"0" * 9


def test_a_cache_of_another_user_is_read(
    server: Server, noise: ShardIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is there is read without writing; what is missing is one line."""
    everything = np.arange(noise.num_samples)
    open_reader(server.url, tmp_path).gather(everything[:-30])

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "utime", refuse)  # root, as tests may run, may always write
    monkeypatch.setattr(shards.remote.cache, "locked", refuse)
    reader = open_reader(server.url, tmp_path)
    assert np.array_equal(
        reader.gather(everything[:-30]), ShardReader(noise).gather(everything[:-30])
    )
    with pytest.raises(ShardError, match=r"cannot keep shards in the cache .*: no permission"):
        reader.gather(everything)
