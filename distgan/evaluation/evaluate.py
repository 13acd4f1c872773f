"""One evaluation: fakes by number, every metric beside its value for real images, and the protocol of both.

fakes(start, stop) -> features on all ranks -> metrics against the prepared reference -> Result
"""

from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from distgan.config.metrics import EVALUATION_METRICS
from distgan.errors import UserError
from distgan.evaluation import metrics, modes
from distgan.evaluation.extractors import FeatureExtractor
from distgan.evaluation.metrics import MetricSettings, Sample
from distgan.evaluation.reference import PreparedReference, Protocol, extract_all
from distgan.runtime.distributed import World

Fakes = Callable[[int, int], Tensor]
"""(start, stop) -> uint8 [stop - start, C, H, W]; image i is the same in whatever call it comes."""


@dataclass(frozen=True)
class Result:
    """What one evaluation found."""

    values: dict[str, float]
    reals: dict[str, float]  # the same metrics of real images
    protocol: Protocol
    class_names: tuple[str, ...] = ()
    class_counts: tuple[int, ...] = ()
    class_shares: tuple[
        float, ...
    ] = ()  # among the fakes that the classifier is sure of; `class_counts` has all
    real_class_shares: tuple[float, ...] = ()
    missing: tuple[str, ...] = ()  # names of classes that the fakes miss

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> "Result":
        """The Result that `to_dict` gave, also after a trip through JSON."""
        fields = plain["protocol"] | {"settings": MetricSettings(**plain["protocol"]["settings"])}
        protocol = Protocol(**fields | {"image_shape": tuple(fields["image_shape"])})
        names = ("class_names", "class_counts", "class_shares", "real_class_shares", "missing")
        return cls(
            plain["values"],
            plain["reals"],
            protocol,
            **{name: tuple(plain[name]) for name in names},
        )


def evaluate(
    fakes: Fakes,
    prepared: PreparedReference,
    extractor: FeatureExtractor,
    *,
    world: World,
    seed: int | None = None,
    weights: str = "",
    wanted: Collection[str] | None = None,
) -> Result:
    """Compare `prepared.protocol.num_fakes` fakes with the reference; every rank calls it and gets the same Result.

    Each rank asks `fakes` for its chunks only. `seed` and `weights` are recorded. `wanted` names metrics of EVALUATION_METRICS;
    None means all that the extractor allows. Raises UserError for a name that is none.
    """
    if unknown := [name for name in wanted or () if name not in EVALUATION_METRICS]:
        choices = ", ".join(EVALUATION_METRICS)
        raise UserError(f"unknown metric {unknown[0]!r}; choose from {choices}")
    protocol, reference = prepared.protocol, prepared.reference
    assert extractor.version == protocol.extractor_version, (
        "the reference was measured with another extractor"
    )
    features, logits = extract_all(fakes, protocol.num_fakes, extractor, world)
    sample = Sample(
        features, logits, num_classes=extractor.num_classes, world=world, settings=protocol.settings
    )
    values = metrics.compute(sample, reference, wanted=wanted, published=extractor.published)
    found = asdict(protocol) | {"settings": protocol.settings, "seed": seed, "weights": weights}
    real_values = {name: value for name, value in prepared.values.items() if name in values}
    if reference.class_shares is None:
        return Result(world.broadcast_object(values), real_values, Protocol(**found))
    missing = modes.missing_classes(
        sample.class_shares, reference.class_shares, below=protocol.settings.missing_below
    )
    mine = values, sample.class_counts.tolist(), sample.class_shares.tolist(), missing
    values, counts, shares, absent = world.broadcast_object(mine)
    return Result(
        values,
        real_values,
        Protocol(**found),
        class_names=extractor.class_names,
        class_counts=tuple(counts),
        class_shares=tuple(shares),
        real_class_shares=tuple(reference.class_shares.tolist()),
        missing=tuple(extractor.class_names[index] for index in absent),
    )
