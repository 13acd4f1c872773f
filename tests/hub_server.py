"""A stand-in for the Hugging Face Hub on loopback: creates repositories, takes and gives files."""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0" * 40


class HubServer(ThreadingHTTPServer):
    """A server that keeps what is uploaded; `token`, if given, is the only one it accepts."""

    daemon_threads = True

    def __init__(self, token: str = "") -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.token = token
        self.repos: dict[str, dict[str, Any]] = {}  # models/USER/NAME -> what it was created with
        self.files: dict[str, dict[str, bytes]] = {}  # models/USER/NAME -> {path: content}
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def url(self) -> str:
        """The server's address."""
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    """Requests of one connection."""

    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, *_: Any) -> None:
        """Log nothing."""

    def reply(self, answer: Any, status: int = 200, **headers: str) -> None:
        """Send bytes, or anything else as JSON."""
        content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def do_POST(self) -> None:
        """Create a repository, or store files."""
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.server.token and self.headers.get("Authorization") != f"Bearer {self.server.token}":
            return self.reply({"error": "Invalid user token."}, 401)
        words = urlsplit(self.path).path.strip("/").split("/")[1:]
        if words[0] == "repos":
            return self.create(json.loads(content))
        if words[0] == "validate-yaml":
            return self.reply({"errors": [], "warnings": []})
        repo = "/".join(words[:3])
        if words[3] == "preupload":
            paths = [file["path"] for file in json.loads(content)["files"]]
            files = [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in paths]
            return self.reply({"files": files})
        assert words[3] == "commit", self.path
        for line in map(json.loads, content.splitlines()):
            if line["key"] == "file":
                value = line["value"]
                self.server.files[repo][value["path"]] = base64.b64decode(value["content"])
        commit = f"{self.server.url}/{repo.removeprefix('models/')}/commit/{COMMIT}"
        return self.reply({"commitUrl": commit, "commitOid": COMMIT})

    def create(self, asked: dict[str, Any]) -> None:
        """Create a repository of the user `me`, unless it exists."""
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        kind = asked.get("type") or "model"
        repo = f"{kind}s/{name}"
        status = 409 if repo in self.server.repos else 200
        self.server.repos.setdefault(repo, asked)
        self.server.files.setdefault(repo, {})
        prefix = "spaces/" if kind == "space" else ""
        self.reply({"url": f"{self.server.url}/{prefix}{name}"}, status)

    def do_GET(self) -> None:
        """Describe a repository, or send one of its files."""
        words = unquote(urlsplit(self.path).path).strip("/").split("/")
        if words[0] == "api":
            repo = "/".join(words[1:4])
            if repo not in self.server.files:
                return self.reply(
                    {"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound"
                )
            files = self.server.files[repo]
            if words[4:5] == ["tree"]:
                tree = [
                    {
                        "type": "file",
                        "path": path,
                        "size": len(content),
                        "oid": hashlib.sha1(content).hexdigest(),
                    }
                    for path, content in files.items()
                ]
                return self.reply(tree)
            siblings = [{"rfilename": path} for path in files]
            name, visibility = "/".join(words[2:4]), self.server.repos[repo].get("visibility")
            answer = {"id": name, "sha": COMMIT, "siblings": siblings}
            return self.reply(answer | {"private": visibility == "private"})
        content = self.server.files[f"models/{words[0]}/{words[1]}"]["/".join(words[4:])]
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        return self.reply(content, ETag=etag, X_Repo_Commit=COMMIT)

    do_HEAD = do_GET
