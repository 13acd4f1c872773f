"""The command, versions, processes and hardware of a run."""

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

PACKAGES = (
    "distgan", "torch", "torchvision", "accelerate", "webdataset", "wandb", "numpy", "pydantic",
    "safetensors",
)  # fmt: skip


def hardware(device: torch.device) -> str:
    """Return the name of the GPU, or of the CPU with the number of threads per process."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    name = cpu_model() or platform.processor() or platform.machine()
    return f"{name} ({threads} thread{'s' if threads > 1 else ''} a process)"


def cpu_model() -> str:
    """Return the CPU's model name as Linux knows it, or an empty string."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    names = (line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    return next(names, "")


def peak_memory_gb(device: torch.device) -> float:
    """Return the peak memory of the GPU, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def provenance(
    accelerator: Accelerator,
    command: list[str],
    environment: Mapping[str, str],
    origin: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return the contents of provenance.json.

    `origin` says which file the weights of a new run were read from.
    """
    slurm = ("SLURM_JOB_ID", "SLURM_RESTART_COUNT")
    return {
        "command": [without_secrets(word) for word in command],
        "git_commit": git_commit(),
        "versions": {"python": platform.python_version()}
        | {package: installed_version(package) for package in PACKAGES},
        "world": {
            "processes": accelerator.num_processes,
            "nodes": count_nodes(accelerator.num_processes, environment),
            "device": str(accelerator.device.type),
        },
        "hardware": hardware(accelerator.device),
        "host": platform.node(),
        "slurm": {name: environment[name] for name in slurm if name in environment},
        "initial_weights": dict(origin or {}),
    }


def count_nodes(num_processes: int, environment: Mapping[str, str]) -> int:
    """Return the number of nodes, each of which has as many processes as this one."""
    return num_processes // int(environment.get("LOCAL_WORLD_SIZE", num_processes))


def installed_version(package: str) -> str | None:
    """Return the version of an installed package."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def git_commit() -> str | None:
    """Return the commit of this checkout, with `-dirty` if files differ; None outside of one."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return described.stdout.strip() or None
