"""One GAN a class: an ordinary run for each class, one after the other in one process group, then all joined into one sampler.

run folder  classes/<number>-<name>/   ordinary run folders, each as `data.classes=[name]` alone would have written it
            status.json                of the whole: of the class that is being trained, then of all together
            generator.safetensors      the mixture, scored against the whole dataset as one generator
"""

import gc
import itertools
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distgan.config.flat import to_toml
from distgan.config.schema import Config, total_images
from distgan.data import open_dataset
from distgan.errors import UserError
from distgan.evaluation.evaluator import Evaluator
from distgan.evaluation.verdict import judge
from distgan.images import save_grid, to_uint8
from distgan.losses.adversarial import equilibrium
from distgan.networks.build import build_generator
from distgan.networks.generator_file import load_generator, save_generator
from distgan.networks.latents import generate, sample_latents
from distgan.networks.mixture import Mixture, MixtureSpec, choose_class, mixture_spec
from distgan.reporting.console import say, show_table
from distgan.reporting.run_logger import RunLogger
from distgan.run.checkpointer import find_checkpoint
from distgan.run.files import read_rows, read_status
from distgan.run.folder import FINISHED_STATES, RunFolder, explained, write_atomically
from distgan.run.preflight import check_agreement, default_run_dir
from distgan.runtime.accelerator import build_accelerator, die_with_launcher
from distgan.runtime.distributed import current_world
from distgan.runtime.heartbeat import Heartbeat
from distgan.runtime.provenance import provenance
from distgan.runtime.signals import Interrupt
from distgan.trainer import NUM_SAMPLES, Trainer
from shards.reader import ShardReader

COLUMNS = 8  # images a class in classes.png


@dataclass(frozen=True)
class ClassShare:
    """One class with its part of the run."""

    number: int
    name: str
    num_samples: int
    total_images: int  # length of its run

    @property
    def folder(self) -> str:
        """The name of its run folder; the number keeps apart what file systems do not."""
        return f"{self.number}-{re.sub(r'[^A-Za-z0-9._]+', '_', self.name)[:40]}"


def share_out(num_batches: int, counts: list[int]) -> list[int]:
    """Batches a class, `num_batches` together, in proportion to the counts: every class gets the same number of epochs."""
    ends = [
        round(num_batches * passed / sum(counts))
        for passed in itertools.accumulate(counts, initial=0)
    ]
    return [stop - start for start, stop in itertools.pairwise(ends)]


def class_shares(config: Config, reader: ShardReader) -> list[ClassShare]:
    """The classes of the run, which together consume just the batches that one GAN would; raises UserError."""
    index, train, source = reader.index, config.train, reader.files.source
    if index.class_names is None or index.class_counts is None:
        raise UserError(
            f"{source} has no labels, and networks.per_class=true trains one GAN a class; "
            "pack a source whose images lie in class folders, or leave networks.per_class out"
        )
    wanted = index.class_names if config.data.classes is None else config.data.classes
    chosen = [number for number, name in enumerate(index.class_names) if name in wanted]
    if len(chosen) < 2:
        raise UserError(
            f"{source}: a GAN a class of only one class is an ordinary GAN; leave networks.per_class out"
        )
    counts = [index.class_counts[number] for number in chosen]
    images = train.batch_size * train.d_steps
    num_batches = math.ceil(total_images(train, reader.num_samples) / images)
    shares = [
        ClassShare(number, index.class_names[number], count, batches * images)
        for number, count, batches in zip(
            chosen, counts, share_out(num_batches, counts), strict=True
        )
    ]
    if small := [share for share in shares if share.num_samples < train.batch_size]:
        names = ", ".join(f"{share.name} ({share.num_samples} images)" for share in small)
        raise UserError(
            f"{source}: fewer images than train.batch_size={train.batch_size} in {names}; "
            f"use train.batch_size={min(counts)} or less, or name the larger classes in data.classes"
        )
    if short := [share.name for share in shares if share.total_images == 0]:
        raise UserError(
            f"{num_batches * images / 1000:g} kimg shared out over {len(shares)} classes leave no batch for "
            f"{', '.join(short)}; set a longer train.epochs or train.kimg"
        )
    return shares


