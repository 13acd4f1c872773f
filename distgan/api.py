"""`distgan.train`: a training run in a script or a notebook."""

import gc
import os
import signal
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from distgan.config.flat import changed_from_defaults, to_overrides
from distgan.config.schema import Config
from distgan.per_class import PerClassTrainer
from distgan.run.settings import choose_settings
from distgan.runtime.accelerator import reset_accelerator
from distgan.runtime.distributed import leave_world
from distgan.runtime.signals import Interrupt
from distgan.trainer import Trainer
from shards.files import expand_user


@dataclass(frozen=True)
class TrainingResult:
    """The outcome and the folder of a training run."""

    outcome: str  # done, preempted or collapsed
    run_dir: Path


def load_config(
    preset: str | None = None, overrides: Sequence[str] = (), *, data: str | None = None
) -> Config:
    """Return the settings of a preset, changed by overrides written `section.field=value`.

    `data` is a folder or URL of packed shards. Without a preset they decide: images of one's own
    are trained with the strong settings for their size, and no data with the preset `digits`.
    Raises UserError or ShardError.
    """
    return choose_settings(preset, overrides, data=data).config


def train(config: Config, *, run_dir: str | os.PathLike[str] | None = None) -> TrainingResult:
    """Train a GAN in this process until the run ends.

        config = distgan.load_config("digits", ["train.kimg=3"])
        result = distgan.train(config, run_dir="runs/digits")

    Writes the same run folder as `distgan train`. If it contains an unfinished run with equal
    settings, that run is resumed. Without a `run_dir` the folder is derived from the settings and
    the data. Ctrl-C or SIGTERM saves a checkpoint and returns with the outcome `preempted`.

    Raises UserError for settings or files that cannot be used, ShardError for damaged data and for
    a `~user` who has no home folder, and RunFailed if the run cannot continue.
    """
    with interruptible() as interrupt, unlocked_on_error():
        return run(config, None if run_dir is None else expand_user(Path(run_dir)), interrupt)


def run(config: Config, run_dir: Path | None, interrupt: Interrupt) -> TrainingResult:
    """Build a trainer and run it, so that the process can do the same again afterwards."""
    trainer_class = PerClassTrainer if config.networks.per_class else Trainer
    try:
        trainer = trainer_class(
            config, name="run", run_dir=run_dir, interrupt=interrupt, command=[]
        )
        trainer.command = equal_command(config, trainer.session.run_dir)
        result = TrainingResult(trainer.run(), trainer.session.run_dir)
        leave_world()
        return result
    finally:
        reset_accelerator()


def equal_command(config: Config, run_dir: Path) -> list[str]:
    """Return the command line that trains the same in the same folder."""
    overrides = to_overrides(changed_from_defaults(config))
    if config.optim.reference_batch is None:  # but the preset has one
        overrides.append("optim.scaling=none")
    return ["distgan", "train", "--preset", "classic", "--run-dir", str(run_dir), *overrides]


@contextmanager
def interruptible() -> Iterator[Interrupt]:
    """Record signals during the block, and restore their handlers afterwards.

    Python allows this in the main thread only; in another one no signal is noted.
    """
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return
    handlers = {number: signal.getsignal(number) for number in Interrupt.SIGNALS}
    interrupt.install()
    try:
        yield interrupt
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextmanager
def unlocked_on_error() -> Iterator[None]:
    """Unlock the run folder after an error, so that a notebook can repeat the call.

    A notebook keeps the last traceback, and its frames would keep the locked folder open.
    """
    try:
        yield
    except BaseException as error:
        cause: BaseException | None = error
        while cause is not None:
            traceback.clear_frames(cause.__traceback__)
            cause = cause.__context__
        gc.collect()
        raise
