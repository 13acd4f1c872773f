"""Weights & Biases, in a thread of its own, so that a slow or dead server never delays training.

Everything to be logged is put into a queue. The thread starts the W&B run, sends what is queued,
and ends within a bounded time. The run folder's `wandb/` keeps everything, also what could not be
sent, so that `wandb sync` can send it later.
"""

import netrc
import os
import queue
import secrets
import shlex
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from distgan.text import first_line
from shards.errors import without_secrets

INIT_TIMEOUT_SEC = 20
FINISH_TIMEOUT_SEC = 30
CONNECT_TIMEOUT_SEC = 3.0

Task = Callable[[Any, Any], None]
"""A call that logs; its arguments are the W&B run and the module wandb."""


def new_run_id() -> str:
    """Return an id for a new W&B run. A resumed run keeps the id in its checkpoint."""
    return secrets.token_hex(4)


@contextmanager
def grouped_in_wandb(name: str) -> Iterator[None]:
    """Show the runs of the block as one group in W&B, unless the environment names another."""
    variable = "WANDB_RUN_GROUP"
    is_chosen = variable in os.environ
    os.environ.setdefault(variable, name)
    try:
        yield
    finally:
        if not is_chosen:
            del os.environ[variable]


def default_group(environment: Mapping[str, str]) -> str | None:
    """Return the group that the environment names, or else the SLURM array of this job."""
    array = environment.get("SLURM_ARRAY_JOB_ID")
    return environment.get("WANDB_RUN_GROUP") or (f"array-{array}" if array else None)


