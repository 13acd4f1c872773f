"""The spine of a run: build, resume, loop, maintenance, close. The one file that sees the whole Config.

Time is `images_seen`, the real images consumed over all processes: image order, latents, flips, moving average and all
intervals derive from that one integer, so a run resumes from it and is the same on any number of processes.
"""

import math
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distgan import checkpoint
from distgan.config import (
    Config,
    changed_from_defaults,
    flat_values,
    identity_hash,
    to_toml,
    total_images,
)
from distgan.dataset import open_dataset
from distgan.distributed import Consensus, current_world
from distgan.errors import RunFailed, UserError
from distgan.generators import generate, sample_latents, save_generator
from distgan.interrupt import Interrupt
from distgan.networks import GeneratorSpec
from distgan.objectives.adversarial import ADVERSARIAL
from distgan.players import Players, build_players
from distgan.randomness import normal, uniform
from distgan.reporting.images import to_uint8
from distgan.reporting.metrics import RunningMeans
from distgan.reporting.reporter import Reporter
from distgan.resume import find_checkpoint, spread_tensors
from distgan.runfolder import RunFolder
from distgan.runtime import COLLECTIVE_TIMEOUT, build_accelerator, hardware, provenance, stop_with_launcher
from distgan.steps import discriminator_step, generator_step
from shards.order import order_key
from shards.reader import BatchStream

NUM_SAMPLES = 64  # images of a grid


def due(interval: float, before: int, now: int) -> bool:
    """Whether a multiple of the interval (in images) lies after `before` and not after `now`."""
    return math.floor(now / interval) > math.floor(before / interval)


