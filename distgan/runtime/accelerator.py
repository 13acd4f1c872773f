"""The process: Accelerator, world-size guard, precision, threads, death with the launcher, provenance."""

import ctypes
import os
import platform
import signal
import sys
from datetime import timedelta
from pathlib import Path

import psutil
import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    InitProcessGroupKwargs,
    parse_flag_from_env,
)

from distgan.config.schema import Train
from distgan.errors import UserError
from distgan.runtime.distributed import launched_world_size
from shards.files import usable_cores

COLLECTIVE_TIMEOUT = timedelta(seconds=120)


ONE_BUCKET_MB = (
    4096  # above any network here, so that DDP reduces each network's gradients in one piece
)


def build_accelerator(train: Train) -> tuple[Accelerator, str]:
    """The Accelerator, and a phrase that says which precision runs and why; raises UserError for a wrong world."""
    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or (
        not torch.cuda.is_available()
        and (launched_world_size() > 1 or not torch.backends.mps.is_available())
    )
    precision, reason = choose_precision(
        train.precision, os.environ.get("ACCELERATE_MIXED_PRECISION", "no"), on_cpu=on_cpu
    )
    if train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = not train.deterministic
    try:
        accelerator = Accelerator(
            # A launcher that was told of GPUs starts its processes without saying that there are none.
            cpu=on_cpu,
            mixed_precision=precision,
            kwargs_handlers=[
                DistributedDataParallelKwargs(
                    bucket_cap_mb=ONE_BUCKET_MB, gradient_as_bucket_view=True
                ),
                InitProcessGroupKwargs(timeout=COLLECTIVE_TIMEOUT),
            ],
        )
    except (RuntimeError, ValueError) as error:
        if "address already in use" in str(error).lower() or "EADDRINUSE" in str(error):
            raise UserError(
                f"the launcher's port is taken; add --main_process_port 0 ({error})"
            ) from None
        raise
    check_world(accelerator.num_processes)
    if accelerator.device.type == "cpu":
        torch.set_num_threads(train.cpu_threads or default_num_threads())
        keep_freed_memory()
    return accelerator, reason


def choose_precision(setting: str, launcher: str, *, on_cpu: bool) -> tuple[str, str]:
    """(`no`, `bf16` or `fp16`; why) from train.precision and the launcher's word."""
    if setting == "launcher":
        if launcher == "fp16" and on_cpu:
            raise UserError(
                "the launcher asks for fp16, which a CPU does not train in; use --mixed_precision bf16 or no"
            )
        return launcher, "the launcher says so"
    if launcher == "fp16" and on_cpu:
        return "no", "a CPU does not train in fp16"
    if launcher in ("bf16", "fp16"):
        return launcher, "the launcher says so"
    if on_cpu:
        fast = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
        return (
            ("bf16", "this CPU multiplies bf16 fast")
            if fast
            else ("no", "this CPU has no fast bf16")
        )
    if torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0):
        return "bf16", "this GPU multiplies bf16 fast"
    return "no", "this device has no fast bf16"


def default_num_threads() -> int:
    """This process's share of the cores it may run on; launchers set one thread without asking."""
    return max(1, usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def keep_freed_memory() -> None:
    """Let the allocator use freed memory again at once: asking the kernel for it anew each step costs 5 % (glibc)."""
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        trim_threshold, mmap_threshold, libc = -1, -3, ctypes.CDLL(None)
        libc.mallopt(mmap_threshold, 2**30)
        libc.mallopt(trim_threshold, 2**31 - 1)


def check_world(num_processes: int) -> None:
    """Refuse a world that is not the one that was asked for: several silent worlds of one would all write one folder."""
    launched = launched_world_size()
    if launched != num_processes:
        raise UserError(
            f"the launcher started {launched} processes, but this one is in a world of {num_processes}; "
            f"type: accelerate launch --multi_gpu --num_processes {launched} distgan/train.py ..."
        )
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))
    if num_processes == 1 and tasks > 1 and "WORLD_SIZE" not in os.environ:
        raise UserError(
            f"srun started {tasks} tasks, each a world of one; submit with launch/slurm.sbatch instead"
        )
    asked = requested_processes(psutil.Process(os.getppid()))
    if num_processes == 1 and asked > 1:
        raise UserError(
            f"{asked} processes were asked for, but the launcher started one (as it does with --cpu); "
            f"type: accelerate launch --multi_gpu --num_processes {asked} distgan/train.py ..."
        )


def requested_processes(launcher: psutil.Process) -> int:
    """The number of processes in the command line, or else the configuration file, of `accelerate launch`."""
    try:
        words = launcher.cmdline()
    except psutil.Error:
        return 1
    command = " ".join(words)
    if "accelerate launch" not in command and "accelerate.commands.launch" not in command:
        return 1
    options: dict[str, str] = {}
    for word, after in zip(words, [*words[1:], ""], strict=True):
        name, equals, value = word.partition("=")
        options.setdefault(name.replace("-", "_"), value if equals else after)
    try:
        if "__num_processes" in options:
            return int(options["__num_processes"])
        if "__config_file" in options:
            return int(
                yaml.safe_load(Path(options["__config_file"]).read_text()).get("num_processes", 1)
            )
    except (ValueError, OSError, yaml.YAMLError, AttributeError):
        pass  # the launcher itself has already complained of what it cannot read
    return 1


def die_with_launcher() -> None:
    """Get SIGTERM when the launcher dies, as if preempted: no orphan goes on writing to a run that has ended (Linux)."""
    launched = "TORCHELASTIC_RUN_ID" in os.environ or "ACCELERATE_MIXED_PRECISION" in os.environ
    if launched and sys.platform == "linux":
        launcher = os.getppid()
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
        if os.getppid() != launcher:  # it died before the call
            os.kill(os.getpid(), signal.SIGTERM)
