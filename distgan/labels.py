"""The labels of a run's images, for conditional networks.

Labels count the classes that the run trains on, from 0. They are a function of the number of an
image, and so, like the order of images, of the position in the run alone.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distgan.config.schema import Data, Networks
from distgan.errors import UserError
from shards.reader import ShardReader

Ids = NDArray[np.int64]
STAND_IN_CLASSES = 10
FEW_IMAGES = 500  # of a class, with which conditional GANs tend to collapse (arXiv 2201.06578)


@dataclass(frozen=True)
class Labels:
    """The classes of a run, and the label of each of its images.

    `of_samples` takes the ids [n] of a reader's samples and returns labels int64 [n].
    """

    names: tuple[str, ...]
    counts: tuple[int, ...]  # images of each class
    of_samples: Callable[[Ids], Ids]
    version: str = ""  # tells different labels of the same images apart

    @property
    def shares(self) -> tuple[float, ...]:
        """Fractions of all images."""
        total = sum(self.counts)
        return tuple(count / total for count in self.counts)

    def warning(self) -> str:
        """Return a line about classes with few images, or nothing."""
        few = [
            f"{name} ({count:,} images)"
            for name, count in zip(self.names, self.counts, strict=True)
            if count < FEW_IMAGES
        ]
        if not few:
            return ""
        listed = ", ".join(few[:5]) + (f" and {len(few) - 5} more" if len(few) > 5 else "")
        return f"few images in {listed}: below {FEW_IMAGES}, a class is likely to collapse"


def labels_of(networks: Networks, reader: ShardReader, data: Data) -> Labels | None:
    """Return the dataset's labels if `networks.condition` asks for them; raises UserError."""
    return class_labels(reader, data.classes) if networks.condition == "class" else None


def stand_in_labels(networks: Networks) -> Labels | None:
    """Return labels for images that do not matter, as when only the speed is measured."""
    if networks.condition == "none":
        return None
    num = networks.num_clusters if networks.condition == "cluster" else STAND_IN_CLASSES
    return Labels(tuple(map(str, range(num))), (FEW_IMAGES,) * num, lambda ids: ids % num)


def class_labels(reader: ShardReader, classes: tuple[str, ...] | None) -> Labels:
    """Return the dataset's own labels, of all classes or of those named; raises UserError."""
    index, source = reader.index, reader.files.source
    if index.class_names is None or index.class_counts is None:
        raise UserError(
            f"{source} has no labels, and networks.condition=class needs them; pack a source whose "
            "images are in class folders, or set networks.condition=cluster"
        )
    chosen = [
        number
        for number, name in enumerate(index.class_names)
        if (classes is None or name in classes) and index.class_counts[number]
    ]
    if len(chosen) < 2:
        raise UserError(
            f"{source}: networks.condition=class needs at least two classes with images; "
            "leave networks.condition out"
        )
    label_of_class = np.full(len(index.class_names), -1, np.int64)
    label_of_class[chosen] = np.arange(len(chosen))
    return Labels(
        names=tuple(index.class_names[number] for number in chosen),
        counts=tuple(index.class_counts[number] for number in chosen),
        of_samples=lambda ids: label_of_class[reader.labels(ids)],
    )