class Trainer:
    """One run on this process; `run` trains to the end, or to a signal, and says which."""

    def __init__(
        self, config: Config, *, name: str, run_dir: Path | None, interrupt: Interrupt, command: list[str]
    ) -> None:
        stop_with_launcher()
        self.config, self.interrupt, self.command = config, interrupt, command
        self.index, self.reader = open_dataset(config.data)
        self.total_images = total_images(config.train, self.reader.num_samples)
        self.accelerator, self.precision_reason = build_accelerator(config.train)
        self.world, self.device = current_world(), self.accelerator.device
        self.images_per_step = config.train.batch_size * config.train.d_steps
        self.micro_batch = self.split_batch()
        self.run_dir = run_dir or Path("runs") / f"{name}-{identity_hash(config, self.index.fingerprint)}"
        self.folder = self.on_main(lambda: RunFolder(self.run_dir))
        self.players = self.build_players()
        self.images_seen = 0
        self.train_seconds = 0.0
        self.wandb_id: str | None = None
        self.finished_before = self.resume()
        self.means = RunningMeans()
        self.consensus = Consensus(self.world, timeout=COLLECTIVE_TIMEOUT)

    def on_main(self, action: Callable[[], Any]) -> Any:
        """Do something on rank zero only; a user's mistake there ends all ranks together. Others get None."""
        result, mistake = None, None
        if self.world.is_main:
            try:
                result = action()
            except UserError as error:
                mistake = str(error)
        mistake = self.world.broadcast_object(mistake)
        if mistake is not None:
            raise UserError(mistake)
        return result

    def split_batch(self) -> int:
        """Images of one micro-batch; raises UserError where the batch cannot be split evenly."""
        train, parts = self.config.train, self.world.size * self.config.train.accumulate
        if train.batch_size % parts:
            below, above = train.batch_size // parts * parts, (train.batch_size // parts + 1) * parts
            near = f"{below} or {above}" if below else str(above)
            raise UserError(
                f"train.batch_size={train.batch_size} cannot be split over {self.world.size} processes x "
                f"{train.accumulate} micro-batches; use {near}"
            )
        return train.batch_size // parts

    def build_players(self) -> Players:
        """Networks that fit the images."""
        networks = self.config.networks
        channels, size, _ = self.index.image_shape
        spec = GeneratorSpec(networks.architecture, size, channels, networks.generator_width, networks.latent_dim)
        try:
            return build_players(
                self.accelerator, spec, networks=networks, optim=self.config.optim, train=self.config.train
            )
        except ValueError as error:
            raise UserError(f"{self.index.path}: {error}; pack again with --size") from None

    def resume(self) -> bool:
        """Go on from the newest whole checkpoint, read by rank zero for all; true where the run was already done."""
        found = self.on_main(lambda: find_checkpoint(self.run_dir, self.config, self.index.fingerprint))
        nothing: tuple[checkpoint.Tensors, dict[str, Any] | None, list[str]] = ({}, None, [])
        self.notes: list[str]
        tensors, state, self.notes = found or nothing
        state = self.world.broadcast_object(state)
        if state is None:
            return False
        self.players.unpack(spread_tensors(tensors, self.world, self.device), state["players"])
        self.images_seen, self.train_seconds = state["images_seen"], state["train_seconds"]
        self.wandb_id = state["wandb_id"]
        if state["world_size"] != self.world.size:
            self.notes.append(f"the world was {state['world_size']} processes, now {self.world.size}")
        return self.images_seen >= self.total_images

    def save_checkpoint(self, *, must: bool) -> None:
        """All ranks: check that replicas are equal, then rank zero writes; `must` makes a full disk an error."""
        self.players.check_replicas(self.world)
        self.on_main(lambda: self.write_checkpoint(must=must))

    def write_checkpoint(self, *, must: bool) -> None:
        """Rank zero: save, then remove older ones."""
        tensors, players = self.players.pack()
        state = {
            "train_seconds": self.train_seconds,
            "wandb_id": self.wandb_id,
            "config": flat_values(self.config),
            "fingerprint": self.index.fingerprint,
            "world_size": self.world.size,
            "generator": self.players.spec.to_dict(),
            "players": players,
        }
        try:
            checkpoint.save(self.folder.checkpoints, images_seen=self.images_seen, tensors=tensors, state=state)
        except OSError as error:
            text = f"could not save a checkpoint to {self.folder.checkpoints}: {error.strerror or error}"
            if must:
                raise UserError(f"{text}; make room and type the same command to go on from the one before") from None
            self.reporter.event("warning", f"{text}; the one before is kept", images_seen=self.images_seen)
            return
        checkpoint.prune(self.folder.checkpoints, keep=self.config.checkpoint.keep)

    # ------------------------------------------------------------------------------------------------ loop

    def run(self) -> str:
        """Train; returns `done` or `preempted`, the state that status.json holds."""
        self.reporter = Reporter(
            self.folder,
            config=self.config,
            wandb_id=self.wandb_id,
            total_images=self.total_images,
            epoch_images=self.reader.num_samples,
            equilibrium=ADVERSARIAL[self.config.loss.adversarial].equilibrium,
        )
        self.wandb_id = self.reporter.wandb_id
        if self.finished_before:
            kimg = f"{self.images_seen / 1000:g} kimg"
            again = "longer: train.epochs or train.kimg; another: --run-dir DIR or train.seed=1"
            self.reporter.say(f"{self.run_dir} is done at {kimg}; {again}")
            if self.folder is not None:
                self.folder.close()
            self.accelerator.end_training()
            return "done"
        self.announce()
        try:
            state = self.loop()
        except BaseException as error:
            self.reporter.close(
                "failed",
                str(error).splitlines()[0] if str(error) else type(error).__name__,
                images_seen=self.images_seen,
            )
            raise
        self.accelerator.end_training()
        return state

    def announce(self) -> None:
        """Files and table of the start; rows of steps that will be taken again go."""
        size, channels = self.players.spec.image_size, self.players.spec.channels
        num_parameters = [
            sum(p.numel() for p in network.parameters()) / 1e6 for network in list(self.players.networks().values())[:2]
        ]
        train, world = self.config.train, self.world.size
        split = (
            f" = {world} processes x {train.accumulate} x {self.micro_batch}" if world * train.accumulate > 1 else ""
        )
        rows = [
            ("data", f"{self.reader.num_samples:,} images, {size}x{size}, {channels} channels, {self.index.path}"),
            ("run folder", str(self.run_dir)),
            ("length", f"{self.total_images / 1000:,g} kimg, {self.total_images / self.reader.num_samples:.4g} epochs"),
            ("world", f"{world} process{'es' if world > 1 else ''} on {hardware(self.device)}"),
            ("precision", f"{self.accelerator.mixed_precision}: {self.precision_reason}"),
            ("networks", f"generator {num_parameters[0]:.2f}M, discriminator {num_parameters[1]:.2f}M parameters"),
            ("batch", f"{train.batch_size}{split}"),
            *changed_from_defaults(self.config).items(),
        ]
        if self.device.type == "cuda" and world == 1 < torch.cuda.device_count():
            rows.append(
                (
                    "idle",
                    f"{torch.cuda.device_count() - 1} GPUs; add --multi_gpu --num_processes {torch.cuda.device_count()}",
                )
            )
        self.reporter.start(
            rows,
            config_toml=to_toml(self.config),
            provenance=provenance(self.accelerator, self.command, os.environ),
            images_seen=self.images_seen,
            notes=self.notes,
        )

    def loop(self) -> str:
        """Done? report, samples, checkpoint, break, one step; so the first and the last step pass through the same code."""
        log, every = self.config.log, self.every
        epoch = self.reader.num_samples
        before = self.images_seen if self.images_seen else -1  # nothing is due where a checkpoint was just loaded
        self.tick_began, self.tick_images, self.wait_seconds = time.monotonic(), self.images_seen, 0.0
        with BatchStream(
            self.reader,
            key=order_key(self.index.fingerprint, self.config.train.seed),
            start=self.images_seen,
            batch_size=self.config.train.batch_size,
            rank=self.world.rank,
            world=self.world.size,
        ) as batches:
            while True:
                done = self.images_seen >= self.total_images
                stop = self.consensus.poll(self.interrupt.raised) and not done
                if done or stop or due(every(log.every_kimg, 400), before, self.images_seen):
                    self.tick()
                if (
                    done
                    or before < epoch <= self.images_seen
                    or due(every(log.samples_every_kimg, 20), before, self.images_seen)
                ):
                    self.save_samples()
                if done or stop or due(every(self.config.checkpoint.every_kimg, 20), before, self.images_seen):
                    self.save_checkpoint(must=done or stop)
                if done or stop:
                    break
                before = self.images_seen
                self.step(batches)
        self.consensus.close()
        return self.finish(interrupted=stop)

    def every(self, kimg: float | None, parts: int) -> float:
        """An interval in images: the setting, or a part of the run."""
        return kimg * 1000 if kimg is not None else self.total_images / parts

    def step(self, batches: BatchStream) -> None:
        """One generator step after `d_steps` discriminator steps, each on the next batch of reals."""
        train = self.config.train
        loss = ADVERSARIAL[self.config.loss.adversarial]
        for d_step in range(train.d_steps):
            positions = (
                self.images_seen + d_step * train.batch_size + self.world.rank * (train.batch_size // self.world.size)
            )
            reals, latents = self.next_reals(batches, positions), self.latents(positions)
            # One micro-batch: the generator learns from the very fakes the discriminator has just seen. Several would
            # have to keep a graph each, so there they are made anew.
            keep_graph = train.accumulate == 1 and d_step == train.d_steps - 1
            fakes, statistics = discriminator_step(
                self.players, reals=reals, latents=latents, loss=loss,
                label_smoothing=self.config.loss.label_smoothing, keep_graph=keep_graph,
            )  # fmt: skip
            self.means.add(statistics)
        self.means.add(generator_step(self.players, fakes=fakes if keep_graph else None, latents=latents, loss=loss))
        self.images_seen += self.images_per_step
        if not self.players.optimizer_g.step_was_skipped:
            self.players.ema.update(
                self.players.bare_generator, batch_size=self.images_per_step, images_seen=self.images_seen
            )

    def positions(self, first: int) -> Tensor:
        """Numbers of this rank's images of a batch, int64 on the device."""
        return torch.arange(first, first + self.micro_batch * self.config.train.accumulate, device=self.device)

    def next_reals(self, batches: BatchStream, first: int) -> list[Tensor]:
        """This rank's share of the next batch as micro-batches [b, C, H, W] in [-1, 1], mirrored where so drawn."""
        began = time.monotonic()
        pixels = next(batches)
        self.wait_seconds += time.monotonic() - began
        images = pixels.to(self.device, non_blocking=True).to(memory_format=torch.channels_last).float() / 127.5 - 1.0
        if self.config.data.flip:
            mirrored = uniform((), self.positions(first), seed=self.config.train.seed, purpose="flip") < 0.5
            images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
        return list(images.split(self.micro_batch))

    def latents(self, first: int) -> list[Tensor]:
        """Latents [b, Z] for this rank's share of the batch, as micro-batches."""
        shape = (self.config.networks.latent_dim,)
        return list(
            normal(shape, self.positions(first), seed=self.config.train.seed, purpose="latents").split(self.micro_batch)
        )

    # ------------------------------------------------------------------------------------------------ maintenance

    def tick(self) -> None:
        """Reduce the statistics of the steps since the last tick and report them; stops a run that has diverged."""
        statistics = self.means.reduce(self.world)
        now = time.monotonic()
        seconds, self.tick_began = now - self.tick_began, now
        self.train_seconds += seconds
        if not statistics:
            return
        row = {
            "progress/kimg": self.images_seen / 1000,
            "progress/images": self.images_seen,
            "progress/epoch": self.images_seen / self.reader.num_samples,
            **statistics,
            "time/images_per_sec": (self.images_seen - self.tick_images) / seconds,
            "time/data_wait_frac": self.wait_seconds / seconds,
            "time/train_sec": self.train_seconds,
            "memory/peak_gb": self.peak_memory_gb(),
        }
        self.tick_images, self.wait_seconds = self.images_seen, 0.0
        self.reporter.row(row)
        broken = [name for name, value in statistics.items() if not math.isfinite(value)]
        if broken:
            raise RunFailed(
                f"the run diverged: {', '.join(broken)} not finite at {self.images_seen / 1000:g} kimg; "
                "its checkpoints are kept; lower optim.lr_g and optim.lr_d"
            )

    def peak_memory_gb(self) -> float:
        """Most memory held so far, on the GPU or of this process."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 1e9
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9

    def save_samples(self) -> None:
        """A grid of the averaged generator on the same latents as ever; beside it, once, a grid of reals."""
        self.players.refresh_statistics(self.world, seed=self.config.train.seed)
        if not self.world.is_main:
            return
        fakes = generate(
            self.players.ema.generator,
            sample_latents(NUM_SAMPLES, self.players.spec, seed=self.config.train.seed).to(self.device),
        )
        reals = None
        if not (self.folder.samples / "reals.png").exists():
            reals = torch.from_numpy(self.reader.gather(np.arange(min(NUM_SAMPLES, self.reader.num_samples))))
        self.reporter.samples(to_uint8(fakes), reals, images_seen=self.images_seen)

    def finish(self, *, interrupted: bool) -> str:
        """Write the generator and close; says how the run ended."""
        self.players.refresh_statistics(self.world, seed=self.config.train.seed)
        if self.world.is_main:
            facts = {"images_seen": self.images_seen, "dataset": self.index.fingerprint, "weights": "moving average"}
            save_generator(self.players.ema.generator, self.players.spec, self.folder.path, facts=facts)
        if interrupted:
            seconds = time.monotonic() - self.interrupt.since if self.interrupt.raised else 0.0
            reason = f"{self.interrupt.signal_name or 'a signal on another rank'}; saved {seconds:.1f} s after it"
            self.reporter.close("preempted", reason, images_seen=self.images_seen)
            return "preempted"
        self.reporter.close("done", "trained to the end", images_seen=self.images_seen)
        return "done"
