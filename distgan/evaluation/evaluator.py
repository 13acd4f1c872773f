"""Did it work? Evaluations, verdict and best checkpoint of a run while it trains; the same on all ranks."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distgan.config.metrics import EVALUATION_METRICS, PUBLISHED_NAMES
from distgan.config.schema import Evaluation, Thresholds
from distgan.errors import UserError
from distgan.evaluation.evaluate import Result, evaluate
from distgan.evaluation.extractors import Extractor, Inception, RandomConv
from distgan.evaluation.probe import Probe, StackedProbe, probe_path
from distgan.evaluation.reference import (
    PreparedReference,
    RealImages,
    check_enough,
    prepare_reference,
)
from distgan.evaluation.signals import BatchDiversity
from distgan.evaluation.verdict import Verdict, VerdictTracker
from distgan.images import to_uint8
from distgan.runtime.distributed import World
from distgan.runtime.randomness import normal
from shards.reader import ShardReader
from shards.sources.stacked import STACK_NAMES

NUM_SIGNAL_REALS = 256  # from which the usual distances within a batch are measured


def choose_extractor(
    evaluation: Evaluation, reader: ShardReader, *, world: World
) -> tuple[Extractor, str]:
    """The feature extractor of `evaluation.extractor`, and a phrase that says which it is and why."""
    word, cached = evaluation.extractor, probe_path(reader.index.fingerprint)
    if word == "inception":
        weights = Path(evaluation.inception_weights) if evaluation.inception_weights else None
        return Inception(weights, world=world), "Inception: distances are FID and KID"
    if word == "auto":
        if not cached.exists():
            better = (
                ""
                if reader.index.class_names is None
                else f"; better: distgan probe {reader.files.source}"
            )
            return RandomConv(), f"a fixed random convolution{better}"
        path = cached
    elif word == "random":
        return RandomConv(), "a fixed random convolution"
    else:
        path = cached if word == "probe" else Path(word)
    probe = Probe.load(path)
    if word == "auto" and probe.card.is_weak:
        return (
            RandomConv(),
            f"a fixed random convolution; the probe is right on only {probe.card.accuracy:.0%} of held-out images",
        )
    if is_stacked(reader) and probe.card.channels == 1:
        return StackedProbe(
            probe
        ), f"probe {probe.version} on each channel, {probe.card.accuracy:.1%} right"
    return probe, f"probe {probe.version}, {probe.card.accuracy:.1%} right on held-out images"


def is_stacked(reader: ShardReader) -> bool:
    """Whether the images are stacked digits, of which every mode has the same share."""
    return reader.index.class_names == STACK_NAMES


def real_images(
    reader: ShardReader, classes: tuple[str, ...] | None, *, num_samples: int
) -> RealImages:
    """A dataset of shards as evaluation sees it.

    Of remote shards the first `num_samples` for either side of an evaluation, in place of some from every shard.
    """
    part = f"/{','.join(classes)}" if classes else ""
    shares = (1 / len(STACK_NAMES),) * len(STACK_NAMES) if is_stacked(reader) and not part else None
    num_images = reader.num_samples
    if reader.files.remote and num_images > 2 * num_samples:
        num_images = 2 * num_samples
        part += f"/first {num_images}"
    return RealImages(
        lambda ids: torch.from_numpy(reader.gather(ids.numpy())),
        num_images,
        reader.index.fingerprint + part,
        class_shares=shares,
    )


class Evaluator:
    """The quality of one run: cheap signals every tick, evaluations now and then, one verdict."""

    def __init__(
        self,
        reader: ShardReader,
        *,
        evaluation: Evaluation,
        thresholds: Thresholds,
        classes: tuple[str, ...] | None,
        world: World,
        device: torch.device,
        seed: int,
    ) -> None:
        self.settings, self.world, self.device, self.seed = evaluation, world, device, seed
        self.extractor, self.extractor_phrase = choose_extractor(evaluation, reader, world=world)
        self.extractor.to(device)
        for name in (*(evaluation.metrics or ()), evaluation.best_metric):
            if name not in EVALUATION_METRICS:
                raise UserError(
                    f"unknown metric {name!r}; choose from {', '.join(EVALUATION_METRICS)}"
                )
        self.reals = real_images(reader, classes, num_samples=evaluation.num_samples)
        check_enough(self.reals.num_images, evaluation.num_samples)
        self.prepared: PreparedReference | None = None
        few = reader.gather(np.arange(min(NUM_SIGNAL_REALS, reader.num_samples)))
        self.batch_diversity = BatchDiversity.of_reals(torch.from_numpy(few).float() / 127.5 - 1)
        self.monitor = VerdictTracker(thresholds)
        self.best_value: float | None = None
        self.best_images: int | None = None  # images seen at the best evaluation

    @property
    def verdict(self) -> Verdict:
        """What the run looks like now."""
        return self.monitor.verdict

    def signals(self, fakes: Tensor) -> dict[str, Tensor]:
        """Cheap diversity signals of a batch of fakes [b, C, H, W] in [-1, 1], on the device."""
        return self.batch_diversity.signals(fakes) if len(fakes) > 1 else {}

    def tick(self, statistics: dict[str, float]) -> Verdict:
        """Take the means of a tick, equal on all ranks."""
        return self.monitor.tick(statistics)

    def evaluate(
        self, generator: torch.nn.Module, latent_dim: int, *, images_seen: int
    ) -> tuple[Result, Verdict, bool]:
        """Score the generator on all ranks: what was found, the verdict, and whether it is the best so far."""
        if self.prepared is None:
            self.prepared = prepare_reference(
                self.reals, self.extractor, world=self.world, num_samples=self.settings.num_samples
            )

        def fakes(start: int, stop: int) -> Tensor:
            positions = torch.arange(start, stop, device=self.device)
            latents = normal((latent_dim,), positions, seed=self.seed, purpose="evaluation")
            with torch.no_grad():
                return to_uint8(generator(latents))

        result = evaluate(
            fakes,
            self.prepared,
            self.extractor,
            world=self.world,
            seed=self.seed,
            weights="ema",
            wanted=self.settings.metrics,
        )
        verdict = self.monitor.evaluate(result)
        name = self.settings.best_metric
        value = result.values.get(name, result.values.get(PUBLISHED_NAMES.get(name, name)))
        sign = -1.0 if EVALUATION_METRICS[self.settings.best_metric].better == "lower" else 1.0
        is_best = value is not None and (
            self.best_value is None or sign * value > sign * self.best_value
        )
        if is_best:
            self.best_value, self.best_images = value, images_seen
        return result, verdict, is_best

    def state_dict(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return {
            "monitor": self.monitor.state_dict(),
            "best_value": self.best_value,
            "best_images": self.best_images,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.monitor.load_state_dict(state["monitor"])
        self.best_value, self.best_images = state["best_value"], state["best_images"]
