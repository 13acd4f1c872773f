"""A real HTTP server on loopback that serves a folder, with faults of servers and networks."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np

from shards.format.index import ShardIndex
from shards.pack import pack
from shards.reader import ShardReader
from shards.remote.files import open_shards
from shards.remote.folder import RetryPolicy
from shards.sources.official import ArraySource

FAULTS = ("drop", "stall", "truncate", "corrupt", "long", "500")
QUICK = RetryPolicy(tries=3, connect_sec=2, stall_sec=0.5, backoff_sec=0.01, outage_sec=0)


class Server(ThreadingHTTPServer):
    """A server of a folder.

    `faults[file]` are the faults of the next requests for a file, `gets[file]` is their number.
    """

    daemon_threads = True

    def __init__(self, folder: Path, address: str) -> None:
        super().__init__((address, 0), _Handler)
        self.folder = folder
        self.is_away = False  # then it closes every connection
        self.faults: dict[str, list[str]] = defaultdict(list)
        self.gets: Counter[str] = Counter()
        self.gate: dict[str, threading.Event] = {}  # a file is served once its event is set
        self.over = threading.Event()
        self.url = f"http://{address}:{self.server_address[1]}/data"

    @property
    def shard_gets(self) -> dict[str, int]:
        return {file: number for file, number in self.gets.items() if file.endswith(".tar")}

    def verify_request(self, *_: object) -> bool:
        """Answer unless it is away."""
        return not self.is_away

    def handle_error(self, *_: object) -> None:
        """Clients may hang up."""


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        file = self.path.partition("?")[0].rpartition("/")[2]
        self.server.gets[file] += 1
        if file in self.server.gate:
            self.server.gate[file].wait(30)
        faults = self.server.faults[file]
        fault = faults.pop(0) if faults else ""
        path = self.server.folder / file
        if fault.isdigit() or not path.is_file():
            return self.send_error(int(fault or 404))
        if fault.startswith("busy "):  # with the value of Retry-After
            self.send_response(503)
            self.send_header("Retry-After", fault.removeprefix("busy "))
            self.send_header("Content-Length", "0")
            return self.end_headers()
        data = path.read_bytes()
        if fault == "corrupt":
            data = data[:-1] + bytes([data[-1] ^ 1])
        self.send_response(200)
        if fault not in ("truncate", "long"):  # their end is that of the connection
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if fault in ("drop", "stall", "truncate"):
            data = data[: len(data) // 2]
        while fault == "trickle" and data and not self.server.over.wait(0.05):
            self.wfile.write(data[:1])
            data = data[1:]
        self.wfile.write(data)
        if fault == "long":
            self.wfile.write(data)
        if fault == "stall":
            self.wfile.flush()
            self.server.over.wait(30)
        return None

    def log_message(self, *_: object) -> None:
        """Silence."""


@contextmanager
def serving(folder: Path, *, address: str = "127.0.0.1") -> Iterator[Server]:
    """A server of the files in `folder`, at `server.url`."""
    with Server(folder, address) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.over.set()
            for gate in server.gate.values():
                gate.set()
            server.shutdown()
            thread.join()


def pack_noise(out: Path, *, num_shards: int, size: int = 128) -> ShardIndex:
    """Pack noise in two classes: shards of 20 samples of 3 x 128 x 128, the last one of 19."""
    num_images = num_shards * 20 - 1
    images = np.random.default_rng(0).integers(0, 256, (num_images, size, size, 3), dtype=np.uint8)
    source = ArraySource(
        names=[str(number) for number in range(num_images)],
        sizes=np.full(num_images, images[0].size, np.int64),
        labels=np.arange(num_images, dtype=np.int32) % 2,
        class_names=("even", "odd"),
        digest="0" * 64,
        default_size=size,
        in_memory=True,
        images=images,
    )
    index = pack(source, out, shard_size_mb=1, workers=1)
    assert len(index.shards) == num_shards
    return index


def read_all(url: str, cache: Path, ready: Barrier) -> None:
    """Read every image at the same time as others; the target of a process that imports little."""
    index, files = open_shards(url, cache=cache, retry=QUICK)
    reader = ShardReader(index, files=files)
    ready.wait()
    reader.gather(np.arange(reader.num_samples))
