"""The spine of a run: build, resume, loop, maintenance, close. The one file that sees the whole Config.

Time is `images_seen`, the real images consumed over all processes: image order, latents, flips, moving average and all
intervals derive from that one integer, so a run resumes from it and is the same on any number of processes.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from distgan.config.flat import to_toml
from distgan.config.load import with_overrides
from distgan.config.schema import Config, total_images
from distgan.data import Batches, open_dataset
from distgan.errors import RunFailed, UserError
from distgan.evaluation.evaluator import Evaluator
from distgan.gan import GAN, build_gan
from distgan.images import to_uint8
from distgan.losses.adversarial import equilibrium
from distgan.networks.base import GeneratorSpec
from distgan.networks.generator_file import save_generator
from distgan.networks.latents import generate, sample_latents
from distgan.optimizers import lr_schedule
from distgan.reporting.metrics import RunningMeans
from distgan.reporting.run_logger import RunLogger
from distgan.run import checkpoints as checkpoint
from distgan.run.checkpointer import RunState, find_checkpoint, restore, write_checkpoint
from distgan.run.files import read_status
from distgan.run.folder import FINISHED_STATES, RunFolder, explained
from distgan.run.preflight import check_agreement, check_batch, default_run_dir, start_table
from distgan.run.schedule import due, penalty_scale
from distgan.runtime.accelerator import COLLECTIVE_TIMEOUT, build_accelerator, die_with_launcher
from distgan.runtime.distributed import CoordinatedStop, current_world
from distgan.runtime.heartbeat import Heartbeat
from distgan.runtime.provenance import peak_memory_gb, provenance
from distgan.runtime.signals import Interrupt
from distgan.steps import discriminator_step, generator_step

NUM_SAMPLES = 64  # images of a grid


class Trainer:
    """One run on this process; `run` trains to the end, a signal or a collapse, and says which."""

    def __init__(
        self,
        config: Config,
        *,
        name: str,
        run_dir: Path | None,
        interrupt: Interrupt,
        command: list[str],
        open_folder: Callable[[Path], RunFolder] = RunFolder,
    ) -> None:
        die_with_launcher()
        self.config, self.name, self.interrupt, self.command = config, name, interrupt, command
        self.index, self.reader = open_dataset(config.data)
        self.total_images = total_images(config.train, self.reader.num_samples)
        self.accelerator, self.precision_reason = build_accelerator(config.train)
        self.world, self.device = current_world(), self.accelerator.device
        self.heartbeat = Heartbeat(self.world)
        check_batch(config, self.world)
        self.run_dir = run_dir or default_run_dir(name, config, self.index.fingerprint)
        self.folder = self.world.run_on_main(lambda: open_folder(self.run_dir))
        self.quality = Evaluator(
            self.reader, evaluation=config.evaluation, thresholds=config.collapse.thresholds,
            classes=config.data.classes, world=self.world, device=self.device, seed=config.train.seed,
        )  # fmt: skip
        check_agreement(config, self.index.fingerprint, self.quality, self.world)
        self.gan = self.build_gan()
        self.state, self.measured_at = (
            RunState(),
            -1,
        )  # images seen when norm statistics were last measured
        self.notes: list[str] = []  # on what differs from the run that is resumed
        self.resume()
        self.saved = (
            self.state.healthy_images,
            self.quality.best_value,
            self.quality.best_images,
        )  # in a checkpoint
        self.active = self.remedied(self.state.rollbacks)
        self.means = RunningMeans()
        self.looking = dict.fromkeys(("samples", "evaluations", "checkpoints"), 0.0)  # seconds
        self.coordinated_stop = CoordinatedStop(self.world, timeout=COLLECTIVE_TIMEOUT)

    def build_gan(self) -> GAN:
        """Networks that fit the images."""
        config, networks = self.config, self.config.networks
        channels, size, _ = self.index.image_shape
        spec = GeneratorSpec(
            architecture=networks.architecture,
            image_size=size,
            channels=channels,
            width=networks.generator_width,
            latent_dim=networks.latent_dim,
        )
        try:
            return build_gan(
                self.accelerator,
                spec,
                networks=networks,
                optim=config.optim,
                train=config.train,
                loss=config.loss,
            )
        except UserError:  # says by itself what to do
            raise
        except ValueError as error:
            raise UserError(
                f"{self.reader.files.source}: {error}; pack again with --size"
            ) from None

    def resume(self) -> None:
        """Go on from the newest whole checkpoint, where there is one."""
        found = self.world.run_on_main(
            lambda: find_checkpoint(self.run_dir, self.config, self.index.fingerprint)
        )
        contents = restore(
            found[:2] if found else None,
            gan=self.gan,
            quality=self.quality,
            world=self.world,
            device=self.device,
        )
        if contents is None:
            return
        self.state = RunState(**{name: contents[name] for name in vars(self.state)})
        self.notes = list(found[2]) if found else []
        if contents["world_size"] != self.world.size:
            self.notes.append(
                f"the world was {contents['world_size']} processes, now {self.world.size}"
            )

    def run(self) -> str:
        """Train; returns `done`, `preempted` or `collapsed`, the state that status.json holds.

        A run that died between its last checkpoint and its status still has its last words to say.
        """
        self.reporter = RunLogger(
            self.folder, name=self.name, config=self.config, wandb_id=self.state.wandb_id, total_images=self.total_images,
            epoch_images=self.reader.num_samples, equilibrium=equilibrium(self.config.loss),
        )  # fmt: skip
        self.state.wandb_id = self.reporter.wandb_id
        self.reporter.last_verdict = self.quality.verdict.name
        self.heartbeat.on_hang = lambda why: self.reporter.close(
            "failed", why, images_seen=self.state.images_seen
        )
        recorded = self.world.broadcast_from_main(lambda: read_status(self.run_dir)["state"])
        if self.state.images_seen >= self.total_images and recorded in FINISHED_STATES:
            self.reporter.already_done(images_seen=self.state.images_seen)
            self.heartbeat.close()
            return recorded
        self.announce()
        try:
            outcome = self.loop()
        except BaseException as error:
            cause, reason = self.heartbeat.find_cause(error)
            self.reporter.close("failed", reason, images_seen=self.state.images_seen)
            raise cause from None
        self.heartbeat.close()
        return outcome

    def announce(self) -> None:
        """Files and table of the start; rows of steps that will be taken again go."""
        table = start_table(
            self.config,
            reader=self.reader,
            gan=self.gan,
            quality=self.quality,
            world=self.world,
            total_images=self.total_images,
            precision_reason=self.precision_reason,
        )
        self.reporter.start(
            [("run folder", str(self.run_dir)), *table],
            config_toml=to_toml(self.config),
            provenance=provenance(self.accelerator, self.command, os.environ),
            images_seen=self.state.images_seen,
            notes=self.notes,
        )

    # ------------------------------------------------------------------------------------------------ loop

    def loop(self) -> str:
        """Done? report, samples, evaluation, checkpoint, break, one step: the first and the last step are like any."""
        log, every, epoch = self.config.log, self.every, self.reader.num_samples
        before = self.state.images_seen or -1  # nothing is due where a checkpoint was just loaded
        self.tick_began, self.tick_images = time.monotonic(), self.state.images_seen
        with Batches(
            self.reader,
            self.config,
            start=self.state.images_seen,
            rank=self.world.rank,
            world_size=self.world.size,
            device=self.device,
        ) as self.batches:
            while True:
                now = self.state.images_seen
                is_new = now != before
                done = now >= self.total_images
                stop = self.coordinated_stop.poll(self.interrupt.raised) and not done
                if done or stop or due(every(log.every_kimg, 400), before, now):
                    self.tick()
                if (
                    done
                    or before < epoch <= now
                    or due(every(log.samples_every_kimg, 20), before, now)
                ):
                    self.save_samples()
                evaluated = (done and is_new) or due(
                    every(self.config.evaluation.every_kimg, 10), max(before, 0), now
                )
                if evaluated and not stop:
                    self.evaluate()
                collapsed = self.react()
                ending = done or stop or collapsed is not None
                if (
                    (ending and is_new)
                    or evaluated
                    or due(every(self.config.checkpoint.every_kimg, 20), before, now)
                ):
                    self.save_checkpoint(must=ending)
                if ending:
                    break
                before = now
                self.step()
        self.coordinated_stop.close()
        return self.finish(interrupted=stop, collapsed=collapsed)

    def every(self, kimg: float | None, parts: int) -> float:
        """An interval in images: the setting, or a part of the run."""
        return kimg * 1000 if kimg is not None else self.total_images / parts

    def step(self) -> None:
        """One generator step after `d_steps` discriminator steps, each on the next batch of reals."""
        train, loss, gan = self.config.train, self.active.loss, self.gan
        progress = self.state.images_seen / self.total_images
        rolled_back = self.config.collapse.lr_factor**self.state.rollbacks
        gan.set_optimizers(
            self.active.optim, lr_factor=rolled_back * lr_schedule(self.active.optim, progress)
        )
        for d_step in range(train.d_steps):
            batch_start = self.state.images_seen + d_step * train.batch_size
            batches = self.batches.next(batch_start, rollbacks=self.state.rollbacks)
            # One micro-batch: the generator learns from the very fakes the discriminator has just seen. Several would
            # have to keep a graph each, so there they are made anew.
            keep_graph = train.accumulate == 1 and d_step == train.d_steps - 1
            fakes, statistics = discriminator_step(
                gan,
                batches,
                loss=loss,
                penalty_scale=penalty_scale(
                    loss, batch_start // train.batch_size, progress=progress
                ),
                keep_graph=keep_graph,
            )
            if loss.augment_target is not None:
                gan.adapt_augmentation(
                    statistics["accuracy/d_real"], loss, images=train.batch_size, world=self.world
                )
                statistics["progress/augment"] = gan.augment_probability
            self.means.add(statistics)
        self.means.add(generator_step(gan, batches, loss=loss, fakes=fakes if keep_graph else None))
        self.last_fakes = fakes[-1].detach()
        self.state.images_seen += train.batch_size * train.d_steps
        gan.settle(
            self.active.optim,
            num_images=train.batch_size * train.d_steps,
            images_seen=self.state.images_seen,
        )

    # ------------------------------------------------------------------------------------------------ maintenance

    def tick(self) -> None:
        """Reduce the statistics of the steps since the last tick, report them and hold them against the verdict."""
        if self.means.sums:
            self.means.add(self.quality.signals(self.last_fakes))
        # Equal on all ranks to the last bit, for they decide by them together.
        statistics = self.world.broadcast_object(self.means.reduce(self.world))
        now = time.monotonic()
        seconds, self.tick_began = now - self.tick_began, now
        self.state.train_seconds += seconds
        if not statistics:
            return
        balance = dict(zip(("loss/d", "loss/g"), equilibrium(self.active.loss), strict=True))
        self.reporter.row(
            {
                "progress/kimg": self.state.images_seen / 1000,
                "progress/images": self.state.images_seen,
                "progress/epoch": self.state.images_seen / self.reader.num_samples,
                **statistics,
                **{
                    f"{name}_relative": statistics[name] / level
                    for name, level in balance.items()
                    if level
                },
                "time/images_per_sec": (self.state.images_seen - self.tick_images) / seconds,
                "time/data_wait_frac": self.batches.wait_seconds / seconds,
                "time/train_sec": self.state.train_seconds,
                "memory/peak_gb": peak_memory_gb(self.device),
            }
        )
        self.tick_images, self.batches.wait_seconds = self.state.images_seen, 0.0
        self.reporter.verdict(self.quality.tick(statistics), images_seen=self.state.images_seen)

    def save_samples(self) -> None:
        """A grid of the averaged generator on the same latents as ever; beside it, once, a grid of reals."""
        began = time.monotonic()
        self.measure_statistics()
        if self.world.is_main:
            latents = sample_latents(NUM_SAMPLES, self.gan.spec, seed=self.config.train.seed)
            fakes = generate(self.gan.ema.generator, latents.to(self.device))
            reals = None
            if not (self.folder.samples / "reals.png").exists():
                reals = torch.from_numpy(
                    self.reader.gather(np.arange(min(NUM_SAMPLES, self.reader.num_samples)))
                )
            self.reporter.samples(to_uint8(fakes), reals, images_seen=self.state.images_seen)
        self.looking["samples"] += time.monotonic() - began

    def evaluate(self) -> None:
        """Score the averaged generator on all ranks and tell what was found."""
        began = time.monotonic()
        self.measure_statistics()
        result, verdict, is_best = self.quality.evaluate(
            self.gan.ema.generator,
            self.gan.spec.latent_dim,
            images_seen=self.state.images_seen,
        )
        self.reporter.evaluation(result, is_best=is_best, images_seen=self.state.images_seen)
        self.reporter.verdict(verdict, images_seen=self.state.images_seen)
        self.looking["evaluations"] += time.monotonic() - began

    def react(self) -> str | None:
        """Do what collapse.action says about a collapse; the reason where the run must end, else None."""
        verdict, collapse = self.quality.verdict, self.config.collapse
        if not verdict.is_collapse:
            return None
        if collapse.action == "rollback":
            if self.state.rollbacks >= collapse.max_rollbacks:
                return f"{verdict}; gave up after {self.state.rollbacks} rollbacks"
            self.roll_back()
            return None
        if verdict.name == "diverged":
            raise RunFailed(
                f"{verdict} at {self.state.images_seen / 1000:g} kimg; its checkpoints are kept; start another run with "
                "lower optim.lr_g and optim.lr_d, or go on from the last checkpoint with collapse.action=rollback"
            )
        return str(verdict) if collapse.action == "stop" else None

    def roll_back(self) -> None:
        """Put the last healthy checkpoint, or else the first, in place with the remedy; images seen go on forward."""
        verdict, name = self.quality.verdict, checkpoint.checkpoint_name(self.state.healthy_images)
        found = self.world.run_on_main(lambda: checkpoint.load(self.folder.checkpoints / name))
        restore(found, gan=self.gan, quality=self.quality, world=self.world, device=self.device)
        self.quality.monitor.forgive()
        self.state.rollbacks += 1
        self.active = self.remedied(self.state.rollbacks)
        if self.active.loss.augment_probability != self.config.loss.augment_probability:
            self.gan.augment_probability.fill_(self.active.loss.augment_probability)
        self.means = RunningMeans()
        self.reporter.event(
            "rollback",
            f"{verdict}: rollback {self.state.rollbacks} of {self.config.collapse.max_rollbacks} "
            f"to {self.state.healthy_images / 1000:g} kimg",
            images_seen=self.state.images_seen,
        )

    def remedied(self, rollbacks: int) -> Config:
        """The settings in force after so many rollbacks."""
        return (
            with_overrides(self.config, self.config.collapse.remedy) if rollbacks else self.config
        )

    def save_checkpoint(self, *, must: bool) -> None:
        """All ranks: check that replicas are equal, then rank zero writes; `must` makes a full disk an error."""
        began = time.monotonic()
        if self.quality.verdict.name == "healthy":
            self.state.healthy_images = self.state.images_seen
        self.measure_statistics()
        self.gan.check_replicas(self.world)
        if self.world.broadcast_from_main(lambda: self.write_checkpoint(must=must)):
            self.saved = (
                self.state.healthy_images,
                self.quality.best_value,
                self.quality.best_images,
            )
        else:
            self.state.healthy_images, self.quality.best_value, self.quality.best_images = (
                self.saved
            )
        self.looking["checkpoints"] += time.monotonic() - began

    def measure_statistics(self) -> None:
        """Make the averaged generator's norm statistics those of its present weights, once a step."""
        if self.measured_at != self.state.images_seen:
            self.gan.refresh_statistics(self.world, seed=self.config.train.seed)
            self.measured_at = self.state.images_seen

    def write_checkpoint(self, *, must: bool) -> bool:
        """Rank zero: write, or say why not; whether it was written."""
        try:
            write_checkpoint(
                self.folder.checkpoints,
                self.state,
                gan=self.gan,
                quality=self.quality,
                config=self.config,
                fingerprint=self.index.fingerprint,
                world_size=self.world.size,
            )
        except OSError as error:
            text = f"could not save a checkpoint to {self.folder.checkpoints}: {error.strerror or error}"
            if must:
                raise UserError(
                    f"{text}; make room and type the same command to go on from the one before"
                ) from None
            self.reporter.event(
                "warning", f"{text}; the one before is kept", images_seen=self.state.images_seen
            )
            return False
        return True

    def finish(self, *, interrupted: bool, collapsed: str | None) -> str:
        """Write the generator and close; says how the run ended."""
        images_seen = self.state.images_seen
        if self.world.is_main:
            facts = {
                "images_seen": images_seen,
                "dataset": self.index.fingerprint,
                "weights": "moving average",
            }
            with explained(self.folder.path):
                save_generator(self.gan.ema.generator, self.gan.spec, self.folder.path, facts=facts)
        outcome, reason = "done", f"trained to the end; {self.quality.verdict}"
        if collapsed is not None:
            outcome, reason = "collapsed", collapsed
        elif interrupted:
            seconds = time.monotonic() - self.interrupt.since if self.interrupt.raised else 0.0
            signal = self.interrupt.signal_name or "a signal on another rank"
            outcome, reason = "preempted", f"{signal}; saved {seconds:.1f} s after it"
        self.reporter.time_table(self.looking, train_seconds=self.state.train_seconds)
        self.reporter.close(outcome, reason, images_seen=images_seen)
        return outcome
