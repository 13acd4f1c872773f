"""The division of a run among its classes, for one GAN per class."""

import itertools
import math
import re
from dataclasses import dataclass

from distgan.config.schema import Config, total_images
from distgan.errors import UserError
from shards.reader import ShardReader


@dataclass(frozen=True)
class ClassRun:
    """A class and the length of its run."""

    number: int
    name: str
    num_samples: int
    total_images: int

    @property
    def folder(self) -> str:
        """Name of the run folder; the number makes it unique on every file system."""
        return f"{self.number}-{re.sub(r'[^A-Za-z0-9._]+', '_', self.name)[:40]}"


def plan_classes(config: Config, reader: ShardReader) -> list[ClassRun]:
    """Divide the run among the classes in proportion to their images; raises UserError.

    Every class gets the same number of epochs. Together they consume as many batches as one GAN.
    """
    index, train, source = reader.index, config.train, reader.files.source
    if index.class_names is None or index.class_counts is None:
        raise UserError(
            f"{source} has no labels, and networks.per_class=true trains one GAN per class; pack a "
            "source whose images are in class folders, or leave networks.per_class out"
        )
    wanted = index.class_names if config.data.classes is None else config.data.classes
    chosen = [
        number
        for number, name in enumerate(index.class_names)
        if name in wanted and index.class_counts[number] > 0
    ]
    if len(chosen) < 2:
        raise UserError(
            f"{source}: one GAN per class needs at least two classes; leave networks.per_class out"
        )
    counts = [index.class_counts[number] for number in chosen]
    images_per_step = train.batch_size * train.d_steps
    num_steps = math.ceil(total_images(train, reader.num_samples) / images_per_step)
    classes = [
        ClassRun(number, index.class_names[number], count, steps * images_per_step)
        for number, count, steps in zip(
            chosen, counts, divide_steps(num_steps, counts), strict=True
        )
    ]
    check_classes(classes, source=source, batch_size=train.batch_size)
    return classes


def divide_steps(num_steps: int, counts: list[int]) -> list[int]:
    """Divide `num_steps` in proportion to the counts."""
    sums = itertools.accumulate(counts, initial=0)
    ends = [round(num_steps * passed / sum(counts)) for passed in sums]
    return [stop - start for start, stop in itertools.pairwise(ends)]


def check_classes(classes: list[ClassRun], *, source: str, batch_size: int) -> None:
    """Raise UserError if a class has fewer images than a batch, or gets no step of the run."""
    if small := [c for c in classes if c.num_samples < batch_size]:
        names = ", ".join(f"{c.name} ({c.num_samples} images)" for c in small)
        smallest = min(c.num_samples for c in classes)
        raise UserError(
            f"{source}: fewer images than train.batch_size={batch_size} in {names}; use "
            f"train.batch_size={smallest} or less, or name the larger classes in data.classes"
        )
    if short := [c.name for c in classes if c.total_images == 0]:
        kimg = sum(c.total_images for c in classes) / 1000
        raise UserError(
            f"{kimg:g} kimg divided among {len(classes)} classes leave no batch for "
            f"{', '.join(short)}; set a longer train.epochs or train.kimg"
        )
