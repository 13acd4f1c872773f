"""The page of a run while it trains, served to browsers on this machine only.

A browser polls the page. The server reads the run folder again whenever a file in it has changed,
and writes nothing.
"""

import hashlib
import sys
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any

from distgan.errors import UserError
from distgan.reporting.page import render_report
from distgan.reporting.run_record import read_record
from distgan.text import first_line

LOOPBACK = "127.0.0.1"
WATCHED = ("*.toml", "*.json", "*.jsonl", "samples/*.png")
NOT_SEARCHED = "Not searched while the page is live. distgan report searches them."


def folder_version(run: Path) -> str:
    """Return a text that changes whenever a file behind the page changes; raises OSError."""
    files = sorted(path for pattern in WATCHED for path in run.glob(pattern))
    stats = [(path.name, path.stat().st_mtime_ns, path.stat().st_size) for path in files]
    return hashlib.sha256(repr(stats).encode()).hexdigest()[:16]


class LiveServer(ThreadingHTTPServer):
    """Serves the page of one run; port 0 is any free port. Raises OSError if the port is taken."""

    daemon_threads = True

    def __init__(self, run: Path, *, port: int = 0) -> None:
        super().__init__((LOOPBACK, port), Handler)
        self.run, self.lock = run, Lock()
        self.version, self.page = "", b""

    @property
    def url(self) -> str:
        """Address of the page."""
        return f"http://{LOOPBACK}:{self.server_port}/"

    def current_page(self) -> tuple[str, bytes]:
        """Return the page and its version; raises UserError and OSError."""
        with self.lock:  # browsers that ask at the same time share one rendering
            version = folder_version(self.run)
            if version != self.version:
                record = read_record(self.run)
                text = render_report(record, nearest_note=NOT_SEARCHED, is_live=True)
                self.version, self.page = version, text.encode(errors="replace")
            return self.version, self.page

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore browsers that close the connection early."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD of the one page."""

    server: LiveServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "distgan", ""

    def do_GET(self) -> None:
        """Send the page, or only that it is unchanged."""
        # The name of the host keeps a web page elsewhere from reading this one by DNS rebinding.
        hosts = {f"{name}:{self.server.server_port}" for name in (LOOPBACK, "localhost")}
        if self.headers.get("Host") not in hosts:
            return self.reply(HTTPStatus.FORBIDDEN)
        if self.path != "/":
            return self.reply(HTTPStatus.NOT_FOUND)
        try:
            version, page = self.server.current_page()
        except (UserError, OSError) as error:  # a file may be missing for a moment
            return self.reply(HTTPStatus.SERVICE_UNAVAILABLE, first_line(error).encode())
        if self.headers.get("If-None-Match") == f'"{version}"':
            return self.reply(HTTPStatus.NOT_MODIFIED, version=version)
        return self.reply(HTTPStatus.OK, page, version=version)

    do_HEAD = do_GET

    def reply(self, status: HTTPStatus, content: bytes = b"", *, version: str = "") -> None:
        """Send a status and a content."""
        kind = "text/html" if status == HTTPStatus.OK else "text/plain"
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-cache")
        if version:
            self.send_header("ETag", f'"{version}"')
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Print nothing for each request."""
