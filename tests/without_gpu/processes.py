"""Run a module of this folder in a process of its own, and read what it prints."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parent.parent.parent
NEWEST = (2, 14)  # these recipes use private parts of torch, and must work on the newest releases


def run_module(name: str, *words: str) -> Any:
    """Return the JSON on the last line of the output.

    If the recipe does not work on an older release of torch, the test is skipped with the reason.
    """
    command = [sys.executable, "-m", f"tests.without_gpu.{name}", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1]
        if tuple(map(int, torch.__version__.split(".")[:2])) < NEWEST:
            pytest.skip(f"torch {torch.__version__} lacks what the recipe needs: {reason}")
        pytest.fail(f"{' '.join(command)}: {done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])
