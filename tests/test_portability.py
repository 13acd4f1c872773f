"""Packing and training without what only Linux offers: macOS lacks all of it."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from PIL import Image

from tests.worlds import SMALL

ROOT = Path(__file__).parent.parent
# Imported by every Python process that has its folder in PYTHONPATH, before anything else.
WITHOUT_LINUX = """
import ctypes, mmap, os

for module, names in {
    os: ("sched_getaffinity", "posix_fadvise", "posix_fallocate", "sendfile", "copy_file_range"),
    mmap: ("MADV_RANDOM", "MADV_WILLNEED", "MADV_SEQUENTIAL", "MADV_HUGEPAGE"),
}.items():
    for name in names:
        if hasattr(module, name):
            delattr(module, name)

def no_fork():
    raise OSError("fork was taken away")

os.fork = no_fork
find = ctypes.CDLL.__getattr__

def without_linux(library, name):
    if name in ("prctl", "mallopt"):
        raise AttributeError(name)
    return find(library, name)

ctypes.CDLL.__getattr__ = without_linux
"""
PACK = """
import os
from shards.pack import pack

if __name__ == "__main__":
    assert not hasattr(os, "sched_getaffinity"), "nothing was taken away"
    pack("images", "shards", size=32, workers=2)
"""
# A launcher of our own, since that of Accelerate takes seconds to start.
LAUNCH = """
import os, subprocess, sys

os.environ["ACCELERATE_MIXED_PRECISION"] = "no"
subprocess.run([sys.executable, "-m", "distgan.train", *sys.argv[1:]])
"""


def test_pack_and_train_without_linux_calls(tmp_path: Path) -> None:
    """Packing in two processes, then a run that is saved when its launcher dies."""
    (tmp_path / "sitecustomize.py").write_text(WITHOUT_LINUX)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE_", "SLURM_"))}
    environment = kept | {"PYTHONPATH": f"{tmp_path}:{ROOT}", "PYTHONUNBUFFERED": "1"}
    (tmp_path / "images").mkdir()
    for grey in range(12):
        Image.new("L", (32, 32), 20 * grey).save(tmp_path / "images" / f"{grey}.png")
    (tmp_path / "pack_images.py").write_text(PACK)
    subprocess.run([sys.executable, "pack_images.py"], cwd=tmp_path, env=environment, check=True)
    run = tmp_path / "run"
    words = [
        "--preset",
        "classic",
        "--data",
        "shards",
        "--run-dir",
        str(run),
        *SMALL,
        "train.kimg=600",
    ]
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCH, *words],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    metrics = run / "metrics.jsonl"
    began = time.monotonic()
    while launcher.poll() is None and not (metrics.exists() and metrics.read_text()):
        assert time.monotonic() - began < 120, "the run does not start"
        time.sleep(0.02)
    launcher.kill()
    output, _ = launcher.communicate(timeout=60)  # ends with the trainer, which holds the pipe
    assert json.loads((run / "status.json").read_text())["state"] == "preempted", output.decode()
