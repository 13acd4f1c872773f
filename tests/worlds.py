"""Worlds of real processes for tests: ranks that form a gloo group, and recorded training runs."""

import hashlib
import json
import multiprocessing
import os
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

CONTEXT = multiprocessing.get_context("forkserver")
# Imported once, so that a new world starts in well under a second.
CONTEXT.set_forkserver_preload(["distgan.trainer"])

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
    os.environ.clear()  # the fork server still has the environment of the first test
    os.environ |= environment
    if size > 1:
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }  # fmt: skip
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    try:
        results.put((rank, function(*arguments), None))
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
        gathered = sorted((results.get() for _ in range(size)), key=lambda result: result[0])
    finally:
        for process in processes:
            process.join(timeout)
            process.kill()
    failures = [failure for _, _, failure in gathered if failure]
    if failures:
        raise AssertionError("\n".join(failures))
    return [value for _, value, _ in gathered]


def train_run(
    shards: Path, run_dir: Path, overrides: Sequence[str], stop_after: int | None = None
) -> dict[str, Any]:
    """Train in this process and return what happened.

    The result has the run's state, the images seen at its start and end, the ids of all images
    read, the weights of both networks, and the files that a rank other than zero wrote. After
    `stop_after` images the run gets a SIGTERM.
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
