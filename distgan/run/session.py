"""The start and the end of a run, shared by runs of one GAN and of one GAN per class."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator

from distgan.config.schema import Config, total_images
from distgan.data import open_dataset
from distgan.evaluation.evaluator import Evaluator
from distgan.labels import Labels, labels_of
from distgan.reporting.run_logger import RunLogger
from distgan.reporting.tensorboard_sink import check_installed
from distgan.run.clusters import Clusters, clusters_of_run
from distgan.run.settings import default_run_dir
from distgan.runtime.accelerator import build_accelerator, die_with_launcher
from distgan.runtime.distributed import World, current_world
from distgan.runtime.heartbeat import CLOSING_SEC, Heartbeat
from shards.reader import ShardReader


@dataclass(frozen=True)
class Session:
    """The dataset, the processes and the run folder of a run."""

    reader: ShardReader
    accelerator: Accelerator
    precision_reason: str
    world: World
    run_dir: Path
    total_images: int
    labels: Labels | None = None  # of a conditional GAN's images
    clusters: Clusters | None = None  # from which the labels come if there are no classes

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the dataset."""
        return self.reader.index.fingerprint


def open_session(config: Config, *, name: str, run_dir: Path | None) -> Session:
    """Open the dataset and join the other processes; raises UserError or ShardError.

    Without a `run_dir` the folder is derived from `name`, the settings and the dataset.
    """
    die_with_launcher()
    if config.log.tensorboard:
        check_installed()
    index, reader = open_dataset(config.data)
    images = total_images(config.train, reader.num_samples)
    accelerator, precision_reason = build_accelerator(config.train)
    run_dir = run_dir or default_run_dir(name, config, index.fingerprint)
    world, labels, clusters = current_world(), labels_of(config.networks, reader, config.data), None
    if config.networks.condition == "cluster":
        clusters = clusters_of_run(
            reader, config, folder=run_dir, world=world, device=accelerator.device
        )
        labels = clusters.as_labels()
    return Session(
        reader,
        accelerator,
        precision_reason,
        world,
        run_dir,
        images,
        labels,
        clusters,
    )


def build_evaluator(session: Session, config: Config) -> Evaluator:
    """Build the evaluator of a run; raises UserError for settings that do not fit the dataset."""
    train = config.train
    return Evaluator(
        session.reader,
        evaluation=config.evaluation,
        thresholds=config.collapse.thresholds,
        classes=config.data.classes,
        world=session.world,
        device=session.device,
        seed=train.seed,
        total_images=session.total_images,
        micro_batch_size=train.batch_size // session.world.size // train.accumulate,
        labels=session.labels,
    )


@contextmanager
def recorded_outcome(
    logger: RunLogger, heartbeat: Heartbeat, *, images_seen: Callable[[], int]
) -> Iterator[None]:
    """Record a failure of the block in the run folder, inform the other ranks, and raise it again.

    A block that ends normally must record its own outcome; if that fails, RunFailed is raised. The
    loss of a rank is recorded at once, because NCCL may end this process before the block fails.
    """
    closing = threading.Lock()

    def close(reason: str) -> None:
        """Close the log; the thread that comes second waits, and finds it closed."""
        if closing.acquire(timeout=CLOSING_SEC):
            try:
                logger.close("failed", reason, images_seen=images_seen())
            finally:
                closing.release()

    heartbeat.on_loss = lambda reason: logger.record_failure(reason, images_seen=images_seen())
    heartbeat.on_hang = close
    try:
        yield
    except BaseException as error:
        cause, reason = heartbeat.find_cause(error)
        close(reason)
        raise cause from None
    heartbeat.close()
    if logger.unrecorded is not None:
        raise logger.unrecorded
