"""The measurements of a run in training: metrics, samples and evaluations."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor

from distgan.config.schema import Config
from distgan.data import TrainingBatches
from distgan.evaluation.evaluator import Evaluator
from distgan.gan import GAN
from distgan.images import is_whole_image, to_uint8
from distgan.labels import Labels
from distgan.losses.adversarial import equilibrium
from distgan.networks.latents import generate
from distgan.reporting.metrics import RunningMeans
from distgan.reporting.run_logger import REALS_FILE, RunLogger
from distgan.run.checkpointer import RunState
from distgan.run.sample_grid import fake_inputs, grid_columns, real_ids
from distgan.run.session import Session
from distgan.runtime.provenance import peak_memory_gb
from distgan.steps import StepResult
from shards.reader import ShardReader

MAINTENANCE = {  # kinds of work between steps, and what the console says meanwhile
    "samples": "drawing samples",
    "evaluations": "evaluating",
    "checkpoints": "saving",
}


class Reporter:
    """Measures a run in training and logs the results. Every method is collective."""

    def __init__(
        self,
        logger: RunLogger,
        session: Session,
        config: Config,
        *,
        gan: GAN,
        evaluator: Evaluator,
        state: RunState,
    ) -> None:
        self.logger, self.session, self.config = logger, session, config
        self.gan, self.evaluator, self.state = gan, evaluator, state
        self.means = RunningMeans()
        self.last_report, self.images_at_report = time.monotonic(), state.images_seen
        self.first_image = state.images_seen  # of this start
        self.began, self.pauses_at_report = self.last_report, 0.0
        self.maintenance_sec = dict.fromkeys(MAINTENANCE, 0.0)

    @contextmanager
    def maintenance(self, kind: str) -> Iterator[None]:
        """Say what the run does in the block, and add its duration to `maintenance_sec`."""
        began, console = time.monotonic(), self.logger.console
        with console.doing(MAINTENANCE[kind]) if console else nullcontext():
            yield
        self.maintenance_sec[kind] += time.monotonic() - began

    @property
    def pause_sec(self) -> float:
        """Seconds of this start spent on samples, evaluations and checkpoints."""
        return sum(self.maintenance_sec.values())

    @property
    def seconds_since_start(self) -> float:
        """Seconds since this process began to train, pauses included."""
        return time.monotonic() - self.began

    @property
    def seconds_of_run(self) -> float:
        """Seconds of training over all starts of the run, pauses included."""
        return self.state.train_seconds + time.monotonic() - self.last_report

    def add(self, result: StepResult) -> None:
        """Add the statistics of one step, without waiting for the device."""
        for statistics in result.statistics:
            self.means.add(statistics)
        self.last_fakes = result.fakes

    def log_metrics(self, config: Config, batches: TrainingBatches) -> None:
        """Log the means of all statistics since the last call, and update the verdict with them.

        `config` has the settings in force, which a rollback changes.
        """
        if self.means.sums:
            self.means.add(self.evaluator.batch_metrics(self.last_fakes))
        world, state = self.session.world, self.state
        # All ranks derive the same decisions from these numbers, so every bit must be equal.
        statistics = world.broadcast_object(self.means.reduce(world))
        now = time.monotonic()
        seconds, self.last_report = now - self.last_report, now
        state.train_seconds += seconds
        pauses = self.pause_sec
        pause_sec, self.pauses_at_report = pauses - self.pauses_at_report, pauses
        if not statistics:
            return
        images = state.images_seen - self.images_at_report
        row = {
            "progress/kimg": state.images_seen / 1000,
            "progress/images": state.images_seen,
            "progress/epoch": state.images_seen / self.session.reader.num_samples,
            **statistics,
            **relative_losses(statistics, config),
            "time/images_per_sec": images / seconds,
            "time/step_images_per_sec": images / max(seconds - pause_sec, 1e-9),
            "time/data_wait_frac": batches.wait_seconds / seconds,
            "time/train_sec": state.train_seconds,
            "memory/peak_gb": peak_memory_gb(self.session.device),
        }
        self.images_at_report, batches.wait_seconds = state.images_seen, 0.0
        self.logger.metrics(row)
        self.logger.verdict(
            self.evaluator.tracker.add_report(statistics, images_seen=state.images_seen),
            images_seen=state.images_seen,
        )

    def save_samples(self) -> None:
        """Save a grid of images that the averaged generator makes from fixed latents."""
        with self.maintenance("samples"):
            self.gan.recalibrate_batch_norm(seed=self.config.train.seed)
            if self.logger.folder is None:
                return
            labels = self.session.labels
            inputs = fake_inputs(self.gan.spec, labels, seed=self.config.train.seed)
            on_device = (each.to(self.session.device) for each in inputs)
            fakes = generate(self.gan.ema.generator, *on_device)
            has_reals = is_whole_image(self.logger.folder.samples / REALS_FILE)
            reals = None if has_reals else first_reals(self.session.reader, labels)
            self.logger.samples(
                to_uint8(fakes),
                reals,
                columns=grid_columns(labels),
                images_seen=self.state.images_seen,
            )

    def evaluate(self) -> None:
        """Evaluate the averaged generator, and log the result and the verdict."""
        with self.maintenance("evaluations"):
            self.gan.recalibrate_batch_norm(seed=self.config.train.seed)
            images_seen, latent_dim = self.state.images_seen, self.gan.spec.latent_dim
            result, verdict, is_best = self.evaluator.evaluate(
                self.gan.ema.generator, latent_dim, images_seen=images_seen
            )
            self.logger.evaluation(result, is_best=is_best, images_seen=images_seen)
            self.logger.verdict(verdict, images_seen=images_seen)


def first_reals(reader: ShardReader, labels: Labels | None = None) -> Tensor:
    """Return the first real images, uint8 [n, C, H, W], for one sample grid."""
    return torch.from_numpy(reader.gather_8_bits(real_ids(reader.num_samples, labels)))


def relative_losses(statistics: dict[str, float], config: Config) -> dict[str, float]:
    """Return both losses relative to their values at equilibrium.

    At equilibrium the discriminator cannot distinguish reals from fakes. A loss that is zero there
    has no relative value.
    """
    levels = dict(zip(("loss/d", "loss/g"), equilibrium(config.loss), strict=True))
    return {f"{name}_relative": statistics[name] / x for name, x in levels.items() if abs(x) > 1e-9}
