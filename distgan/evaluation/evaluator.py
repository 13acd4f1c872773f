"""The evaluations, the verdict and the best checkpoint of a run in training, equal on all ranks."""

import math
import shlex
from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distgan.config.metrics import EVALUATION_METRICS, PUBLISHED_NAMES
from distgan.config.schema import Evaluation, Thresholds
from distgan.errors import UserError
from distgan.evaluation.batch_diversity import BatchDiversity
from distgan.evaluation.by_class import ACCURACY, CLASSWISE_METRICS, count_labels, fewest_images
from distgan.evaluation.evaluate import Result, check_names, evaluate
from distgan.evaluation.extractors import Extractor, Inception, RandomConv
from distgan.evaluation.metrics import measurable
from distgan.evaluation.probe import Probe, StackedProbe, probe_path
from distgan.evaluation.reference import (
    PreparedReference,
    RealImages,
    check_enough,
    prepare_reference,
    split_reals,
)
from distgan.evaluation.sample import DEFAULT_SETTINGS
from distgan.evaluation.tracker import VerdictTracker, young_images
from distgan.evaluation.verdict import Verdict
from distgan.images import to_uint8
from distgan.labels import Labels
from distgan.networks.conditioning import spread_labels
from distgan.runtime.distributed import World
from distgan.runtime.randomness import normal
from shards.files import expand_user
from shards.reader import ShardReader
from shards.sources.stacked import STACK_NAMES

NUM_BATCH_REALS = 256  # reals whose distances within a batch are measured


def choose_extractor(
    evaluation: Evaluation, reader: ShardReader, *, world: World
) -> tuple[Extractor, str]:
    """Return the extractor of `evaluation.extractor`, and a phrase about it for people."""
    name, cached = evaluation.extractor, probe_path(reader.index.fingerprint)
    if name == "inception":
        if reader.image_shape[0] not in (1, 3):
            raise UserError(
                f"evaluation.extractor=inception takes 1 or 3 channels, and these images have "
                f"{reader.image_shape[0]}: leave it out"
            )
        weights = evaluation.inception_weights
        return Inception(
            expand_user(weights) if weights else None, world=world
        ), "Inception: distances are FID and KID"
    if name == "random" or (name == "auto" and not cached.exists()):
        has_labels = name == "auto" and reader.index.class_names is not None
        command = f"distgan probe {shlex.quote(str(reader.files.source))}"
        better = f"; better: {command}" if has_labels else ""
        return RandomConv(), f"a fixed random convolution{better}"
    probe = Probe.load(cached if name in ("auto", "probe") else expand_user(name))
    accuracy = probe.card.accuracy
    if name == "auto" and probe.card.is_weak:
        return RandomConv(), (
            "a fixed random convolution; "
            f"the probe is right on only {accuracy:.0%} of held-out images"
        )
    if is_stacked(reader) and probe.card.channels == 1:
        phrase = f"probe {probe.version} on each channel, {accuracy:.1%} right"
        return StackedProbe(probe), phrase
    return probe, f"probe {probe.version}, {accuracy:.1%} right on held-out images"


def is_stacked(reader: ShardReader) -> bool:
    """Return whether the images are stacked digits, whose modes are equally frequent."""
    return reader.index.class_names == STACK_NAMES


def real_images(
    reader: ShardReader,
    classes: tuple[str, ...] | None,
    *,
    num_samples: int,
    labels: Labels | None = None,
) -> RealImages:
    """Return the images of a dataset for evaluations with `num_samples` images.

    `labels` are those that a generator was trained with, if it is conditional. Of remote shards
    only the first images are used, because a random choice would download all.
    """
    part = f"/{','.join(classes)}" if classes else ""
    num_modes = len(STACK_NAMES)
    shares = (1 / num_modes,) * num_modes if is_stacked(reader) and not part else None
    num_images = reader.num_samples
    if reader.files.remote and num_images > 2 * num_samples:
        num_images = 2 * num_samples
        part += f"/first {num_images}"
    return RealImages(
        lambda ids: torch.from_numpy(reader.gather_8_bits(ids.numpy())),
        num_images,
        reader.index.fingerprint + part,
        class_shares=shares,
        class_names=() if labels is None else labels.names,
        class_labels=None
        if labels is None
        else lambda ids: torch.from_numpy(labels.of_samples(ids.numpy())),
        labels_version="" if labels is None else labels.version,
    )


