"""Worlds of real processes for tests: ranks that form a gloo group, and recorded training runs."""

import gc
import hashlib
import io
import json
import multiprocessing
import os
import runpy
import socket
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from multiprocessing import forkserver, resource_tracker
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parent.parent
CONTEXT = multiprocessing.get_context("forkserver")
# Imported once, so that a new world starts in well under a second. The last ones are what a run
# imports while it trains: the first step of an optimizer, the plot of losses, the report.
PRELOADED = [
    "distgan.trainer", "distgan.cli", "torch._dynamo", "torch.distributed.algorithms",
    "matplotlib.backends.backend_agg", "matplotlib.figure", "distgan.reporting.page",
    "sklearn.datasets",
]  # fmt: skip
CONTEXT.set_forkserver_preload(PRELOADED)


def share_fork_server() -> tuple[str, bytes]:
    """Start the process that others are forked from; return what other processes need to use it.

    It imports in the background, also what a run that logs to W&B needs. That takes seconds, for
    which a test that is run alone need not wait.
    """
    CONTEXT.set_forkserver_preload([*PRELOADED, "wandb.sdk.launch"])
    forkserver.ensure_running()
    server = forkserver._forkserver
    return server._forkserver_address, getattr(server, "_forkserver_authkey", b"")


def use_fork_server(shared: tuple[str, bytes]) -> None:
    """Fork processes from what another process has started with `share_fork_server`.

    That process must outlive this one.
    """
    server: Any = forkserver._forkserver
    server._forkserver_address, server._forkserver_authkey = shared
    server._forkserver_alive_fd = os.open(os.devnull, os.O_RDONLY)
    server.ensure_running = resource_tracker.ensure_running


# A run of a few seconds.
SMALL = (
    "networks.generator_width=4", "networks.discriminator_width=4", "networks.latent_dim=8",
    "train.batch_size=12", "train.cpu_threads=1", "train.precision=launcher",
    "log.wandb=disabled", "log.report=false", "log.every_kimg=0.012", "log.samples_every_kimg=1",
    "checkpoint.every_kimg=1", "evaluation.num_samples=12", "evaluation.every_kimg=1",
)  # fmt: skip

# As many remedies against collapse as can be combined.
REMEDIES = (
    "train.batch_size=16", "networks.discriminator_norm=none", "networks.minibatch_stddev=4",
    "loss.adversarial=relativistic", "loss.r1=0.1", "loss.r2=0.1", "loss.penalty_interval=2",
    "loss.penalty_final=0.5", "loss.unroll_steps=1", "loss.diversity.mode_seeking=1",
    "loss.diversity.feature_distance=1", 'loss.augment=["color","translation","cutout"]',
    "loss.augment_probability=0.5", "loss.augment_target=0.6", "loss.augment_ramp_kimg=1",
    "optim.schedule=cosine", "optim.lookahead_steps=2",
)  # fmt: skip
REFINED = "networks.generator_refinements=2"
MODULATED = "networks.self_modulation=true"


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_rank(
    rank: int,
    size: int,
    port: int,
    results: Any,
    environment: dict[str, str],
    function: Callable[..., Any],
    arguments: Sequence[Any],
) -> None:
    """Call the function as one rank of a world; the target of its process.

    `results` gets (rank, value, None) or (rank, None, traceback).
    """
    if size > 1:
        environment |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }  # fmt: skip
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    try:
        results.put((rank, call(environment, function, arguments), None))
    except BaseException:
        results.put((rank, None, traceback.format_exc()))


def run_world(
    size: int, function: Callable[..., Any], *arguments: Any, timeout: float = 60
) -> list[Any]:
    """Call `function(*arguments)` on all ranks of a new world; return the results in rank order.

    Raises AssertionError with the tracebacks of all ranks that failed.
    """
    results, port = CONTEXT.SimpleQueue(), free_port()
    environment = dict(os.environ)
    processes = [
        CONTEXT.Process(
            target=run_rank, args=(rank, size, port, results, environment, function, arguments)
        )
        for rank in range(size)
    ]
    for process in processes:
        process.start()
    try:
        gathered = sorted(
            (next_result(results, processes) for _ in processes), key=lambda result: result[0]
        )
    finally:
        for process in processes:
            process.join(timeout)
            process.kill()
    failures = [failure for _, _, failure in gathered if failure]
    if failures:
        raise AssertionError("\n".join(failures))
    return [value for _, value, _ in gathered]


def start_process(function: Callable[..., Any], *arguments: Any) -> BaseProcess:
    """Start to call `function(*arguments)` in a new process, whose result is not needed."""
    process = CONTEXT.Process(target=call, args=(dict(os.environ), function, arguments))
    process.start()
    return process


def call(
    environment: dict[str, str], function: Callable[..., Any], arguments: Sequence[Any]
) -> Any:
    """Call a function in the environment of the test that has started this process."""
    gc.freeze()  # what was imported never becomes garbage
    os.environ.clear()  # the fork server still has the environment of the first test
    os.environ |= environment
    return function(*arguments)