class ClassFolder(RunFolder):
    """The run folder of a class while the whole is trained: how the class fares is how the whole fares."""

    def __init__(self, path: Path, *, whole: RunFolder, name: str, images_before: int) -> None:
        super().__init__(path)
        self.whole, self.name, self.images_before = whole, name, images_before

    def write_status(self, state: str, reason: str, *, images_seen: int, verdict: str = "") -> None:
        """status.json of both; a class that is done leaves the whole running."""
        super().write_status(state, reason, images_seen=images_seen, verdict=verdict)
        sentence, images = f"class {self.name}: {reason}", self.images_before + images_seen
        self.whole.write_status(
            "running" if state == "done" else state, sentence, images_seen=images
        )
        if state != "running":
            self.whole.add_event(
                "class" if state == "done" else state, sentence, images_seen=images
            )


class PerClass:
    """One run of one GAN a class on this process; `run` trains what is missing, joins, and says how it ended."""

    def __init__(
        self,
        config: Config,
        *,
        name: str,
        run_dir: Path | None,
        interrupt: Interrupt,
        command: list[str],
    ) -> None:
        die_with_launcher()
        self.config, self.name, self.interrupt, self.command = config, name, interrupt, command
        self.index, self.reader = open_dataset(config.data)
        self.shares = class_shares(config, self.reader)
        only = config.networks.only_class
        if only is not None and only not in [share.number for share in self.shares]:
            choice = ", ".join(f"{share.number} {share.name}" for share in self.shares)
            raise UserError(f"networks.only_class={only}: no such class; choose from {choice}")
        self.accelerator, _ = build_accelerator(config.train)
        self.world, self.device = current_world(), self.accelerator.device
        self.run_dir = run_dir or default_run_dir(name, config, self.index.fingerprint)
        os.environ.setdefault("WANDB_RUN_GROUP", self.run_dir.name)

    def run(self) -> str:
        """Train; returns `done`, `preempted` or `collapsed`. One class alone leaves the files of the whole as they are."""
        only = self.config.networks.only_class
        if only is not None:
            return self.trainer(next(share for share in self.shares if share.number == only)).run()
        self.folder: RunFolder | None = self.world.run_on_main(self.open_folder)
        trained = self.world.broadcast_from_main(self.images_of_classes)
        outcome = self.train_classes(trained)
        if outcome == "done":
            return self.join(sum(trained.values()))
        if self.folder is not None:
            self.folder.close()
        return outcome

    def train_classes(self, trained: dict[int, int]) -> str:
        """Train the classes that are not yet, images seen by each in `trained`; the outcome of the last."""
        ended = self.world.broadcast_from_main(
            lambda: [
                read_status(self.class_dir(s))["state"] in FINISHED_STATES for s in self.shares
            ]
        )
        for share, has_ended in zip(self.shares, ended, strict=True):
            if trained[share.number] >= share.total_images and has_ended:
                continue
            try:
                trainer = self.trainer(
                    share, images_before=sum(trained.values()) - trained[share.number]
                )
            except UserError as error:
                if self.folder is not None:
                    self.folder.write_status(
                        "failed", f"class {share.name}: {error}", images_seen=sum(trained.values())
                    )
                raise
            outcome = trainer.run()
            trained[share.number] = trainer.state.images_seen
            del trainer
            gc.collect()  # networks and optimizers hang in cycles, and a GPU has room for those of one class
            if outcome != "done":
                return outcome
        return "done"

    def open_folder(self) -> RunFolder:
        """Rank zero: the folder of the whole run, which says what it is from the start."""
        folder = RunFolder(self.run_dir)
        if any(folder.checkpoints.iterdir()):
            raise UserError(
                f"{self.run_dir} holds a run of one GAN; choose another folder with --run-dir"
            )
        with explained(folder.path):
            write_atomically(folder.path / "config.toml", to_toml(self.config))
        counts = [share.num_samples for share in self.shares]
        kimg = [share.total_images / 1000 for share in self.shares]
        rows = [
            ("run folder", str(self.run_dir)),
            ("data", f"{sum(counts):,} images, {self.reader.files.source}"),
            ("length", f"{sum(kimg):,g} kimg, shared out over {len(counts)} classes"),
            *(
                (f"class {s.name}", f"{s.num_samples:,} images, {s.total_images / 1000:,g} kimg")
                for s in self.shares
            ),
        ]
        show_table("distgan, one GAN a class", rows)
        return folder

    def class_config(self, share: ClassShare) -> Config:
        """The settings of an ordinary run on one class."""
        config = self.config
        return config.model_copy(
            update={
                "data": config.data.model_copy(update={"classes": (share.name,)}),
                "networks": config.networks.model_copy(
                    update={"per_class": False, "only_class": None}
                ),
                "train": config.train.model_copy(
                    update={"kimg": share.total_images / 1000, "epochs": None}
                ),
            }
        )

    def class_dir(self, share: ClassShare) -> Path:
        """Where the run of a class lies."""
        return self.run_dir / "classes" / share.folder

    def images_of_classes(self) -> dict[int, int]:
        """Rank zero: images seen by each class in its newest checkpoint; raises UserError for one of other settings."""
        images = {}
        for share in self.shares:
            found = find_checkpoint(
                self.class_dir(share), self.class_config(share), self.index.fingerprint
            )
            images[share.number] = found[1]["images_seen"] if found else 0
        return images

    def trainer(self, share: ClassShare, *, images_before: int = 0) -> Trainer:
        """The run of one class."""

        def open_folder(path: Path) -> RunFolder:
            if self.config.networks.only_class is not None:
                return RunFolder(path)
            assert self.folder is not None, "only rank zero opens folders"
            return ClassFolder(
                path, whole=self.folder, name=share.name, images_before=images_before
            )

        return Trainer(
            self.class_config(share),
            name=share.folder,
            run_dir=self.class_dir(share),
            interrupt=self.interrupt,
            command=self.command,
            open_folder=open_folder,
        )

    # ------------------------------------------------------------------------------------------------ joining

    def join(self, images_seen: int) -> str:
        """All classes are trained: one generator of them, scored on all ranks against the whole dataset."""
        reporter = RunLogger(
            self.folder,
            name=self.name,
            config=self.config,
            wandb_id=None,
            total_images=images_seen,
            epoch_images=self.reader.num_samples,
            equilibrium=equilibrium(self.config.loss),
        )
        if self.world.broadcast_from_main(lambda: self.is_joined(images_seen)):
            reporter.already_done(images_seen=images_seen)
            return "done"
        heartbeat = Heartbeat(self.world)
        heartbeat.on_hang = lambda why: reporter.close("failed", why, images_seen=images_seen)
        try:
            outcome, reason = self.join_classes(reporter, images_seen)
        except BaseException as error:
            cause, reason = heartbeat.find_cause(error)
            reporter.close("failed", reason, images_seen=images_seen)
            raise cause from None
        reporter.close(outcome, reason, images_seen=images_seen)
        heartbeat.close()
        return outcome

    def is_joined(self, images_seen: int) -> bool:
        """Whether the mixture of these very classes has been written and scored."""
        status = read_status(self.run_dir)
        return (status["state"], status["images_seen"]) == ("done", images_seen)

    def join_classes(self, reporter: RunLogger, images_seen: int) -> tuple[str, str]:
        """Build, score, show and save the mixture; the outcome and why."""
        raised = torch.tensor(float(self.interrupt.raised), device=self.device)
        if self.world.all_reduce_sum(raised) > 0:
            return (
                "preempted",
                f"{self.interrupt.signal_name or 'a signal'}; all classes are trained and not yet joined",
            )
        mixture, spec = self.build_mixture()
        table = [
            ("joined", f"{len(spec.classes)} generators into one of latents [{spec.latent_dim}]")
        ]
        reporter.start(
            table,
            config_toml=to_toml(self.config),
            provenance=provenance(self.accelerator, self.command, os.environ),
            images_seen=0,  # rows of an earlier joining go
            notes=[],
        )
        if self.folder is not None:
            self.folder.write_status("running", "joining the classes", images_seen=images_seen)
            self.folder.add_metrics(self.sums(images_seen))
        quality = Evaluator(
            self.reader,
            evaluation=self.config.evaluation,
            thresholds=self.config.collapse.thresholds,
            classes=self.config.data.classes,
            world=self.world,
            device=self.device,
            seed=self.config.train.seed,
        )
        check_agreement(self.config, self.index.fingerprint, quality, self.world)
        result, _, _ = quality.evaluate(mixture, spec.latent_dim, images_seen=images_seen)
        verdict = judge(result, self.config.collapse.thresholds)
        reporter.evaluation(result, is_best=True, images_seen=images_seen)
        reporter.verdict(verdict, images_seen=images_seen)
        if self.folder is not None:
            self.show(mixture, spec, reporter, images_seen)
            facts = {
                "images_seen": images_seen,
                "dataset": self.index.fingerprint,
                "weights": "moving average",
            }
            with explained(self.folder.path):
                save_generator(mixture, spec, self.folder.path, facts=facts)
        return "done", f"one GAN a class trained to the end; {verdict}"

    def build_mixture(self) -> tuple[Mixture, MixtureSpec]:
        """The classes' generators, read by rank zero, as one on every rank; a class weighs what it has of the images."""
        parts = self.world.run_on_main(
            lambda: [load_generator(self.class_dir(share)) for share in self.shares]
        )
        part: Any = self.world.broadcast_object(parts[0].spec if parts else None)
        total = sum(share.num_samples for share in self.shares)
        names = tuple(share.name for share in self.shares)
        spec = mixture_spec(
            part, classes=names, weights=tuple(share.num_samples / total for share in self.shares)
        )
        mixture: Any = build_generator(spec).to(self.device).eval().requires_grad_(False)
        for own, trained in zip(mixture.parts, parts or (), strict=parts is not None):
            own.load_state_dict(trained.network.state_dict())
        self.world.broadcast_(list(mixture.parts.state_dict().values()))
        return mixture, spec

    def sums(self, images_seen: int) -> dict[str, Any]:
        """The row of metrics.jsonl of all classes together."""
        last = [
            next(iter(read_rows(self.class_dir(share) / "metrics.jsonl")[-1:]), {})
            for share in self.shares
        ]
        seconds = sum(row.get("time/train_sec", 0.0) for row in last)
        return {
            "progress/kimg": images_seen / 1000,
            "progress/images": images_seen,
            "progress/epoch": images_seen / self.reader.num_samples,
            "time/images_per_sec": images_seen / max(seconds, 1e-9),
            "time/train_sec": seconds,
        }

    def show(
        self, mixture: Mixture, spec: MixtureSpec, reporter: RunLogger, images_seen: int
    ) -> None:
        """Rank zero: a grid of the mixture, one of reals, and classes.png with a row a class."""
        assert self.folder is not None, "only rank zero draws"
        latents = sample_latents(NUM_SAMPLES, spec, seed=self.config.train.seed).to(self.device)
        reals = torch.from_numpy(
            self.reader.gather(np.arange(min(NUM_SAMPLES, self.reader.num_samples)))
        )
        reporter.samples(to_uint8(generate(mixture, latents)), reals, images_seen=images_seen)
        rows = [
            to_uint8(generate(mixture, choose_class(latents[:COLUMNS], spec, name)))
            for name in spec.classes
        ]
        with explained(self.folder.path):
            save_grid(torch.cat(rows), self.folder.samples / "classes.png", columns=COLUMNS)
        say(f"classes.png, from above: {', '.join(spec.classes)}")
