"""Remote shards: the right bytes or one clear line, each file fetched once per node."""

from __future__ import annotations

import errno
import multiprocessing
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path

import fsspec  # noqa: F401
import numpy as np
import pytest
import torch

from shards.errors import ShardError, without_secrets
from shards.files import locked
from shards.format.index import ShardIndex
from shards.order.settings import PERMUTATION, OrderSettings
from shards.reader import ShardReader
from shards.remote.cache import NodeCache
from shards.remote.files import is_url, open_shards
from shards.remote.folder import RemoteFolder
from shards.stream import BatchStream
from tests.shards.servers import FAULTS, QUICK, Server, pack_noise, read_all, serving

pytest.importorskip("aiohttp")
WINDOWS = OrderSettings("windows", lanes=2, window_shards=1)


pytestmark = pytest.mark.usefixtures("no_proxy")


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    """Eight shards of a megabyte."""
    return pack_noise(tmp_path_factory.mktemp("noise") / "data", num_shards=8)


@pytest.fixture
def server(noise: ShardIndex) -> Iterator[Server]:
    with serving(noise.path) as server:
        yield server


def open_reader(
    url: str,
    cache: Path,
    *,
    order_settings: OrderSettings = PERMUTATION,
    max_bytes: int | None = None,
) -> ShardReader:
    index, files = open_shards(url, cache=cache, max_bytes=max_bytes, retry=QUICK)
    return ShardReader(index, files=files, order_settings=order_settings)


def take(reader: ShardReader, num_batches: int, **options: int) -> torch.Tensor:
    with BatchStream(reader, **{"key": 7, "start": 0, "batch_size": 8} | options) as stream:
        return torch.cat(list(islice(stream, num_batches)))


def cached(cache: Path) -> list[Path]:
    """Everything in the cache but the lock of the folder."""
    return sorted(path for path in cache.iterdir() if path.name != "lock")


def test_remote_shards_are_the_local_ones(
    server: Server, noise: ShardIndex, tmp_path: Path
) -> None:
    """All data equal those of the folder; each file is fetched once, also by the next run."""
    local, everything = ShardReader(noise), np.arange(noise.num_samples)
    for _ in range(2):
        remote = open_reader(server.url + "/", tmp_path)
        assert remote.index.fingerprint == noise.fingerprint
        assert np.array_equal(remote.gather(everything), local.gather(everything))
        assert np.array_equal(remote.labels(everything), local.labels(everything))
        assert torch.equal(take(remote, 30), take(local, 30))
    assert server.shard_gets == {shard.file: 1 for shard in noise.shards}
    assert server.gets["labels.npy"] == 1
    assert {path.name for path in cached(tmp_path)} == {s.sha256 for s in noise.shards} | {
        noise.labels_sha256
    }


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("file", ["index.json", "000001.tar", "labels.npy"])
def test_faults_are_overcome(
    server: Server, noise: ShardIndex, tmp_path: Path, fault: str, file: str
) -> None:
    """Two bad answers of a kind, then a good one: the right bytes."""
    server.faults[file] = [fault, fault]
    ids = np.arange(20, 40)
    reader = open_reader(server.url, tmp_path)
    assert np.array_equal(reader.gather(ids), ShardReader(noise).gather(ids))
    assert (
        server.gets[file] == (1 if (fault, file) == ("long", "index.json") else 3)
        or file == "index.json"
    )


@pytest.mark.parametrize("fault", [*FAULTS, "404", "403"])
def test_faults_that_stay_are_one_line(
    server: Server, noise: ShardIndex, tmp_path: Path, fault: str
) -> None:
    """The error names the file but no secret, and no partial file is left."""
    server.faults["000001.tar"] = [fault] * 99
    url = server.url.replace("://", "://user:hunter2@") + "?token=hunter2"
    reader = open_reader(url, tmp_path)
    before = cached(tmp_path)
    with pytest.raises(
        ShardError, match=r"cannot fetch http://127.*/data/000001.tar, tried"
    ) as caught:
        reader.gather(np.array([20]))
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert server.gets["000001.tar"] == (1 if fault in ("404", "403") else QUICK.tries)
    assert cached(tmp_path) == before
    stream = BatchStream(reader, key=7, start=0, batch_size=noise.num_samples)
    with pytest.raises(ShardError, match=r"000001.tar"):
        next(stream)


