"""Commands in child processes of one that has imported what they need, with the shim loaded.

python -m tests.faults.io.server COMMAND...

Reads one JSON object per line: {"command", "place", "kind", "number", "errno", "trace"}. Answers
with one line each: {"code", "operations", "said"}. The code is minus the signal if one ended the
child, and 99 after a traceback.
"""

import ctypes
import gc
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any

from distgan.errors import RunFailed, UserError
from shards.errors import ShardError

TIMEOUT_SEC = 60
CACHED = {"a" * 64: b"1" * 5000, "b" * 64: b"2" * 9000}  # files of a remote folder


def run_pack(place: Path) -> None:
    """Pack six images into two shards."""
    from shards.pack import pack

    pack(place / "images", place / "out", size=256, shard_size_mb=1, workers=1)


def run_checkpoints(place: Path) -> None:
    """Save three checkpoints with their rows, as a run does; resume after the newest."""
    import torch

    from distgan.run import checkpoints
    from distgan.run.folder import RunFolder, sync_rows

    folder = RunFolder(place / "run")
    checkpoints.remove_unfinished(folder.checkpoints)
    found = checkpoints.load_latest(folder.checkpoints, lambda _: None)
    start = found[1]["images_seen"] if found else 0

    def prune(images: int) -> None:
        newest = checkpoints.checkpoint_name(images)
        checkpoints.prune(folder.checkpoints, newest=newest, keep=1)

    folder.truncate_after(start)
    for images in range(start + 1000, 4000, 1000):
        folder.add_metrics({"progress/images": images})
        sync_rows(folder.path)
        checkpoints.save(
            folder.checkpoints,
            images_seen=images,
            tensors={"a": torch.full((1000,), float(images))},
            state={},
        )
        prune(images)
    prune(3000)
    folder.write_status("done", "saved", images_seen=3000)
    folder.close()


def run_training(place: Path) -> None:
    """Train for three steps with a checkpoint after each, or resume that."""
    from distgan.api import train
    from distgan.config.load import load_config
    from distgan.reporting import run_logger
    from shards.files import write_atomic
    from tests.worlds import SMALL

    # The file operations of the plot without its drawing, which takes longer than all else.
    run_logger.save_losses_plot = lambda rows, path, **_: write_atomic(path, b"a plot")
    settings = ["train.kimg=0.036", "checkpoint.every_kimg=0.012", "checkpoint.keep=1"]
    data = f"data.shards={str(place.parent / 'shards')!r}"
    train(load_config(None, [*SMALL, data, *settings]), run_dir=place / "run")


def run_report(place: Path) -> None:
    """Write the page of a finished run."""
    from distgan.reporting.page import write_report
    from distgan.reporting.run_record import read_record

    record = read_record(place / "run")
    write_report(record, place / "report.html", search_nearest=False)


def run_export(place: Path) -> None:
    """Export a generator."""
    from distgan.commands.export import export

    source = place / "run" / "generator.safetensors"
    export(source, place / "out", format="safetensors", license="mit")


def run_cache(place: Path) -> None:
    """Open two files of a remote folder, whose bytes come from memory."""
    from shards.remote.cache import NodeCache

    cache = NodeCache(place / "cache", max_bytes=20_000)
    with ExitStack() as in_use:  # so that a full disk evicts none of them
        for name, content in CACHED.items():
            file = cache.open(
                name,
                num_bytes=len(content),
                fetch=lambda path, data=content: path.write_bytes(data),
            )
            in_use.enter_context(file)
            assert file.read() == content, "the cache has other bytes"


COMMANDS: dict[str, Callable[[Path], None]] = {
    "pack": run_pack,
    "checkpoint": run_checkpoints,
    "train": run_training,
    "resume": run_training,
    "report": run_report,
    "export": run_export,
    "cache": run_cache,
}


HEAVY = ("checkpoint", "train", "resume", "report", "export")  # these need PyTorch


def run_child(job: dict[str, Any], shim: ctypes.CDLL, answer: int) -> int:
    """Run the command of a job under its fault; return the exit code, 99 after a traceback."""
    trace = os.open(job["trace"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC) if job["trace"] else -1
    code, said = 0, ""
    place = Path(job["place"])
    shim.arm(os.fsencode(place), job["kind"], ctypes.c_long(job["number"]), job["errno"], trace)
    try:
        COMMANDS[job["command"]](place)
    except (UserError, ShardError, RunFailed, OSError) as error:
        code, said = 2, str(error)
    except BaseException:
        code, said = 99, traceback.format_exc()
    operations = shim.count()
    os.write(answer, json.dumps({"operations": operations, "said": said}).encode())
    return code


def run_job(job: dict[str, Any], shim: ctypes.CDLL) -> dict[str, Any]:
    """Run a job in a child and return how it ended."""
    readable, writable = os.pipe()
    child = os.fork()
    if not child:
        os.close(readable)
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nowhere, stream)
        os._exit(run_child(job, shim, writable))
    os.close(writable)
    deadline = time.monotonic() + TIMEOUT_SEC
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.002)
    with open(readable, "rb") as pipe:
        text = pipe.read()
    answer = json.loads(text) if text else {"operations": 0, "said": ""}
    return answer | {"code": os.waitstatus_to_exitcode(ended[1])}


def main() -> None:
    """Serve until standard input is closed."""
    if set(sys.argv[1:]) & set(HEAVY):
        from tests.worlds import PRELOADED

        for module in (*PRELOADED, "distgan.api", "distgan.commands.export"):
            import_module(module)
    gc.freeze()  # what was imported never becomes garbage
    shim = ctypes.CDLL(os.environ["LD_PRELOAD"])
    shim.count.restype = ctypes.c_long
    for line in sys.stdin:
        print(json.dumps(run_job(json.loads(line), shim)), flush=True)


if __name__ == "__main__":
    main()
