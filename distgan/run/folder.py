"""The run folder: lock, status, rows and events. Only rank zero writes here.

config.toml  status.json  provenance.json  metrics.jsonl  events.jsonl  samples/  checkpoints/  generator.safetensors
"""

import fcntl
import json
import logging
import os
import platform
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from distgan.errors import RunFailed, UserError
from distgan.run.files import append_row, read_rows

FINISHED_STATES = ("done", "collapsed")  # states of a run that has nothing left to do


def write_atomically(path: Path, text: str) -> None:
    """Replace a small file in one move: a reader sees the old text or the new, never a part."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """A full disk, or one that went away, in one line: nothing is lost, the run goes on from its last checkpoint."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or error
        raise RunFailed(
            f"cannot write to {path}: {why}; mend that and type the same command to go on"
        ) from None


def check_writable(path: Path) -> None:
    """Raise UserError where no file can be made in that place, before time is spent on what it is to hold."""
    try:
        if path.exists():  # a pipe such as /dev/stdout among them
            path.open("a").close()
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; choose another place") from None


def write_json(path: Path, values: Any) -> None:
    """Write a file of numbers; raises UserError."""
    try:
        path.write_text(json.dumps(values, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None


class RunFolder:
    """A run folder held by this process; raises UserError where another run holds it or it cannot be written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            for folder in (path, self.samples, self.checkpoints):
                folder.mkdir(parents=True, exist_ok=True)
            self.lock = (path / ".lock").open("a+")
            self.status_lock = threading.Lock()  # a thread may report the loss of a rank
        except OSError as error:
            raise UserError(
                f"cannot write to the run folder {path}: {error.strerror}; choose another with --run-dir"
            ) from None
        self.take_lock()

    @property
    def samples(self) -> Path:
        """Sample grids."""
        return self.path / "samples"

    @property
    def checkpoints(self) -> Path:
        """One folder a checkpoint."""
        return self.path / "checkpoints"

    def take_lock(self) -> None:
        """Hold the folder for the life of this process; the kernel lets go of it even after SIGKILL."""
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.lock.seek(0)
            holder = self.lock.read().strip() or "another process"
            self.lock.close()
            raise UserError(
                f"the run folder {self.path} is being written by {holder}; wait for it, stop it, or choose another --run-dir"
            ) from None
        except OSError as error:  # as on Lustre without -o flock
            logging.getLogger(__name__).warning(
                "%s cannot be locked (%s): see to it that no other run writes there",
                self.path,
                error.strerror,
            )
        with suppress(
            OSError
        ):  # where there is no room for the holder's name, the lock holds all the same
            self.lock.truncate(0)
            self.lock.write(f"pid {os.getpid()} on {platform.node()}")
            self.lock.flush()

    def close(self) -> None:
        """Let the next run have it."""
        self.lock.close()

    def write_status(self, state: str, reason: str, *, images_seen: int, verdict: str = "") -> None:
        """status.json, the contract for scripts: running, done, preempted, collapsed or failed, and one line why."""
        status = {
            "state": state,
            "reason": reason,
            "verdict": verdict,
            "images_seen": images_seen,
            "pid": os.getpid(),
            "host": platform.node(),
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }
        with explained(self.path), self.status_lock:
            write_atomically(self.path / "status.json", json.dumps(status, indent=1) + "\n")

    def add_event(self, kind: str, sentence: str, *, images_seen: int, **figures: Any) -> None:
        """Append to events.jsonl what happened to the run: resume, preemption, warnings."""
        event = {
            "kind": kind,
            "images_seen": images_seen,
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }
        self.append("events.jsonl", event | {"what": sentence} | figures)

    def add_metrics(self, row: dict[str, Any]) -> None:
        """Append to metrics.jsonl one row of a tick."""
        self.append("metrics.jsonl", row)

    def append(self, name: str, row: dict[str, Any]) -> None:
        """One line, whole or not at all."""
        with explained(self.path):
            append_row(self.path / name, row)

    def truncate_after(self, images_seen: int) -> None:
        """Drop rows of steps that a resumed run takes again, so that each stands once."""
        for name in ("metrics.jsonl", "evaluations.jsonl"):
            path = self.path / name
            kept = [row for row in read_rows(path) if row["progress/images"] <= images_seen]
            if path.exists():
                write_atomically(path, "".join(json.dumps(row) + "\n" for row in kept))
