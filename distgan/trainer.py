"""The training loop of one GAN: build, resume, train, close.

The clock of a run is `images_seen`, the number of real images that all processes have consumed.
The order of images, latents, flips, the moving average, schedules and intervals all derive from
that one integer. A run can therefore resume exactly, and sees the same on any number of processes;
only batch norm and unrolling depend on how a batch is divided among them.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from distgan.config.schema import Config
from distgan.data import TrainingBatches
from distgan.gan import build_gan, generator_spec
from distgan.networks.generator_file import is_generator
from distgan.reporting.console import say, say_in_terminal, show_table
from distgan.reporting.metrics import RunningMeans
from distgan.reporting.run_logger import RunLogger
from distgan.run.checkpointer import Checkpointer
from distgan.run.clusters import write_clusters
from distgan.run.collapse import Reaction, react, reason_to_stop
from distgan.run.files import read_status
from distgan.run.folder import FINISHED_STATES, RunFolder, explained
from distgan.run.forecast import StepClock, describe_disk, describe_duration
from distgan.run.initial_weights import start_from
from distgan.run.outputs import restore_reals, write_generator
from distgan.run.preflight import check_agreement, check_run, remedied, settings_for, start_table
from distgan.run.reporter import Reporter
from distgan.run.schedule import Schedule
from distgan.run.session import build_evaluator, open_session, recorded_outcome
from distgan.runtime.distributed import launched_world_size
from distgan.runtime.heartbeat import Heartbeat
from distgan.runtime.provenance import provenance
from distgan.runtime.signals import Interrupt
from distgan.steps import StepResult, train_step
from distgan.text import format_kimg
from shards.files import expand_user


class Trainer:
    """A run on this process; `run` trains until the last image, a signal or a collapse."""

    def __init__(
        self,
        config: Config,
        *,
        name: str,
        recipe: str = "",
        run_dir: Path | None,
        interrupt: Interrupt,
        command: list[str],
        open_folder: Callable[[Path], RunFolder] = RunFolder,
        dry: bool = False,
    ) -> None:
        """Build or resume a run. Without a folder, if it is `dry`, only `dry_run` is possible."""
        self.given, self.name, self.interrupt, self.command = config, name, interrupt, command
        self.recipe = recipe  # why these settings were chosen, if the user named no preset
        self.config = config = settings_for(config, launched_world_size())
        self.session = session = open_session(config, name=name, run_dir=run_dir)
        self.reader, self.world, self.device = session.reader, session.world, session.device
        self.heartbeat = Heartbeat(self.world)
        with self.heartbeat.naming_losses():
            check_run(session, config)
            self.evaluator = build_evaluator(session, config)
            check_agreement(session, config, self.evaluator)
            # Only now, so that a run that is refused leaves no folder.
            self.folder = (
                None if dry else self.world.run_on_main(lambda: open_folder(session.run_dir))
            )
            self.build()
            self.notes, self.origin = self.restore()
            self.store_clusters()  # not before: a run with other settings keeps its own
        self.state = self.checkpointer.state
        self.active = self.active_config()
        self.heading = ""  # shown instead of the start table, if it is set

    def store_clusters(self) -> None:
        """Write the clusters of the images, if there are any, into the run folder on rank zero."""
        clusters = self.session.clusters
        if self.folder is not None and clusters is not None:
            with explained(self.folder.path):
                write_clusters(self.folder.path, clusters, self.reader)

    def build(self) -> None:
        """Build the networks, their optimizers, and what saves them."""
        session, config = self.session, self.config
        shape, bits = self.reader.image_shape, self.reader.index.bits
        spec = generator_spec(config.networks, shape, session.labels, bits=bits)
        total_images = session.total_images
        self.gan = build_gan(session.accelerator, spec, config, total_images=total_images)
        self.checkpointer = Checkpointer(session, config, gan=self.gan, evaluator=self.evaluator)

    def restore(self) -> tuple[list[str], dict[str, str]]:
        """Load the newest checkpoint, or the weights that a new run starts from.

        Returns notes for the user, and the origin of the first weights, empty if they were drawn.
        """
        notes, labels = self.checkpointer.restore_newest(), self.session.labels
        notes += self.evaluator.warnings
        if labels is not None and (warning := labels.warning()):
            notes.append(warning)
        settings = self.config.train
        if settings.init_from is None or self.checkpointer.state.images_seen > 0:
            return notes, {}
        path, with_optimizers = expand_user(settings.init_from), settings.init_optimizers
        start = start_from(self.gan, path, with_optimizers=with_optimizers)
        return notes + start.notes, start.origin

    def active_config(self) -> Config:
        """Return the settings in force, which after a rollback include `collapse.remedy`."""
        if not self.state.rollbacks:
            return self.config
        return remedied(self.config, self.world)

    def run(self) -> str:
        """Train, and return the state in status.json: `done`, `preempted` or `collapsed`.

        If the run was killed before it recorded its outcome, finish it now.
        """
        state = self.state
        self.logger = RunLogger(
            self.folder,
            name=self.name,
            config=self.config,
            wandb_id=state.wandb_id,
            total_images=self.session.total_images,
            images_per_epoch=self.reader.num_samples,
        )
        state.wandb_id = self.logger.wandb_id
        self.logger.last_verdict = self.evaluator.verdict.name
        with recorded_outcome(self.logger, self.heartbeat, images_seen=lambda: state.images_seen):
            run_dir = self.session.run_dir
            recorded = self.world.broadcast_from_main(lambda: read_status(run_dir).state)
            if state.images_seen >= self.session.total_images and recorded in FINISHED_STATES:
                self.restore_outputs()
                self.logger.already_done(images_seen=state.images_seen)
                return recorded
            self.announce()
            return self.train()

    def announce(self) -> None:
        """Write the files that describe the run, and show the start table."""
        session = self.session
        self.logger.start(
            self.start_table(),
            provenance=provenance(session.accelerator, self.command, os.environ, self.origin),
            images_seen=self.state.images_seen,
            notes=self.notes,
        )

    def start_table(self) -> list[tuple[str, Any]]:
        """Return the rows that describe the run."""
        if self.heading:
            return [("training", self.heading)]
        return start_table(
            self.session,
            self.config,
            given=self.given,
            recipe=self.recipe,
            gan=self.gan,
            evaluator=self.evaluator,
        )

    def dry_run(self) -> None:
        """Print the start table and, from its first steps, what time and disk the run will take."""
        if self.world.is_main:
            show_table("distgan, dry run", self.start_table())
            say_in_terminal("measuring the speed of its steps ...")
        images_seen, speed = self.state.images_seen, self.measure_speed()
        self.state.images_seen = images_seen
        for name, text in self.forecast(self.schedule(), speed=speed) if self.world.is_main else ():
            say(f"{name}: {text}")
        self.heartbeat.close()

    def measure_speed(self) -> float:
        """Return the images per second of steps alone. Collective; trains the networks."""
        clock, speed = StepClock(self.device), None
        images_per_step = self.config.train.batch_size * self.config.train.d_steps
        with self.open_batches() as self.batches:
            while speed is None:
                self.train_step()
                speed = self.world.broadcast_from_main(lambda: clock.tick(images_per_step))
        return speed

    def forecast(self, schedule: Schedule, *, speed: float) -> list[tuple[str, str]]:
        """Return rows about the time and the disk that the run will take."""
        images_seen = self.state.images_seen
        return [
            ("time", describe_duration(schedule, images_seen=images_seen, speed=speed)),
            ("disk", describe_disk(self.gan, self.config, schedule)),
        ]

    # --------------------------------------------------------------------------------------- loop

    def train(self) -> str:
        """Alternate between what is due and one step until the run ends; return its outcome."""
        state, total = self.state, self.session.total_images
        schedule, clock = self.schedule(), StepClock(self.device)
        before = state.images_seen or -1
        self.reporter = Reporter(
            self.logger,
            self.session,
            self.config,
            gan=self.gan,
            evaluator=self.evaluator,
            state=state,
        )
        with self.open_batches() as self.batches:
            while True:
                is_complete = state.images_seen >= total
                stopping = self.heartbeat.should_stop(self.interrupt.raised)
                interrupted = stopping and not is_complete
                due = schedule.due(before, state.images_seen, stopping=interrupted)
                if due.metrics:
                    self.reporter.log_metrics(self.active, self.batches)
                if due.samples:
                    self.reporter.save_samples()
                if evaluation_due := due.evaluation or state.owes_evaluation:
                    state.owes_evaluation = interrupted  # it takes too long for an interruption
                if evaluation_due and not interrupted:
                    self.reporter.evaluate()
                collapse = self.handle_collapse()
                ending = is_complete or interrupted or collapse is not None
                if due.checkpoint or (ending and state.images_seen != before):
                    # Of a new run the first one, to which a rollback may return, must not fail.
                    self.save_checkpoint(must_succeed=ending or before < 0)
                elif is_complete and self.world.is_main:
                    self.checkpointer.prune()  # what a power cut after the last save brought back
                if ending:
                    break
                before = state.images_seen
                self.reporter.add(self.train_step())
                pause_sec = self.reporter.pause_sec
                if speed := clock.tick(state.images_seen - before, pause_sec=pause_sec):
                    self.logger.forecast(self.forecast(schedule, speed=speed))
        return self.finish(interrupted=interrupted, collapse=collapse)

    def schedule(self) -> Schedule:
        """Return when metrics, samples, evaluations and checkpoints are due."""
        return Schedule(
            self.config,
            total_images=self.session.total_images,
            images_per_epoch=self.reader.num_samples,
        )

    def open_batches(self) -> TrainingBatches:
        """Open this rank's batches, beginning with the next image of the run."""
        return TrainingBatches(
            self.reader,
            self.config,
            start=self.state.images_seen,
            rank=self.world.rank,
            world_size=self.world.size,
            device=self.device,
            labels=self.session.labels,
        )

    def train_step(self) -> StepResult:
        """Train both networks for one step, and count the images seen."""
        state, train = self.state, self.config.train
        result = train_step(
            self.gan,
            lambda position: self.batches.next(position, rollbacks=state.rollbacks),
            self.active,
            images_seen=state.images_seen,
            progress=state.images_seen / self.session.total_images,
            lr_factor=self.config.collapse.lr_factor**state.rollbacks,
        )
        state.images_seen += train.batch_size * train.d_steps
        return result

    def handle_collapse(self) -> str | None:
        """Apply `collapse.action` to the verdict; return why the run must end, or None."""
        verdict, state = self.evaluator.verdict, self.state
        reaction = react(
            verdict,
            self.config.collapse,
            rollbacks=state.rollbacks,
            kimg=state.images_seen / 1000,
            is_complete=state.images_seen >= self.session.total_images,
        )
        if reaction is Reaction.ROLL_BACK:
            self.roll_back(str(verdict))
        if reaction is not Reaction.STOP:
            return None
        return reason_to_stop(verdict, self.config.collapse, rollbacks=state.rollbacks)

    def roll_back(self, verdict: str) -> None:
        """Restore the last healthy checkpoint and apply `collapse.remedy`."""
        self.checkpointer.roll_back()
        self.active = self.active_config()
        probability = self.active.loss.augment_probability
        if probability != self.config.loss.augment_probability:
            self.gan.augment_probability.fill_(probability)
        self.reporter.means = RunningMeans()
        state, limit = self.state, self.config.collapse.max_rollbacks
        self.logger.event(
            "rollback",
            f"{verdict}: rollback {state.rollbacks} of {limit} "
            f"to {format_kimg(state.healthy_images)}",
            images_seen=state.images_seen,
        )

    def save_checkpoint(self, *, must_succeed: bool) -> None:
        """Save a checkpoint. A failure is an error if `must_succeed`, otherwise a warning."""
        with self.reporter.maintenance("checkpoints"):
            problem = self.checkpointer.save(must_succeed=must_succeed)
            if problem is not None:
                self.logger.event("warning", problem, images_seen=self.state.images_seen)

    # ---------------------------------------------------------------------------------------- end

    def finish(self, *, interrupted: bool, collapse: str | None) -> str:
        """Write the generator, record the outcome and close; return the outcome."""
        images_seen = self.state.images_seen
        if self.folder is not None:
            self.write_generator(self.folder)
        outcome, reason = "done", f"trained to the end; {self.evaluator.verdict}"
        if collapse is not None:
            outcome, reason = "collapsed", collapse
        elif interrupted:
            outcome, reason = "preempted", self.interrupt.describe_saving()
        reporter = self.reporter
        self.logger.time_table(
            reporter.maintenance_sec,
            total_sec=reporter.seconds_since_start,
            num_images=images_seen - reporter.first_image,
        )
        self.logger.close(outcome, reason, images_seen=images_seen, seconds=reporter.seconds_of_run)
        return outcome

    def write_generator(self, folder: RunFolder) -> None:
        """Write the averaged generator to the run folder."""
        write_generator(
            folder,
            self.session,
            gan=self.gan,
            tracker=self.evaluator.tracker,
            images_seen=self.state.images_seen,
        )

    def restore_outputs(self) -> None:
        """Write the generator and the real images of a finished run again if they are damaged."""
        if self.folder is not None:
            if not is_generator(self.folder.path):
                self.write_generator(self.folder)
            restore_reals(self.folder, self.session)
