"""The Accelerator of a run, and this process's precision, threads, memory and launcher."""

import ctypes
import os
import resource
import signal
import threading
import time
from collections.abc import Callable

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    GradScalerKwargs,
    InitProcessGroupKwargs,
    parse_flag_from_env,
)

from distgan.config.schema import Train
from distgan.errors import UserError
from distgan.runtime.distributed import START_TIMEOUT, launched_world_size
from shards.processes import num_usable_cores

OTHER_OPEN_FILES = 512  # besides the connections to other ranks
SCALER_GROWTH_STEPS = 2000  # training steps without overflow before the loss scale of fp16 doubles
ONE_BUCKET_MB = 4096  # larger than any network here: DDP reduces all gradients of a network at once


def build_accelerator(train: Train) -> tuple[Accelerator, str]:
    """Return the Accelerator, and a phrase that says why it uses its precision.

    Raises UserError if the number of processes is not the requested one or does not fit this
    machine.
    """
    on_cpu = runs_on_cpu()
    if not on_cpu:
        check_gpus()
    if launched_world_size() > 1:
        allow_open_files(launched_world_size() + OTHER_OPEN_FILES)
        # After an error abort the communicator only. By default NCCL's watchdog would end the
        # process, perhaps before rank zero has recorded why.
        os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "2")
    precision, reason = choose_precision(
        train.precision, os.environ.get("ACCELERATE_MIXED_PRECISION", "no"), on_cpu=on_cpu
    )
    if train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(train.deterministic)
    torch.backends.cudnn.benchmark = not train.deterministic
    # By default float32 convolutions use TF32: 10 bits of mantissa, too few for penalties.
    torch.backends.cudnn.allow_tf32 = False
    try:
        accelerator = Accelerator(
            cpu=on_cpu,
            mixed_precision=precision,
            kwargs_handlers=[
                DistributedDataParallelKwargs(
                    bucket_cap_mb=ONE_BUCKET_MB, gradient_as_bucket_view=True
                ),
                InitProcessGroupKwargs(timeout=START_TIMEOUT),
                # Every step updates the scaler of fp16 once for each of its optimizer steps.
                GradScalerKwargs(growth_interval=SCALER_GROWTH_STEPS * (train.d_steps + 1)),
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


def reset_accelerator() -> None:
    """Forget the Accelerator's global state, so that the process can build another one."""
    AcceleratorState._reset_state(reset_partial_state=True)


def runs_on_cpu() -> bool:
    """Return whether to train on the CPU: the launcher says so, or there is no GPU.

    A launcher configured for GPUs does not say whether any exist. Apple's GPU serves only a single
    process, because no backend communicates between several.
    """
    if parse_flag_from_env("ACCELERATE_USE_CPU"):
        return True
    has_mps = launched_world_size() == 1 and torch.backends.mps.is_available()
    return not (torch.cuda.is_available() or has_mps)


def check_gpus() -> None:
    """Raise UserError if this node has fewer GPUs than processes; NCCL needs one for each."""
    processes, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if 0 < gpus < processes:
        raise UserError(
            f"{processes} processes on a node with {gpus} GPU{'s' if gpus > 1 else ''}, and each "
            f"needs its own; use --num_processes {gpus}, or train on the CPU with "
            "ACCELERATE_USE_CPU=true"
        )


def allow_open_files(count: int) -> None:
    """Raise this process's limit of open files to `count`; UserError if the machine forbids it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= count or soft == resource.RLIM_INFINITY:
        return
    if hard < count and hard != resource.RLIM_INFINITY:
        raise UserError(
            f"a world of this size needs {count} open files in a process, and this machine allows "
            f"{hard}; raise its hard limit (ulimit -Hn)"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


def choose_precision(setting: str, launcher: str, *, on_cpu: bool) -> tuple[str, str]:
    """Return (`no`, `bf16` or `fp16`; why) for train.precision and the launcher's precision."""
    if launcher == "fp16" and on_cpu:
        if setting == "launcher":
            raise UserError(
                "the launcher asks for fp16, but a CPU cannot train in it; "
                "use --mixed_precision bf16 or no"
            )
        return "no", "a CPU cannot train in fp16"
    if setting == "launcher" or launcher in ("bf16", "fp16"):
        return launcher, "chosen by the launcher"
    if on_cpu:
        if torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported():
            return "bf16", "this CPU multiplies bf16 fast"
        return "no", "this CPU has no fast bf16"
    capability = torch.cuda.get_device_capability() if torch.cuda.is_available() else (0, 0)
    if capability >= (8, 0):
        return "bf16", "this GPU multiplies bf16 fast"
    if capability >= (7, 0):
        return "fp16", "this GPU multiplies fp16 fast, and has no fast bf16"
    return "no", "this device has no fast bf16"


def default_num_threads() -> int:
    """Return the usable cores per process. Launchers would set a single thread by default."""
    return max(1, num_usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def keep_freed_memory() -> None:
    """Keep freed memory in this process (glibc): requesting it from the kernel again costs 5 %."""
    if mallopt := libc_function("mallopt"):
        trim_threshold, mmap_threshold = -1, -3
        mallopt(mmap_threshold, 2**30)
        mallopt(trim_threshold, 2**31 - 1)


def libc_function(name: str) -> Callable[..., int] | None:
    """Return a function of the C library, None on systems that lack it."""
    return getattr(ctypes.CDLL(None), name, None)


def check_world(num_processes: int) -> None:
    """Raise UserError if there are fewer processes than requested.

    Otherwise several processes, each a world of one, would write to the same run folder.
    """
    launched = launched_world_size()
    if launched != num_processes:
        raise UserError(
            f"the launcher started {launched} processes, but this one is in a world of "
            f"{num_processes}; type: "
            f"accelerate launch --multi_gpu --num_processes {launched} distgan/train.py ..."
        )
    if num_processes > 1 or "WORLD_SIZE" in os.environ:
        return
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))
    if tasks > 1:
        raise UserError(
            f"srun started {tasks} tasks, each a world of one; "
            "submit with launch/slurm.sbatch instead"
        )
    # `accelerate launch` always exports the precision. It exports MASTER_ADDR only if several
    # processes were requested, even if it then starts just one.
    if {"MASTER_ADDR", "ACCELERATE_MIXED_PRECISION"} <= os.environ.keys():
        raise UserError(
            "the launcher was asked for several processes, but started one "
            "(as it does with --cpu); "
            "for N processes type: accelerate launch --multi_gpu --num_processes N "
            "distgan/train.py ..., for one add --num_processes 1 and unset MASTER_ADDR"
        )


def die_with_launcher() -> None:
    """Arrange for SIGTERM when the launcher dies, so that no orphan writes to the run."""
    if not {"TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION"} & os.environ.keys():
        return
    launcher = os.getppid()
    if prctl := libc_function("prctl"):  # Linux
        pr_set_pdeathsig = 1
        prctl(pr_set_pdeathsig, signal.SIGTERM)
        if os.getppid() != launcher:  # it died before the call
            os.kill(os.getpid(), signal.SIGTERM)
    else:
        threading.Thread(target=watch_launcher, args=(launcher,), daemon=True).start()


def watch_launcher(launcher: int) -> None:
    """Wait until this process has another parent than the launcher, then send SIGTERM to itself."""
    while os.getppid() == launcher:
        time.sleep(1.0)
    os.kill(os.getpid(), signal.SIGTERM)
