"""The run folder as rank zero writes it; `files.py` reads it.

config.toml  status.json  provenance.json  metrics.jsonl  evaluations.jsonl  events.jsonl
samples/  checkpoints/  generator.safetensors  generator.json  losses.png  report.html
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
from distgan.run.checkpoints import remove_unfinished
from distgan.run.files import append_row, read_rows
from shards.files import make_folder, sync_path, write_atomic

FINISHED_STATES = ("done", "collapsed")  # nothing is left to train
ROW_FILES = ("metrics.jsonl", "evaluations.jsonl", "events.jsonl")


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Convert a failed write into a RunFailed that says how to continue."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or error
        raise RunFailed(
            f"cannot write to {path}: {why}; fix this and repeat the command to resume"
        ) from None


def check_writable(path: Path) -> None:
    """Raise UserError if no file can be written at this path."""
    try:
        if path.exists():  # also a pipe such as /dev/stdout
            path.open("a").close()
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; choose another path") from None


def write_json(path: Path, values: Any) -> None:
    """Write values as JSON; raises UserError."""
    try:
        path.write_text(json.dumps(values, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None


class RunFolder:
    """A run folder locked by this process.

    Raises UserError if another run holds the lock or the folder cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            for folder in (path, self.samples, self.checkpoints):
                make_folder(folder)
            self.lock = (path / ".lock").open("a+")
            self.status_lock = threading.Lock()  # a thread may report the loss of a rank
        except OSError as error:
            raise UserError(
                f"cannot write to the run folder {path}: {error.strerror}; "
                "choose another with --run-dir"
            ) from None
        self.take_lock()
        remove_unfinished(self.checkpoints)

    @property
    def samples(self) -> Path:
        """Folder of the sample grids."""
        return self.path / "samples"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints, each of which is a folder."""
        return self.path / "checkpoints"

    def take_lock(self) -> None:
        """Lock the folder. The kernel releases the lock when this process ends, even by SIGKILL."""
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.lock.seek(0)
            holder = self.lock.read().strip() or "another process"
            self.lock.close()
            raise UserError(
                f"the run folder {self.path} is being written by {holder}; "
                "wait for it, stop it, or choose another --run-dir"
            ) from None
        except OSError as error:  # for example Lustre without -o flock
            logging.getLogger(__name__).warning(
                "%s cannot be locked (%s): make sure that no other run writes there",
                self.path,
                error.strerror,
            )
        with suppress(OSError):  # a full disk does not affect the lock, only its holder's name
            self.lock.truncate(0)
            self.lock.write(f"pid {os.getpid()} on {platform.node()}")
            self.lock.flush()

    def close(self) -> None:
        """Release the lock."""
        self.lock.close()

    def write_status(
        self,
        state: str,
        reason: str,
        *,
        images_seen: int,
        verdict: str = "",
        seconds: float | None = None,
    ) -> None:
        """Write status.json, the contract for scripts.

        `state` is running, done, preempted, collapsed or failed, `reason` one line, `seconds` the
        time of training if the run has ended.
        """
        status = {
            "state": state,
            "reason": reason,
            "verdict": verdict,
            "images_seen": images_seen,
            "seconds": None if seconds is None else round(seconds, 3),
            "pid": os.getpid(),
            "host": platform.node(),
            "time": timestamp(),
        }
        with explained(self.path), self.status_lock:
            write_atomic(self.path / "status.json", json.dumps(status, indent=1) + "\n")

    def add_event(self, kind: str, sentence: str, *, images_seen: int, **figures: Any) -> None:
        """Append an event of the run to events.jsonl."""
        event = {"kind": kind, "images_seen": images_seen, "time": timestamp(), "what": sentence}
        self.append("events.jsonl", event | figures)

    def add_metrics(self, row: dict[str, Any]) -> None:
        """Append a row to metrics.jsonl."""
        self.append("metrics.jsonl", row)

    def append(self, name: str, row: dict[str, Any]) -> None:
        """Append a row to a .jsonl file."""
        with explained(self.path):
            append_row(self.path / name, row)

    def truncate_after(self, images_seen: int) -> None:
        """Drop the rows of steps that a resumed run repeats."""
        for name in ("metrics.jsonl", "evaluations.jsonl"):
            path = self.path / name
            if not path.exists():
                continue
            kept = [row for row in read_rows(path) if row.get("progress/images", 0) <= images_seen]
            write_atomic(path, "".join(json.dumps(row) + "\n" for row in kept))


class ClassFolder(RunFolder):
    """The run folder of one class, which passes its status on to the whole run."""

    def __init__(self, path: Path, *, whole: RunFolder, name: str, images_before: int) -> None:
        super().__init__(path)
        self.whole, self.name, self.images_before = whole, name, images_before

    def write_status(self, state: str, reason: str, *, images_seen: int, **more: Any) -> None:
        """Write status.json of both. When a class is done, the whole run is still `running`."""
        super().write_status(state, reason, images_seen=images_seen, **more)
        sentence, images = f"class {self.name}: {reason}", self.images_before + images_seen
        whole_state = "running" if state == "done" else state
        self.whole.write_status(whole_state, sentence, images_seen=images)
        if state != "running":
            kind = "class" if state == "done" else state
            self.whole.add_event(kind, sentence, images_seen=images)


def sync_rows(run_dir: Path) -> None:
    """Flush all rows to the disk, so that a saved checkpoint never lacks its earlier rows."""
    for name in ROW_FILES:
        if (run_dir / name).exists():
            sync_path(run_dir / name)
    sync_path(run_dir)  # which names the files


def timestamp() -> str:
    """Return the local time, such as 2026-01-31T12:00:00+0000."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