class WandbSink:
    """A W&B run that logs in the background; problems are reported to `warn`, one line each."""

    def __init__(
        self,
        mode: str,
        *,
        project: str,
        group: str | None,
        run_id: str,
        name: str,
        folder: Path,
        config: dict[str, Any],
        tags: list[str],
        warn: Callable[[str], None],
    ) -> None:
        self.mode, self.warn, self.run_id, self.has_failed = mode, warn, run_id, False
        self.folder = folder
        self.settings: dict[str, Any] = {
            "project": project,
            "group": group,
            "id": run_id,
            "name": name,
            "dir": str(folder),
            "config": config,
            "tags": tags,
        }
        self.queue: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self.work, name="wandb", daemon=True)
        if mode != "disabled":
            self.thread.start()

    def log(self, row: dict[str, Any], images: dict[str, tuple[Path, str]] | None = None) -> None:
        """Log a row, and image files with captions."""

        def task(run: Any, wandb: Any) -> None:
            pictures = {
                name: wandb.Image(str(path), caption=caption)
                for name, (path, caption) in (images or {}).items()
            }
            run.log(row | pictures)

        self.put(task)

    def summarize(self, values: dict[str, Any]) -> None:
        """Set values that describe the whole run."""
        self.put(lambda run, wandb: run.summary.update(values))

    def alert(self, title: str, text: str) -> None:
        """Send an alert to the people who watch the run."""
        self.put(lambda run, wandb: run.alert(title, text, level=wandb.AlertLevel.WARN))

    def keep_generator(self, folder: Path, *, metadata: dict[str, Any]) -> None:
        """Upload the generator's files in a run folder as an artifact."""

        def task(run: Any, wandb: Any) -> None:
            # Without this variable W&B copies the files to the user's home.
            with environment_variable("WANDB_DATA_DIR", str(self.folder / "wandb")):
                name = f"generator-{self.run_id}"
                artifact = wandb.Artifact(name, type="model", metadata=metadata)
                for path in folder.glob("generator.*"):
                    artifact.add_file(str(path))
                run.log_artifact(artifact)

        self.put(task)

    def close(self, *, has_failed: bool = False) -> None:
        """Send all queued data; give up with a warning if that takes too long."""
        self.has_failed = has_failed
        self.queue.put(None)
        if not self.thread.is_alive():
            return
        self.thread.join(INIT_TIMEOUT_SEC * 2 + FINISH_TIMEOUT_SEC)
        if self.thread.is_alive():
            self.warn(f"W&B did not finish in time; {self.sync_hint}")

    def put(self, task: Task) -> None:
        """Queue a task for the thread."""
        if self.mode != "disabled":
            self.queue.put(task)

    @property
    def sync_hint(self) -> str:
        """Advice on sending the data that the server has not received."""
        folder = shlex.quote(str(self.folder))
        return f"send the rest with: wandb sync {folder}/wandb/*run-*-{self.run_id}"

    def work(self) -> None:
        """Start the run, log and finish. A failure ends only the logging."""
        try:
            run, wandb = self.start()
            try:
                while (task := self.queue.get()) is not None:
                    task(run, wandb)
            finally:
                run.finish(exit_code=int(self.has_failed))
        except Exception as error:  # a logging service must never end a training
            self.warn(
                f"W&B logging stopped: {first_line(error)}; training continues, and "
                f"metrics.jsonl has all rows; {self.sync_hint}"
            )

    def start(self) -> tuple[Any, Any]:
        """Return (run, wandb); the run is offline if it cannot be online."""
        os.environ.setdefault("WANDB_INIT_TIMEOUT", str(INIT_TIMEOUT_SEC))
        os.environ.setdefault("WANDB_FINISH_TIMEOUT", str(FINISH_TIMEOUT_SEC))
        os.environ.setdefault("WANDB_FINISH_TIMEOUT_RAISES", "true")
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        # W&B records the command line, which may have the password or token of a URL.
        if any(without_secrets(word) != word for word in sys.argv):
            self.settings["settings"] = wandb.Settings(x_disable_meta=True)
        run = self.init(wandb, self.choose_mode(wandb))
        run.define_metric("progress/kimg")
        run.define_metric("*", step_metric="progress/kimg")
        return run, wandb

    def choose_mode(self, wandb: Any) -> Any:
        """Return the mode to try; warns if an online run was asked for and is not possible."""
        mode = self.mode
        if mode == "auto" and os.environ.get("WANDB_MODE") in ("online", "offline", "disabled"):
            mode = os.environ["WANDB_MODE"]
        if mode not in ("auto", "online"):
            return mode
        reason = offline_reason(wandb)
        if reason and self.mode == "online":
            self.warn(f"W&B is offline: {reason}")
        return "offline" if reason else "online"

    def init(self, wandb: Any, mode: Any) -> Any:
        """Return a new or resumed W&B run; offline if the server refuses it."""
        try:
            return wandb.init(mode=mode, resume="allow", **self.settings)
        except Exception as error:  # no answer, a refused key, garbage
            if mode != "online":
                raise
            self.warn(f"W&B is offline: {first_line(error)}")
            wandb.teardown()  # otherwise the id counts as being in use
            return wandb.init(mode="offline", **self.settings)


@contextmanager
def environment_variable(name: str, value: str) -> Iterator[None]:
    """Set a variable that the user has not set, and unset it afterwards."""
    is_own = name not in os.environ
    if is_own:
        os.environ[name] = value
    try:
        yield
    finally:
        if is_own:
            del os.environ[name]


def offline_reason(wandb: Any) -> str | None:
    """Return why a run cannot be online, found without prompting; None if it can."""
    address = urlsplit(wandb.setup().settings.base_url)
    host = address.hostname or ""
    if not (os.environ.get("WANDB_API_KEY") or has_netrc_key(host)):
        return "no API key; type: wandb login"
    try:
        port = address.port or (443 if address.scheme == "https" else 80)
        socket.create_connection((host, port), timeout=CONNECT_TIMEOUT_SEC).close()
    except OSError as error:
        return f"{host} does not answer ({first_line(error)})"
    return None


def has_netrc_key(host: str) -> bool:
    """Return whether `wandb login` has stored a key for this host in the user's netrc file."""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
