"""Evaluation of generated images: all metrics, those of real images, and the protocol of both.

fakes(start, stop) -> features on all ranks -> metrics against the prepared reference -> Result
"""

from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import Tensor

from distgan.config.metrics import EVALUATION_METRICS
from distgan.errors import UserError
from distgan.evaluation import metrics, modes
from distgan.evaluation.by_class import (
    ClassScore,
    count_labels,
    measure_classes,
    scores,
    total_values,
    unpack,
)
from distgan.evaluation.extractors import Extractor
from distgan.evaluation.reference import PreparedReference, Protocol, extract_sample
from distgan.evaluation.sample import MetricSettings, Sample
from distgan.runtime.distributed import World

Fakes = Callable[[int, int], Tensor]
"""(start, stop) -> uint8 [stop - start, C, H, W]; image i must not depend on the call."""


@dataclass(frozen=True)
class Result:
    """The metrics of one evaluation; tuples have one entry per class and may be empty."""

    values: dict[str, float]
    reals: dict[str, float]  # the same metrics of real images
    protocol: Protocol
    class_names: tuple[str, ...] = ()
    class_counts: tuple[int, ...] = ()  # of all fakes
    class_shares: tuple[float, ...] = ()  # among the fakes that are classified with confidence
    real_class_shares: tuple[float, ...] = ()
    missing: tuple[str, ...] = ()  # names of the classes that the fakes miss
    by_class: tuple[ClassScore, ...] = ()  # of the classes that fakes were asked for
    num_confident: int | None = None  # fakes classified with confidence; None in older records

    @property
    def frechet(self) -> float:
        """The Frechet distance, which is called FID in Inception features."""
        name = "quality/fid" if "quality/fid" in self.values else "quality/frechet"
        return self.values[name]

    @property
    def confident_fakes(self) -> int:
        """The number of fakes that are classified with confidence, or of all if unknown."""
        return sum(self.class_counts) if self.num_confident is None else self.num_confident

    @property
    def num_uncounted(self) -> int:
        """The number of classes that are not missing only because few fakes are confident."""
        num_fakes = sum(self.class_counts)
        return sum(
            share * self.confident_fakes < modes.FEWEST_EXPECTED <= share * num_fakes
            for share in self.real_class_shares
        )

    def only(self, names: Collection[str] | None) -> "Result":
        """Return the result with these metrics alone; None keeps all.

        A name also keeps the same metric in Inception features.
        """
        if names is None:
            return self
        kept = set(names) | {metrics.PUBLISHED_NAMES.get(name, name) for name in names}
        values, reals = (
            {name: value for name, value in each.items() if name in kept}
            for each in (self.values, self.reals)
        )
        return replace(self, values=values, reals=reals)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> "Result":
        """Return the result whose `to_dict`, perhaps read from JSON, is `plain`."""
        fields = plain["protocol"] | {"settings": MetricSettings(**plain["protocol"]["settings"])}
        protocol = Protocol(**fields | {"image_shape": tuple(fields["image_shape"])})
        names = ("class_names", "class_counts", "class_shares", "real_class_shares", "missing")
        classes = {name: tuple(plain[name]) for name in names}
        by_class = tuple(ClassScore(**score) for score in plain.get("by_class", ()))
        num_confident = plain.get("num_confident")
        return cls(
            plain["values"],
            plain["reals"],
            protocol,
            **classes,
            by_class=by_class,
            num_confident=num_confident,
        )


def evaluate(
    fakes: Fakes,
    prepared: PreparedReference,
    extractor: Extractor,
    *,
    world: World,
    seed: int | None = None,
    weights: str = "",
    wanted: Collection[str] | None = None,
    fake_labels: Tensor | None = None,
) -> Result:
    """Compare `prepared.protocol.num_fakes` fakes with the reference.

    Collective: every rank gets the same result, and calls `fakes` for its own part only. `wanted`
    are names from EVALUATION_METRICS; None means all. The metrics that the verdict rests on are
    always computed. `seed` and `weights` are recorded. `fake_labels` [num_fakes] are the classes
    that the fakes were asked for, if the reference has labels. Raises UserError for an unknown
    metric.
    """
    check_names(wanted or ())
    protocol, reference = prepared.protocol, prepared.reference
    assert extractor.version == protocol.extractor_version, (
        "the reference was measured with another extractor"
    )
    sample = extract_sample(fakes, protocol.num_fakes, extractor, world, settings=protocol.settings)
    values = metrics.compute(
        sample,
        reference,
        wanted=None if wanted is None else {*wanted, *metrics.VERDICT_METRICS},
        published=extractor.published,
    )
    fakes_by_class: dict[int, dict[str, float]] = {}
    if fake_labels is not None and prepared.labels is not None and world.is_main:
        asked = prepared.labels._replace(labels=fake_labels.cpu())
        fakes_by_class = measure_classes(sample, reference, asked, prepared.labels.labels)
        values |= total_values(fakes_by_class, count_labels(asked.labels, len(asked.names)))
    fields = class_fields(sample, reference, extractor)
    if fakes_by_class and prepared.labels is not None:
        reals_by_class = unpack(prepared.values)
        fields["by_class"] = scores(prepared.labels.names, fakes_by_class, reals_by_class)
    values, classes = world.broadcast_object((values, fields))
    return Result(
        values,
        {name: value for name, value in prepared.values.items() if name in values},
        replace(protocol, seed=seed, weights=weights),
        **classes,
    )


def check_names(names: Collection[str]) -> None:
    """Raise UserError for a name that is not a metric of evaluations."""
    for name in names:
        if name not in EVALUATION_METRICS:
            choices = ", ".join(EVALUATION_METRICS)
            raise UserError(f"unknown metric {name!r}; choose from {choices}")


def class_fields(
    sample: Sample, reference: metrics.Reference, extractor: Extractor
) -> dict[str, Any]:
    """Return the fields of Result that describe classes; none if there are no classes."""
    if reference.class_shares is None:
        return {}
    missing = modes.missing_classes(
        sample.confident_counts, reference.class_shares, below=sample.settings.missing_below
    )
    return {
        "class_names": extractor.class_names,
        "class_counts": tuple(sample.class_counts.tolist()),
        "class_shares": tuple(modes.shares_of(sample.confident_counts).tolist()),
        "num_confident": int(sample.confident_counts.sum()),
        "real_class_shares": tuple(reference.class_shares.tolist()),
        "missing": tuple(extractor.class_names[index] for index in missing),
    }
