"""A stand-in for the server of Weights & Biases on loopback: enough of its protocol for a whole online run.

It speaks what wandb 0.31 asks for: the start of a run, its rows and summary, files, an artifact, alerts, the end.
"""

import gzip
import json
import re
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote


class WandbServer(ThreadingHTTPServer):
    """Holds what one run has sent; `die` hangs up on everyone, in the middle of whatever they are doing."""

    daemon_threads = True

    def __init__(
        self, *, dies_when: Callable[["WandbServer"], bool] = lambda server: False
    ) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.dies_when, self.is_dead = dies_when, threading.Event()
        self.run: dict[str, Any] = {}  # what the start of the run said
        self.lines: dict[str, dict[int, str]] = {}  # file -> number of a line -> the line
        self.files: dict[str, bytes] = {}
        self.artifacts: list[dict[str, Any]] = []
        self.alerts: list[dict[str, Any]] = []
        self.exit_code: int | None = None
        self.connections: list[socket.socket] = []
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def history(self) -> list[dict[str, Any]]:
        """The rows of the run."""
        lines = self.lines.get("wandb-history.jsonl", {})
        return [json.loads(lines[number]) for number in sorted(lines)]

    @property
    def summary(self) -> dict[str, Any]:
        """What stands for the whole run."""
        lines = self.lines.get("wandb-summary.json", {})
        return json.loads(lines[max(lines)]) if lines else {}

    def get_request(self) -> tuple[socket.socket, Any]:
        """A connection, remembered so that it can be cut."""
        connection, address = super().get_request()
        self.connections.append(connection)
        return connection, address

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that is cut is no news."""

    def die(self) -> None:
        """Answer nobody any more."""
        self.is_dead.set()
        self.shutdown()
        self.server_close()
        for connection in self.connections:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:  # closed already
                continue


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: WandbServer

    def log_message(self, *words: Any) -> None:
        """Say nothing."""

    def body(self) -> bytes:
        """What was sent, however it was sent."""
        if self.headers.get("Transfer-Encoding") == "chunked":
            content = b""
            while size := int(self.rfile.readline().strip() or b"0", 16):
                content += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return (
            gzip.decompress(content) if self.headers.get("Content-Encoding") == "gzip" else content
        )

    def reply(self, answer: Any) -> None:
        """JSON; instead of it the end of the server, where that is due."""
        if self.server.is_dead.is_set() or self.server.dies_when(self.server):
            self.server.die()
            return
        content = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self) -> None:
        """Nothing is there."""
        self.reply({})

    def do_PUT(self) -> None:
        """The content of a file, at the address that it was given."""
        self.server.files[unquote(self.path).removeprefix("/put/")] = self.body()
        self.reply({})

    def do_POST(self) -> None:
        """A question in GraphQL, or rows of a run."""
        content = self.body()
        if self.path.endswith("/graphql"):
            asked = json.loads(content)
            self.reply({"data": self.answer(asked["query"], asked.get("variables") or {})})
        elif self.path.endswith("/file_stream"):
            self.take(json.loads(content))
            self.reply({"exitcode": None, "limits": {}})
        else:  # telemetry
            self.reply({})

    def take(self, sent: dict[str, Any]) -> None:
        """Rows, summary and the end."""
        for name, part in (sent.get("files") or {}).items():
            lines = self.server.lines.setdefault(name, {})
            lines |= enumerate(part["content"], start=part["offset"])
        if sent.get("complete"):
            self.server.exit_code = sent.get("exitcode")

    def place(self, name: str) -> str:
        """The address to which a file is to be sent."""
        return f"http://{self.headers['Host']}/put/{name}"

    def answer(self, query: str, values: dict[str, Any]) -> dict[str, Any]:
        """The data for one question; nothing for one that a run can do without."""
        asked = set(re.findall(r"\w+", query))
        if "upsertBucket" in asked:
            self.server.run |= {name: value for name, value in values.items() if value is not None}
            project = {
                "id": "UA==",
                "name": values["project"],
                "entity": {"id": "RQ==", "name": "me"},
            }
            bucket = {"id": "Qg==", "name": values["name"], "displayName": values.get("displayName"), "description": "",
                      "config": values.get("config"), "sweepName": None, "historyLineCount": 0, "project": project}  # fmt: skip
            return {"upsertBucket": {"inserted": True, "bucket": bucket}}
        if "createRunFiles" in asked:
            files = [{"name": name, "uploadUrl": self.place(name)} for name in values["files"]]
            return {"createRunFiles": {"runID": "Qg==", "uploadHeaders": [], "files": files}}
        if "notifyScriptableRunAlert" in asked:
            self.server.alerts.append(values)
            return {"notifyScriptableRunAlert": {"success": True}}
        if "serverInfo" in asked:
            return {
                "serverInfo": {"features": [], "cliVersionInfo": {}, "latestLocalVersionInfo": None}
            }
        if "viewer" in asked:
            person = {"id": "VQ==", "entity": "me", "username": "me", "email": "", "flags": "{}"}
            return {"viewer": person | {"teams": {"edges": []}}}
        return self.answer_of_artifact(asked, values)

    def answer_of_artifact(self, asked: set[str], values: dict[str, Any]) -> dict[str, Any]:
        """The data for a question about an artifact: is there one, here is one, its manifest, its files, that is all."""
        if "ArtifactType" in asked:
            return {"project": {"artifact": None}}
        if "createArtifact" in asked:
            self.server.artifacts.append(values["input"])
            sequence = {"id": "Uw==", "latestArtifact": None}
            return {
                "createArtifact": {
                    "artifact": {"id": "QQ==", "state": "PENDING", "artifactSequence": sequence}
                }
            }
        if "createArtifactManifest" in asked:
            manifest = {"id": "TQ==", "file": self.file("manifest")}
            return {"createArtifactManifest": {"artifactManifest": manifest}}
        if "createArtifactFiles" in asked:
            names = [each["name"] for each in values["input"]["artifactFiles"]]
            nodes = [
                self.file(name) | {"artifact": {"id": "QQ=="}, "uploadMultipartUrls": None}
                for name in names
            ]
            return {"createArtifactFiles": {"files": {"edges": [{"node": node} for node in nodes]}}}
        if "commitArtifact" in asked:
            return {"commitArtifact": {"artifact": {"id": "QQ==", "digest": ""}}}
        return {}

    def file(self, name: str) -> dict[str, Any]:
        """A file of an artifact that is awaited."""
        address = {"uploadUrl": self.place(f"artifact/{name}"), "uploadHeaders": []}
        return {"id": "Rg==", "name": name, "displayName": name, "storagePath": name} | address
