"""What the benchmarks have in common: running commands, timing by turns, describing the machine."""

import argparse
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import psutil
import torch

from distgan.runtime.provenance import hardware

TRAIN = Path(__file__).parents[2] / "distgan" / "train.py"
DISTGAN = (sys.executable, "-c", "from distgan.cli import app; app()")


def command_line(description: str | None) -> argparse.ArgumentParser:
    """Return a parser that shows a module's docstring as it is."""
    return argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


class Cost(NamedTuple):
    """What a command took."""

    gigabytes: float  # largest resident memory; at least that of the process that measures
    seconds: float
    cpu_seconds: float


def measure_command(*command: object) -> Cost:
    """Run a command, which must succeed, in a process of its own."""
    words = list(map(str, command))
    began = time.perf_counter()
    pid = os.posix_spawn(words[0], words, os.environ)
    _, status, usage = os.wait4(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0, f"{' '.join(words)} failed"
    return Cost(
        usage.ru_maxrss * 1024 / 1e9, time.perf_counter() - began, usage.ru_utime + usage.ru_stime
    )


def distgan(*words: object, quiet: bool = False) -> None:
    """Run one `distgan` command, which must succeed."""
    command = [*DISTGAN, *map(str, words)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL if quiet else None)


def train(*words: object, check: bool = True) -> None:
    """Train one run in a process of its own, or resume it."""
    subprocess.run([sys.executable, str(TRAIN), *map(str, words)], check=check)


@dataclass
class Rates:
    """Images per second, one value per repeat."""

    by_clock: list[float] = field(default_factory=list)
    by_cpu: list[float] = field(default_factory=list)  # per CPU second, with ended children


def cpu_seconds() -> float:
    """Return the CPU time of this process and of its children that have ended."""
    times = psutil.Process().cpu_times()
    return times.user + times.system + times.children_user + times.children_system


def measure_by_turns(works: dict[str, Callable[[], int]], *, repeats: int) -> dict[str, Rates]:
    """Call all functions in turn, `repeats` times after a warm-up; each returns a number of images.

    Whatever else the machine does slows all of them alike, so that their ratios stay comparable.
    """
    found = {name: Rates() for name in works}
    for repeat in range(repeats + 1):
        for name, work in works.items():
            began, began_cpu = time.perf_counter(), cpu_seconds()
            num_images = work()
            if repeat:
                found[name].by_clock.append(num_images / (time.perf_counter() - began))
                found[name].by_cpu.append(num_images / max(cpu_seconds() - began_cpu, 1e-3))
    return found


def machine() -> str:
    """Describe the machine, the versions and how busy the machine is."""
    names = ("torch", "torchvision", "webdataset", "pillow")
    packages = ", ".join(f"{name} {version(name)}" for name in names)
    busy = psutil.cpu_percent(2.0)
    return (
        f"{date.today()}, {psutil.cpu_count()}-core {hardware(torch.device('cpu'))}, "
        f"python {platform.python_version()}, {packages}; "
        f"other work took {busy:.0f} % of the cores just before"
    )
