"""Tars and zips at URLs: read in place, over a real server that serves ranges."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from shards.errors import ShardError
from shards.pack import pack
from shards.sources.registry import open_source
from shards.sources.remote import open_remote
from tests.shards.images import contents, png, value, write_tar, write_zip
from tests.shards.servers import QUICK

pytest.importorskip("aiohttp", reason="pip install 'distgan[http]'")
pytestmark = pytest.mark.usefixtures("no_proxy")
FILES = {f"{name}/{number}.png": png(number) for number in range(6) for name in "ab"}


class _Handler(BaseHTTPRequestHandler):
    """Serves ranges of files, and fails as often as `server.failures` says."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, *, with_body: bool) -> None:
        name = self.path.partition("?")[0].lstrip("/")
        path = self.server.folder / name  # type: ignore[attr-defined]
        if with_body and self.server.failures > 0:  # type: ignore[attr-defined]
            self.server.failures -= 1  # type: ignore[attr-defined]
            return self.send_error(503)
        if not path.is_file():
            return self.send_error(404)
        data, span = path.read_bytes(), self.headers.get("Range")
        self.send_response(206 if span else 200)
        if span:
            first, _, last = span.removeprefix("bytes=").partition("-")
            end = min(int(last or len(data)), len(data) - 1)
            self.send_header("Content-Range", f"bytes {first}-{end}/{len(data)}")
            data = data[int(first) : end + 1]
        self.send_header("ETag", f'"{hashlib.sha256(path.read_bytes()).hexdigest()}"')
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if with_body:
            self.server.sent += len(data)  # type: ignore[attr-defined]
            self.wfile.write(data)
        return None

    def log_message(self, *_: object) -> None:
        """Silence."""


class RangeServer(ThreadingHTTPServer):
    """A server of a folder that counts the bytes it has sent."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.sent, self.failures = folder, 0, 0
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RangeServer]:
    """Serve a tar and a zip of the same images."""
    write_tar(tmp_path / "web" / "images.tar", FILES)
    write_zip(tmp_path / "web" / "images.zip", FILES)
    with RangeServer(tmp_path / "web") as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.mark.parametrize("name", ["images.tar", "images.zip"])
def test_remote_archives_are_packed_as_local_ones(
    tmp_path: Path, server: RangeServer, name: str
) -> None:
    """The same shards, labels included, with two processes that connect by themselves."""
    pack(tmp_path / "web" / name, tmp_path / "local", size=8, workers=1)
    index = pack(f"{server.url}/{name}?token=secret", tmp_path / "remote", size=8, workers=2)
    assert contents(tmp_path / "remote") == contents(tmp_path / "local")
    assert index.class_names == ("a", "b")


def test_samples_with_labels_in_a_remote_tar(tmp_path: Path, server: RangeServer) -> None:
    """The shards of another tool: the classes are in .cls members."""
    write_tar(
        tmp_path / "web" / "s.tar", {"1.png": png(1), "1.cls": b"4", "2.png": png(2), "2.cls": b"7"}
    )
    source = open_source(f"{server.url}/s.tar")
    assert source.class_names == ("4", "7")
    assert [value(source, item) for item in range(2)] == [1, 2]


def test_only_what_is_needed_is_fetched(tmp_path: Path, server: RangeServer) -> None:
    """A large member that is no image is skipped, and reading an image fetches that image."""
    write_tar(tmp_path / "web" / "big.tar", {"video.mp4": bytes(40_000_000), "1.png": png(1)})
    source = open_source(f"{server.url}/big.tar")
    assert server.sent < 10_000_000
    before = server.sent
    assert value(source, 0) == 1
    assert server.sent - before == len(png(1))


@pytest.mark.parametrize("name", ["images.tar", "images.zip"])
@pytest.mark.parametrize(
    "content", [png(99), b"no image".ljust(len(png(99)))], ids=["intact", "broken"]
)
def test_an_archive_that_is_replaced_while_it_is_packed_is_an_error(
    name: str, content: bytes, tmp_path: Path, server: RangeServer
) -> None:
    """Even if the other has as many bytes and files of the same names, intact or broken."""

    def replace(*_: int) -> None:
        write = write_tar if name == "images.tar" else write_zip
        write(tmp_path / "web" / name, dict.fromkeys(FILES, content))

    with pytest.raises(ShardError, match=f"{name} was changed while it was packed: pack again"):
        pack(f"{server.url}/{name}", tmp_path / "out", size=8, workers=1, progress=replace)
    assert not (tmp_path / "out" / "index.json").exists()


def test_a_server_that_fails_for_a_while_is_asked_again(server: RangeServer) -> None:
    """Errors that may pass are tried again, others are one line without the secret in the URL."""
    url = f"{server.url}/images.tar?token=secret"
    source = open_remote(url, with_labels=False, retry=QUICK)
    server.failures = 1
    assert value(source, 3) >= 0
    for name in ("images.tar", "images.zip"):
        server.failures = 1  # while it is listed
        source = open_remote(f"{server.url}/{name}", with_labels=False, retry=QUICK)
        server.failures = 1
        assert value(source, 3) >= 0
        server.failures = 99
        with pytest.raises(ShardError, match=r"tried 3 times: .*503"):
            open_remote(f"{server.url}/{name}", with_labels=False, retry=QUICK)
        server.failures = 0
    source = open_remote(url, with_labels=False, retry=QUICK)
    server.failures = 99
    with pytest.raises(ShardError, match=r"images.tar, tried 3 times: .*503") as caught:
        value(source, 3)
    assert "secret" not in str(caught.value)
    server.failures = 0
    for path, message in (
        ("/gone.tar", "there is no such file"),
        ("/images.html", "neither a .tar nor a .zip"),
    ):
        with pytest.raises(ShardError, match=message) as caught:
            open_source(f"{server.url}{path}?token=secret")
        assert "secret" not in str(caught.value)