class Evaluator:
    """The evaluations of one run, its verdict, and which evaluation was the best."""

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
        total_images: int,
        micro_batch_size: int,
        labels: Labels | None = None,
    ) -> None:
        self.labels = labels
        self.settings, self.world, self.device, self.seed = evaluation, world, device, seed
        self.extractor, self.extractor_phrase = choose_extractor(evaluation, reader, world=world)
        self.extractor.to(device)
        check_names(evaluation.metrics or ())
        self.best_metric = name_of_best(
            evaluation.best_metric, self.extractor, is_conditional=labels is not None
        )
        self.reals = real_images(reader, classes, num_samples=evaluation.num_samples, labels=labels)
        check_enough(self.reals.num_images, evaluation.num_samples)
        if labels is not None and self.best_metric in CLASSWISE_METRICS:
            check_classes(labels, self.reals, evaluation=evaluation, seed=seed)
        self.prepared: PreparedReference | None = None
        few = reader.gather_8_bits(np.arange(min(NUM_BATCH_REALS, reader.num_samples)))
        self.batch_diversity = BatchDiversity.of_reals(
            torch.from_numpy(few).float() / 127.5 - 1, batch=micro_batch_size
        )
        young = young_images(thresholds, total_images=total_images, epoch_images=reader.num_samples)
        self.tracker = VerdictTracker(thresholds, young_images=young)
        self.notes: list[str] = []  # for the user, about what was restored
        self.best_value: float | None = None
        self.best_images: int | None = None  # images seen at the best evaluation

    @property
    def verdict(self) -> Verdict:
        """The verdict on the run so far."""
        return self.tracker.verdict

    def batch_metrics(self, fakes: Tensor) -> dict[str, Tensor]:
        """Return the diversity of a batch of fakes [b, C, H, W] in [-1, 1], as device scalars."""
        return self.batch_diversity.metrics(fakes) if len(fakes) > 1 else {}

    @property
    def recorded_metrics(self) -> set[str] | None:
        """The metrics that are recorded: those listed and that of the best; None means all."""
        listed = self.settings.metrics
        return None if listed is None else {*listed, self.best_metric}

    @property
    def warnings(self) -> list[str]:
        """What the user should know about the settings of evaluations."""
        own = measurable(
            has_classes=self.extractor.num_classes is not None, published=self.extractor.published
        )
        known = {*own, *((*CLASSWISE_METRICS, ACCURACY) if self.labels else ())}
        return describe_absent(self.settings.metrics or (), known, "evaluation.extractor=inception")

    def evaluate(
        self, generator: torch.nn.Module, latent_dim: int, *, images_seen: int
    ) -> tuple[Result, Verdict, bool]:
        """Evaluate the generator of a run in training. Collective.

        Returns the recorded metrics, the verdict, and whether the generator is the best so far.
        """
        result = self.measure(generator, latent_dim)
        verdict = self.tracker.add_evaluation(result, images_seen=images_seen)
        value = result.values.get(self.best_metric, math.nan)
        is_best = self.is_better(value)
        if is_best:
            self.best_value, self.best_images = value, images_seen
        return result.only(self.recorded_metrics), verdict, is_best

    def measure(self, generator: torch.nn.Module, latent_dim: int) -> Result:
        """Return the recorded metrics of a generator and those of its verdict. Collective."""
        if self.prepared is None:
            self.prepared = prepare_reference(
                self.reals, self.extractor, world=self.world, num_samples=self.settings.num_samples
            )

        labels = None
        if self.labels is not None:
            numbers = torch.arange(self.prepared.protocol.num_fakes)
            labels = spread_labels(numbers, self.labels.shares, seed=self.seed)

        def fakes(start: int, stop: int) -> Tensor:
            positions = torch.arange(start, stop, device=self.device)
            latents = normal((latent_dim,), positions, seed=self.seed, purpose="evaluation")
            condition = () if labels is None else (labels[start:stop].to(self.device),)
            with torch.no_grad():
                return to_uint8(generator(latents, *condition))

        return evaluate(
            fakes,
            self.prepared,
            self.extractor,
            world=self.world,
            seed=self.seed,
            weights="ema",
            wanted=self.recorded_metrics,
            fake_labels=labels,
        )

    def is_better(self, value: float) -> bool:
        """Return whether a value of the best metric is better than the best so far."""
        if not math.isfinite(value) or self.best_value is None:
            return math.isfinite(value)
        is_lower = EVALUATION_METRICS[self.best_metric].better == "lower"
        return value < self.best_value if is_lower else value > self.best_value

    def state_dict(self) -> dict[str, Any]:
        """Return plain values for a checkpoint."""
        return {
            "monitor": self.tracker.state_dict(),
            "best_value": self.best_value,
            "best_images": self.best_images,
            "best_metric": self.best_metric,
            "measured": self.measured,
        }

    @property
    def measured(self) -> dict[str, Any]:
        """Features and number of images, which evaluations that are compared have in common."""
        num_samples = self.settings.num_samples
        return {"extractor": self.extractor.version, "num_samples": num_samples}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Evaluations of other features or of another number of images count no longer, nor does the
        best one by another metric; `notes` say so.
        """
        self.notes = []
        self.tracker.load_state_dict(state["monitor"])
        self.best_value, self.best_images = state["best_value"], state["best_images"]
        # Checkpoints of older versions lack both, and were measured as today unless told otherwise.
        is_measured_alike = state.get("measured", self.measured) == self.measured
        before = state.get("best_metric", self.best_metric)
        if not is_measured_alike:
            self.tracker.forget_evaluations()
            self.notes.append("evaluations: measured in another way before, and not compared")
        elif before != self.best_metric:
            self.notes.append(f"best checkpoint: by {before} before, by {self.best_metric} now")
        if self.notes:
            self.best_value, self.best_images = None, None


def describe_absent(wanted: Collection[str], known: Collection[str], option: str) -> list[str]:
    """Return a warning if wanted metrics are not among the known ones; `option` is Inception's."""
    absent = [each for each in wanted if not {each, PUBLISHED_NAMES.get(each)} & set(known)]
    if not absent:
        return []
    return [
        f"not measured: {', '.join(absent)}; those of classes need `distgan probe` or "
        f"networks.condition=class, and those of Inception {option}"
    ]