def test_a_dead_server_is_one_line(tmp_path: Path) -> None:
    """Nobody listens."""
    with pytest.raises(ShardError, match=r"index.json, tried 3 times: Connection refused"):
        open_reader("http://127.0.0.1:9/data", tmp_path)


def test_what_is_no_dataset_is_refused(server: Server, tmp_path: Path) -> None:
    """No index, an index that is not ours, and addresses of shells and other file systems."""
    for url in (
        "pipe://cat",
        "http://",
        "http://user:pa/ss@host/x",
        "simplecache::http://127.0.0.1/x",
        "s3://",
        "what://x",
    ):
        with pytest.raises(ShardError) as caught:
            open_reader(url, tmp_path)
        assert "pa/ss" not in str(caught.value)
    with pytest.raises(ShardError, match="no folder"):
        open_reader("pipe:cat", tmp_path)
    server.folder = tmp_path
    with pytest.raises(ShardError, match="there is no such file"):
        open_reader(server.url, tmp_path)
    (tmp_path / "index.json").write_text("{}")
    with pytest.raises(ShardError, match="damaged"):
        open_reader(server.url, tmp_path)


@pytest.mark.parametrize(
    ("module", "url"), [("aiohttp", "https://host/x"), ("s3fs", "s3://bucket/x")]
)
def test_a_missing_package_is_named(
    module: str, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What to install where an extra is missing."""
    monkeypatch.setitem(sys.modules, module, None)
    loaded = sys.modules["fsspec.registry"]._registry  # by an earlier test, perhaps
    monkeypatch.delitem(loaded, url.partition(":")[0], raising=False)
    with pytest.raises(
        ShardError, match=rf"pip install 'distgan\[{'s3' if module == 's3fs' else 'http'}\]'"
    ):
        RemoteFolder(url)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:pw@host:80/a/b?token=x#y end", "https://host:80/a/b end"),
        ("http://me:p@w@host/a@b", "http://host/a@b"),
        ("http://me:p/w@host/a", "http://host/a"),
        ("a s3://key:secret@bucket/x and https://h?sig=1, b", "a s3://bucket/x and https://h b"),
        ("/data/x@y?z", "/data/x@y?z"),
        ("http://host:8080/a:b@c", "http://host:8080/a:b@c"),
    ],
)
def test_secrets_are_taken_out(text: str, shown: str) -> None:
    """User, password, query and fragment of every URL, and nothing else."""
    assert without_secrets(text) == shown
    assert is_url(text) == ("://" in text)


def test_training_starts_before_the_last_shard(
    server: Server, noise: ShardIndex, tmp_path: Path
) -> None:
    """With windows, batches come while shards of later windows still are on their way."""
    order = ShardReader(noise, order_settings=WINDOWS).make_order(7, batch_size=8)
    shards = np.minimum(order.ids(np.arange(noise.num_samples)) // 20, 7)
    late = noise.shards[int(shards[-1])].file
    server.gate[late] = threading.Event()
    reader = open_reader(server.url, tmp_path, order_settings=WINDOWS)
    with BatchStream(reader, key=7, start=0, batch_size=8) as stream:
        batches = [next(stream) for _ in range(5)]
        server.gate[late].set()
        batches += [next(stream) for _ in range(25)]
    assert torch.equal(torch.cat(batches), take(ShardReader(noise, order_settings=WINDOWS), 30))


def test_processes_of_a_node_fetch_once(server: Server, noise: ShardIndex, tmp_path: Path) -> None:
    """Two processes that want everything at the same time fetch every file once between them."""
    spawn = multiprocessing.get_context("spawn")
    ready = spawn.Barrier(2)
    processes = [
        spawn.Process(target=read_all, args=(server.url, tmp_path, ready)) for _ in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert server.shard_gets == {shard.file: 1 for shard in noise.shards}
    assert server.gets["labels.npy"] == 1


def test_the_cache_keeps_its_bound(server: Server, noise: ShardIndex, tmp_path: Path) -> None:
    """A dataset larger than the cache can be read; the cache never exceeds its bound."""
    bound = int(6.2 * noise.shards[0].num_bytes)
    reader = open_reader(server.url, tmp_path, order_settings=WINDOWS, max_bytes=bound)
    over, most = threading.Event(), []

    def watch() -> None:
        while not over.wait(0.01):
            # nothing is evicted between two looks; a file that is renamed spoils one
            with suppress(FileNotFoundError), locked(tmp_path / "lock", busy=None):
                most.append(
                    sum(
                        path.stat().st_size for path in tmp_path.iterdir() if path.suffix != ".lock"
                    )
                )

    thread = threading.Thread(target=watch)
    thread.start()
    batches = take(reader, 30)
    over.set()
    thread.join()
    assert torch.equal(batches, take(ShardReader(noise, order_settings=WINDOWS), 30))
    assert 4 * noise.shards[0].num_bytes < max(most) <= bound
    assert sum(server.shard_gets.values()) <= 8 * (30 * 8 // noise.num_samples + 2)


def test_too_small_a_cache_is_refused(server: Server, noise: ShardIndex, tmp_path: Path) -> None:
    """The number that is needed stands in the error, and with it the run goes."""
    with pytest.raises(
        ShardError, match=r"data.order=permutation needs 0.009 GB .*data.order=windows"
    ):
        open_reader(server.url, tmp_path, max_bytes=5_000_000)
    reader = open_reader(server.url, tmp_path, order_settings=WINDOWS, max_bytes=4_000_000)
    with pytest.raises(ShardError, match=r"data.order=windows needs 0.007 GB") as caught:
        BatchStream(reader, key=7, start=0, batch_size=8)
    needed = int(float(str(caught.value).split(" needs ")[1].split(" GB")[0]) * 1e9)
    reader = open_reader(server.url, tmp_path, order_settings=WINDOWS, max_bytes=needed)
    everything = np.arange(noise.num_samples)[::-1]
    with BatchStream(reader, key=7, start=0, batch_size=8) as stream:
        for _ in range(10):  # others may ask by id meanwhile
            next(stream)
            assert np.array_equal(
                reader.gather(everything[::5]), ShardReader(noise).gather(everything[::5])
            )


def write(text: bytes) -> Callable[[Path], int]:
    return lambda path: path.write_bytes(text)


def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    """Files in use never go; among the others the one unused for longest."""
    cache = NodeCache(tmp_path, max_bytes=30, wait_sec=0.2)
    for name in ("a", "b", "c"):
        cache.open(name, num_bytes=10, fetch=write(b"0" * 10)).close()
        time.sleep(0.01)
    cache.open("a", num_bytes=10, fetch=write(b"")).close()
    with cache.open("b", num_bytes=10, fetch=write(b"")) as held:
        cache.open("d", num_bytes=10, fetch=write(b"1" * 10)).close()
        assert [path.name for path in cached(tmp_path)] == ["a", "b", "d"]
        with pytest.raises(ShardError, match="full of shards in use"):
            cache.open("e", num_bytes=21, fetch=write(b"1" * 21))
        assert held.read() == b"0" * 10
    cache.open("e", num_bytes=21, fetch=write(b"1" * 21)).close()
    assert [path.name for path in cached(tmp_path)] == ["e"]


def test_leftovers_of_a_killed_process_go(tmp_path: Path) -> None:
    """What was half fetched is no part of the cache; a file cut short by hand is fetched again."""
    (tmp_path / "x.10.part").write_bytes(b"half")
    (tmp_path / "x.lock").touch()
    (tmp_path / "a").write_bytes(b"short")
    cache = NodeCache(tmp_path, max_bytes=10)
    with cache.open("a", num_bytes=10, fetch=write(b"0" * 10)) as file:
        assert file.read() == b"0" * 10
    assert [path.name for path in cached(tmp_path)] == ["a"]


def test_a_full_disk_makes_room_then_says_so(tmp_path: Path) -> None:
    """Unused files are removed first; otherwise it is an error, without partial files."""
    cache, tries = NodeCache(tmp_path), []

    def full(path: Path) -> None:
        tries.append(
            sorted(
                file.name for file in tmp_path.iterdir() if not file.suffix and file.name != "lock"
            )
        )
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    cache.open("a", num_bytes=10, fetch=write(b"0" * 10)).close()
    with pytest.raises(ShardError, match="the disk is full"):
        cache.open("b", num_bytes=10, fetch=full)
    assert tries == [["a"], []]
    assert cached(tmp_path) == []
