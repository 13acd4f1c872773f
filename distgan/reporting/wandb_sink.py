"""Weights & Biases on rank zero, in a thread of its own: a slow, dead or absent server never holds up the training.

Rows and pictures go into a queue; the thread starts the run, sends them, and closes it within a stated time. Whatever
was sent, and what could not be, lies in the run folder's `wandb/`, from where `wandb sync` takes it.
"""

import netrc
import os
import queue
import secrets
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from shards.errors import without_secrets

INIT_TIMEOUT_SEC = 20
FINISH_TIMEOUT_SEC = 30
CONNECT_TIMEOUT_SEC = 3.0


def new_run_id() -> str:
    """An id for a new W&B run; a resumed run uses the one in its checkpoint."""
    return secrets.token_hex(4)


def default_group(environment: Mapping[str, str]) -> str | None:
    """The group that the environment names, or the array of jobs that this one is of."""
    array = environment.get("SLURM_ARRAY_JOB_ID")
    return environment.get("WANDB_RUN_GROUP") or (f"array-{array}" if array else None)


class WandbSink:
    """A W&B run that logs in the background; `complain` is told in one line what did not work."""

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
        complain: Callable[[str], None],
    ) -> None:
        self.mode, self.complain, self.run_id, self.has_failed = mode, complain, run_id, False
        self.settings: dict[str, Any] = {
            "project": project,
            "group": group,
            "id": run_id,
            "name": name,
            "dir": str(folder),
            "config": config,
            "tags": tags,
        }
        self.queue: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self.work, name="wandb", daemon=True)
        if mode != "disabled":
            self.thread.start()

    def log(self, row: dict[str, Any], images: dict[str, tuple[Path, str]] | None = None) -> None:
        """Queue one row, and picture files with captions."""
        if self.mode != "disabled":
            self.queue.put({"row": row, "images": images or {}})

    def summarize(self, values: dict[str, Any]) -> None:
        """Queue values that stand for the whole run."""
        if self.mode != "disabled":
            self.queue.put({"summary": values})

    def alert(self, title: str, text: str) -> None:
        """Queue a message to whoever watches the run."""
        if self.mode != "disabled":
            self.queue.put({"alert": (title, text)})

    def keep_generator(self, folder: Path, *, metadata: dict[str, Any]) -> None:
        """Queue the generator's files of a run folder as an artifact, with what generator.json tells of it."""
        if self.mode != "disabled":
            self.queue.put({"generator": folder, "metadata": metadata})

    def close(self, *, has_failed: bool = False) -> None:
        """Send what is queued; gives up, with a word, where that takes too long."""
        if self.mode == "disabled":
            return
        self.has_failed = has_failed
        self.queue.put(None)
        self.thread.join(INIT_TIMEOUT_SEC * 2 + FINISH_TIMEOUT_SEC)
        if self.thread.is_alive():
            self.complain(f"W&B did not finish in time; {self.to_sync()}")

    def to_sync(self) -> str:
        """What to type where something is missing on the server."""
        return f"what is missing there can be sent with: wandb sync {self.settings['dir']}/wandb/*run-*-{self.run_id}"

    def work(self) -> None:
        """The thread: start, log, finish; any failure ends the logging and nothing else."""
        try:
            run, wandb = self.start()
            try:
                while (item := self.queue.get()) is not None:
                    self.send(run, wandb, item)
            finally:
                run.finish(exit_code=int(self.has_failed))
        except Exception as error:  # a logging service must never end a training
            self.complain(
                f"W&B stopped: {one_line(error)}; the run goes on, its rows are in metrics.jsonl; {self.to_sync()}"
            )

    def send(self, run: Any, wandb: Any, item: dict[str, Any]) -> None:
        """One item of the queue."""
        if "alert" in item:
            run.alert(title=item["alert"][0], text=item["alert"][1])
        elif "summary" in item:
            run.summary.update(item["summary"])
        elif "generator" in item:
            with environment_variable(
                "WANDB_DATA_DIR", f"{self.settings['dir']}/wandb"
            ):  # else a copy goes to the home
                artifact = wandb.Artifact(
                    f"generator-{self.run_id}", type="model", metadata=item["metadata"]
                )
                for path in item["generator"].glob("generator.*"):
                    artifact.add_file(str(path))
                run.log_artifact(artifact)
        else:
            images = item["images"].items()
            run.log(
                item["row"]
                | {key: wandb.Image(str(path), caption=caption) for key, (path, caption) in images}
            )

    def start(self) -> tuple[Any, Any]:
        """(run, wandb): online where asked for and possible, else offline."""
        os.environ.setdefault("WANDB_INIT_TIMEOUT", str(INIT_TIMEOUT_SEC))
        os.environ.setdefault("WANDB_FINISH_TIMEOUT", str(FINISH_TIMEOUT_SEC))
        os.environ.setdefault("WANDB_FINISH_TIMEOUT_RAISES", "true")
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        # W&B notes the command line, which may hold the password or token of a URL.
        if any(without_secrets(word) != word for word in sys.argv):
            self.settings["settings"] = wandb.Settings(x_disable_meta=True)
        mode: Any = self.mode
        if mode == "auto" and os.environ.get("WANDB_MODE") in ("online", "offline", "disabled"):
            mode = os.environ["WANDB_MODE"]
        if mode in ("auto", "online"):
            obstacle = why_offline(wandb)
            if obstacle and self.mode == "online":
                self.complain(f"W&B is offline: {obstacle}")
            mode = "offline" if obstacle else "online"
        try:
            run = wandb.init(mode=mode, resume="allow", **self.settings)
        except Exception as error:  # of many kinds: no answer, refused key, garbage
            if mode != "online":
                raise
            self.complain(f"W&B is offline: {one_line(error)}")
            wandb.teardown()  # or the id is held to be in use
            run = wandb.init(mode="offline", **self.settings)
        run.define_metric("progress/kimg")
        run.define_metric("*", step_metric="progress/kimg")
        return run, wandb


@contextmanager
def environment_variable(name: str, value: str) -> Iterator[None]:
    """Set it, unless the user has; another run of this process sets its own."""
    is_own = name not in os.environ
    if is_own:
        os.environ[name] = value
    try:
        yield
    finally:
        if is_own:
            del os.environ[name]


def why_offline(wandb: Any) -> str | None:
    """What stands in the way of an online run, asked without prompting; None where nothing does."""
    address = urlsplit(wandb.setup().settings.base_url)
    host = address.hostname or ""
    if not (os.environ.get("WANDB_API_KEY") or has_netrc_key(host)):
        return "no API key; type: wandb login"
    try:
        port = address.port or (443 if address.scheme == "https" else 80)
        socket.create_connection((host, port), timeout=CONNECT_TIMEOUT_SEC).close()
    except OSError as error:
        return f"{host} does not answer ({one_line(error)})"
    return None


def has_netrc_key(host: str) -> bool:
    """Whether `wandb login` has left a key for this host in the user's netrc file."""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def one_line(error: Exception) -> str:
    """The first line of an error's text, cut to a readable length."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
