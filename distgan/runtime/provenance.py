"""What ran, where and on what."""

import platform
import resource
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from shards.errors import without_secrets


def hardware(device: torch.device) -> str:
    """The device in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    model = next(
        (
            line.split(":")[1].strip()
            for line in read_lines("/proc/cpuinfo")
            if line.startswith("model name")
        ),
        "",
    )
    threads = torch.get_num_threads()
    name = model or platform.processor() or platform.machine()
    return f"{name} ({threads} thread{'s' if threads > 1 else ''} a process)"


def peak_memory_gb(device: torch.device) -> float:
    """Most memory held so far, on the GPU or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def read_lines(path: str) -> list[str]:
    """Lines of a file, none where there is no such file."""
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def provenance(
    accelerator: Accelerator, command: list[str], environment: Mapping[str, str]
) -> dict[str, Any]:
    """What ran, where and on what, as plain values for provenance.json."""

    def installed(package: str) -> str | None:
        try:
            return version(package)
        except PackageNotFoundError:
            return None

    packages = (
        "distgan",
        "torch",
        "torchvision",
        "accelerate",
        "webdataset",
        "wandb",
        "numpy",
        "pydantic",
        "safetensors",
    )
    return {
        "command": [without_secrets(word) for word in command],
        "git_commit": git_commit(),
        "versions": {"python": platform.python_version()}
        | {package: installed(package) for package in packages},
        "world": {"processes": accelerator.num_processes, "device": str(accelerator.device.type)},
        "hardware": hardware(accelerator.device),
        "host": platform.node(),
        "slurm": {
            name: environment[name]
            for name in ("SLURM_JOB_ID", "SLURM_RESTART_COUNT")
            if name in environment
        },
    }


def git_commit() -> str | None:
    """The checkout's commit, with `-dirty` where files differ from it; None outside a checkout."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return described.stdout.strip() or None