def check_classes(labels: Labels, reals: RealImages, *, evaluation: Evaluation, seed: int) -> None:
    """Raise UserError if no class has enough images in an evaluation to be judged by itself."""
    assert reals.class_labels is not None, "conditional generators need labelled reals"
    reference = split_reals(reals.num_images, evaluation.num_samples, None, seed=0).reference
    asked = spread_labels(torch.arange(len(reference)), labels.shares, seed=seed)
    fakes, others = (
        count_labels(each, len(labels.names)) for each in (asked, reals.class_labels(reference))
    )
    most, fewest = int(torch.minimum(fakes, others).max()), fewest_images(DEFAULT_SETTINGS)
    if most < fewest:
        raise UserError(
            f"evaluation.best_metric={evaluation.best_metric} needs {fewest} images of a class per "
            f"evaluation, and with evaluation.num_samples={evaluation.num_samples} no class has "
            f"more than {most}; raise it, or leave evaluation.best_metric out"
        )


def name_of_best(name: str, extractor: Extractor, *, is_conditional: bool = False) -> str:
    """Return the name that the metric `evaluation.best_metric` has in an extractor's features.

    Those of single classes need a conditional generator. Raises UserError if the features do not
    allow it, or if neither higher nor lower values are better.
    """
    check_names([name])
    own = PUBLISHED_NAMES.get(name, name) if extractor.published else name
    names = measurable(has_classes=extractor.num_classes is not None, published=extractor.published)
    if is_conditional:
        names += CLASSWISE_METRICS
    choices = [metric for metric in names if EVALUATION_METRICS[metric].better]
    if own not in choices:
        raise UserError(
            f"evaluation.best_metric={name} cannot choose a checkpoint with "
            f"{extractor.name} features; choose from {', '.join(choices)}"
        )
    return own
