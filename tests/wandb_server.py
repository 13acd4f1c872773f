"""A stand-in for the server of Weights & Biases, on loopback unless it is given an address.

It answers what wandb 0.31 sends during an online run: the start, also of a run that is resumed,
rows and summary, files, an artifact, alerts, and the end. It also stores workspaces.
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
    """A server that keeps what one run sends; `die` closes all connections at once."""

    daemon_threads = True

    def __init__(
        self,
        address: str = "127.0.0.1",
        *,
        dies_when: Callable[["WandbServer"], bool] = lambda server: False,
    ) -> None:
        super().__init__((address, 0), Handler)
        self.url = f"http://{address}:{self.server_port}"
        self.dies_when, self.is_dead = dies_when, threading.Event()
        self.is_away = False  # then it closes every connection
        self.run: dict[str, Any] = {}  # values from the start of the run
        self.lines: dict[str, dict[int, str]] = {}  # file -> number of a line -> the line
        self.files: dict[str, bytes] = {}
        self.artifacts: list[dict[str, Any]] = []
        self.alerts: list[dict[str, Any]] = []
        self.views: list[dict[str, Any]] = []  # saved workspaces
        self.exit_code: int | None = None
        self.connections: list[socket.socket] = []
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def history(self) -> list[dict[str, Any]]:
        """The rows of the run."""
        lines = self.lines.get("wandb-history.jsonl", {})
        return [json.loads(lines[number]) for number in sorted(lines)]

    def last_line(self, file: str) -> tuple[int, str]:
        """Return the number of lines of a file, and the last one as a list in JSON."""
        lines = self.lines.get(file, {})
        return (max(lines) + 1, json.dumps([lines[max(lines)]])) if lines else (0, "[]")

    @property
    def summary(self) -> dict[str, Any]:
        """The summary of the run."""
        lines = self.lines.get("wandb-summary.json", {})
        return json.loads(lines[max(lines)]) if lines else {}

    def verify_request(self, *_: object) -> bool:
        """Answer unless it is away."""
        return not self.is_away

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a connection, and remember it so that it can be closed."""
        connection, address = super().get_request()
        self.connections.append(connection)
        return connection, address

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore connections that break."""

    def die(self) -> None:
        """Close all connections and accept no more."""
        self.is_dead.set()
        self.shutdown()
        self.server_close()
        self.hang_up()

    def hang_up(self) -> None:
        """Close all connections."""
        for connection in self.connections:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:  # closed already
                continue


class Handler(BaseHTTPRequestHandler):
    """Requests of one connection."""

    protocol_version = "HTTP/1.1"
    server: WandbServer

    def log_message(self, *_: Any) -> None:
        """Log nothing."""

    def body(self) -> bytes:
        """Return the body of a request, chunked or compressed or neither."""
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
        """Send JSON, or let the server die if it is time."""
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
        """Answer with an empty object."""
        self.reply({})

    def do_PUT(self) -> None:
        """Store a file that is uploaded to the address given for it."""
        self.server.files[unquote(self.path).removeprefix("/put/")] = self.body()
        self.reply({})

    def do_POST(self) -> None:
        """Answer a GraphQL query, or store rows of the run."""
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
        """Store rows, summary and exit code."""
        for name, part in (sent.get("files") or {}).items():
            lines = self.server.lines.setdefault(name, {})
            lines |= enumerate(part["content"], start=part["offset"])
        if sent.get("complete"):
            self.server.exit_code = sent.get("exitcode")

    def place(self, name: str) -> str:
        """Return the address to which a file is to be uploaded."""
        return f"http://{self.headers['Host']}/put/{name}"

    def answer(self, query: str, values: dict[str, Any]) -> dict[str, Any]:
        """Return the data for a query; nothing if the run does not need an answer."""
        asked = set(re.findall(r"\w+", query))
        if "upsertBucket" in asked:
            self.server.run |= {name: value for name, value in values.items() if value is not None}
            bucket = {
                "id": "Qg==",
                "name": values["name"],
                "displayName": values.get("displayName"),
                "description": "",
                "config": values.get("config"),
                "sweepName": None,
                "historyLineCount": self.server.last_line("wandb-history.jsonl")[0],
                "project": project_of(values),
            }
            return {"upsertBucket": {"inserted": True, "bucket": bucket}}
        if "historyTail" in asked:
            return {"model": project_of(values) | {"bucket": self.resumed()}}
        if "createRunFiles" in asked:
            files = [{"name": name, "uploadUrl": self.place(name)} for name in values["files"]]
            return {"createRunFiles": {"runID": "Qg==", "uploadHeaders": [], "files": files}}
        if "notifyScriptableRunAlert" in asked:
            self.server.alerts.append(values)
            return {"notifyScriptableRunAlert": {"success": True}}
        if "upsertView" in asked:
            self.server.views.append(values)
            return {"upsertView": {"view": {"id": "Vg==", "name": values["name"]}}}
        if "serverInfo" in asked:
            return {
                "serverInfo": {"features": [], "cliVersionInfo": {}, "latestLocalVersionInfo": None}
            }
        if "viewer" in asked:
            person = {"id": "VQ==", "entity": "me", "username": "me", "email": "", "flags": "{}"}
            return {"viewer": person | {"teams": {"edges": []}}}
        return self.answer_of_artifact(asked, values)

    def resumed(self) -> dict[str, Any] | None:
        """Return what a run that is resumed asks for; None if it is new."""
        run = self.server.run
        if not run:
            return None
        history, history_tail = self.server.last_line("wandb-history.jsonl")
        events, events_tail = self.server.last_line("wandb-events.jsonl")
        return {
            "id": "Qg==",
            "name": run["name"],
            "displayName": run.get("displayName"),
            "summaryMetrics": json.dumps(self.server.summary),
            "logLineCount": self.server.last_line("output.log")[0],
            "historyLineCount": history,
            "historyTail": history_tail,
            "eventsLineCount": events,
            "eventsTail": events_tail,
            "config": run.get("config"),
            "tags": [],
            "notes": "",
            "wandbConfig": json.dumps({"t": 1}),
        }

    def answer_of_artifact(self, asked: set[str], values: dict[str, Any]) -> dict[str, Any]:
        """Return the data for a query about an artifact, in the order in which they come."""
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
        """Return the address of a file of an artifact."""
        address = {"uploadUrl": self.place(f"artifact/{name}"), "uploadHeaders": []}
        return {"id": "Rg==", "name": name, "displayName": name, "storagePath": name} | address


def project_of(values: dict[str, Any]) -> dict[str, Any]:
    """Return the project that a query names."""
    return {"id": "UA==", "name": values["project"], "entity": {"id": "RQ==", "name": "me"}}