def next_result(results: Any, processes: Sequence[BaseProcess]) -> tuple[int, Any, str | None]:
    """Return what the next rank put; AssertionError if all have ended without putting it."""
    while results.empty():
        if not any(process.is_alive() for process in processes) and results.empty():
            codes = [process.exitcode for process in processes]
            raise AssertionError(f"a rank ended without a result; exit codes {codes}")
        time.sleep(0.005)
    return results.get()


def run_code(code: str, folder: Path) -> str:
    """Run Python code as `python -W error -c` in a folder; return its output.

    The process is forked from one that has imported distgan, which saves several seconds.
    """
    return run_world(1, execute, code, folder, timeout=120)[0]


def execute(code: str, folder: Path) -> str:
    """Execute code in this process and return what it printed."""
    os.chdir(folder)
    os.environ["DISTGAN_CACHE"] = str(folder.parent / "cache")  # one for a session of tests
    warnings.simplefilter("error")
    with redirect_stdout(io.StringIO()) as output:
        exec(compile(code, "<code>", "exec"), {"__name__": "__main__"})
    return output.getvalue()


def run_script(script: str, arguments: Sequence[str], folder: Path) -> tuple[int, str]:
    """Run a module or file of Python in a folder; return its exit code and both outputs.

    The process is forked like that of `run_code`.
    """
    return run_world(1, execute_script, script, arguments, folder, timeout=120)[0]


def execute_script(script: str, arguments: Sequence[str], folder: Path) -> tuple[int, str]:
    """Execute what `python -m MODULE` or `python FILE` would execute, in this process."""
    os.chdir(folder)
    warnings.simplefilter("default")
    sys.argv, is_file = [script, *arguments], script.endswith(".py")
    if is_file:
        sys.path[0] = str(Path(script).parent)
    output, code = io.StringIO(), 0
    with redirect_stdout(output), redirect_stderr(output):
        try:
            (runpy.run_path if is_file else runpy.run_module)(script, run_name="__main__")
        except SystemExit as ended:
            code = int(ended.code or 0)
    return code, output.getvalue()


def train_run(
    shards: Path, run_dir: Path, overrides: Sequence[str], stop_after: int | None = None
) -> dict[str, Any]:
    """Train in this process and return what happened.

    The result has the run's state, the images seen at its start and end, the ids of all images
    read, the weights of both networks, and the files that a rank other than zero wrote. After
    `stop_after` images the run gets a SIGTERM. Losses are plotted only with log.report=true.
    """
    import distgan.data as data_module
    import distgan.trainer as trainer_module
    from distgan.config.load import load_config
    from distgan.runtime.distributed import leave_world
    from distgan.runtime.signals import Interrupt

    ids: list[int] = []
    writes: list[str] = []
    rank = int(os.environ.get("RANK", "0"))

    class RecordingStream(data_module.BatchStream):
        def __next__(self) -> Any:
            batch = super().__next__()
            ids.extend(image_id(image) for image in batch.numpy())
            if stop_after is not None and trainer.state.images_seen >= stop_after:
                interrupt.signal_name = "SIGTERM"
            return batch

    def record_writes(event: str, arguments: tuple[Any, ...]) -> None:
        reading = event == "open" and "r" in str(arguments[1] or "r")
        writing = event in ("open", "os.rename", "os.mkdir", "os.remove") and not reading
        if writing and str(arguments[0]).startswith(str(run_dir)):
            writes.append(f"{event} {arguments[0]}")

    if rank:
        sys.addaudithook(record_writes)
    data_module.BatchStream = RecordingStream
    interrupt = Interrupt()
    config = load_config(None, [*SMALL, f"data.shards={str(shards)!r}", *overrides])
    if not config.log.report:
        leave_out_plots()
    trainer = trainer_module.Trainer(
        config, name="test", run_dir=run_dir, interrupt=interrupt, command=["test"]
    )
    start = trainer.state.images_seen
    state = trainer.run()
    leave_world()
    gan = trainer.gan
    networks = {"generator": gan.raw_generator, "discriminator": gan.raw_discriminator}
    weights = {
        f"{name}.{key}": tensor.detach().cpu().numpy().copy()
        for name, network in networks.items()
        for key, tensor in network.named_parameters()
    }
    return {
        "state": state,
        "start": start,
        "images_seen": trainer.state.images_seen,
        "ids": ids,
        "writes": writes,
        "weights": weights,
    }


def leave_out_plots() -> None:
    """Write no losses.png in this process, since a plot takes longer than a short run."""
    from distgan.reporting import run_logger

    run_logger.save_losses_plot = lambda *_, **__: None


def image_id(image: np.ndarray) -> int:
    """Return the number that the fixture `shards` hid in the first two pixels of an image."""
    return int(image[0, 0, 0]) * 256 + int(image[0, 0, 1])


def checkpoint_digest(run_dir: Path) -> str:
    """Return the sha256 of the tensors in a run's newest checkpoint."""
    newest = sorted((run_dir / "checkpoints").iterdir())[-1]
    return hashlib.sha256((newest / "tensors.safetensors").read_bytes()).hexdigest()


def rows(run_dir: Path) -> list[dict[str, Any]]:
    """Return the rows of metrics.jsonl."""
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
