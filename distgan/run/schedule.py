"""When metrics, samples, evaluations and checkpoints of a run are due."""

import math
from dataclasses import dataclass

from distgan.config.schema import Config

DEFAULT_PARTS = {"metrics": 400, "samples": 20, "evaluation": 10, "checkpoint": 20}
"""How many times per run each of them is due if its `every_kimg` setting is not given."""

LEAST_IMAGES = {"samples": 1000, "evaluation": 10_000, "checkpoint": 1000}
"""Images between two of them at least, in this case: in short runs they would take much time."""


@dataclass(frozen=True)
class Due:
    """The tasks of the training loop before its next step."""

    metrics: bool
    samples: bool
    evaluation: bool
    checkpoint: bool


class Schedule:
    """The intervals, in images, between a run's metrics, samples, evaluations and checkpoints."""

    def __init__(self, config: Config, *, total_images: int, images_per_epoch: int) -> None:
        self.total_images, self.images_per_epoch = total_images, images_per_epoch
        settings = {
            "metrics": config.log.every_kimg,
            "samples": config.log.samples_every_kimg,
            "evaluation": config.evaluation.every_kimg,
            "checkpoint": config.checkpoint.every_kimg,
        }
        self.intervals = {
            name: default_interval(name, total_images) if kimg is None else kimg * 1000
            for name, kimg in settings.items()
        }

    def due(self, before: int, now: int, *, stopping: bool) -> Due:
        """Return what is due at `now` images, given that the last check was at `before` images.

        `before` is -1 at the start of a new run and equal to `now` right after a resume. `stopping`
        means that the run is interrupted here.
        """
        is_complete, has_trained = now >= self.total_images, now != before
        ending = is_complete or stopping

        def passed(name: str) -> bool:
            return is_multiple_passed(self.intervals[name], before, now)

        # Untrained generators are not evaluated, so the evaluation at 0 images is left out.
        evaluation = is_multiple_passed(self.intervals["evaluation"], max(before, 0), now)
        evaluation |= is_complete and has_trained
        return Due(
            metrics=ending or passed("metrics"),
            samples=is_complete or before < self.images_per_epoch <= now or passed("samples"),
            evaluation=evaluation,
            checkpoint=evaluation or (ending and has_trained) or passed("checkpoint"),
        )

    def num_due(self, name: str, *, after: int) -> int:
        """Return how many times `name` is due after that many images, for a forecast."""
        interval = self.intervals[name]
        return max(1, math.ceil(self.total_images / interval) - math.floor(after / interval))


def default_interval(name: str, total_images: int) -> float:
    """Return the images between two of them if the settings say nothing."""
    return max(total_images / DEFAULT_PARTS[name], LEAST_IMAGES.get(name, 0))


def is_multiple_passed(interval: float, before: int, now: int) -> bool:
    """Return whether a multiple of the interval is in (before, now]."""
    return math.floor(now / interval) > math.floor(before / interval)
