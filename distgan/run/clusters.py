"""Clusters of features in place of classes, for images without labels (`networks.condition`).

features of some images -> k-means -> centres -> nearest centre of each image -> its label

The labels are stored with the run, so that a resumed run, perhaps on another machine, has the same.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from distgan.config.schema import Config
from distgan.errors import UserError
from distgan.evaluation.evaluator import choose_extractor
from distgan.evaluation.extractors import Extractor
from distgan.evaluation.kinds import fit_centres
from distgan.evaluation.neighbours import squared_distances
from distgan.evaluation.reference import CHUNK, extract_sample
from distgan.evaluation.sample import DEFAULT_SETTINGS
from distgan.images import save_grid
from distgan.labels import Labels
from distgan.reporting.console import say
from distgan.runtime.distributed import World
from shards.files import write_atomic
from shards.reader import ShardReader

FILE, GRID_FILE = "clusters.safetensors", "clusters.png"
NUM_FITTED = 20_000  # images that k-means looks at
COLUMNS, MOST_ROWS = 8, 100  # of the grid of real images


@dataclass(frozen=True)
class Clusters:
    """The cluster of each image, int32 [N], the largest first, and what they were made from."""

    labels: Tensor
    centres: Tensor  # float32 [K, d], in features of the extractor
    facts: dict[str, str]

    def are_of(self, reader: ShardReader) -> bool:
        """Return whether these are clusters of all images of a dataset."""
        is_same = self.facts.get("dataset") == reader.index.fingerprint
        return is_same and len(self.labels) == reader.num_samples

    def as_labels(self) -> Labels:
        """Return the clusters as the classes of a run."""
        labels = self.labels.numpy().astype(np.int64)
        counts = np.bincount(labels, minlength=len(self.centres))
        return Labels(
            names=tuple(f"cluster {number}" for number in range(len(counts))),
            counts=tuple(counts.tolist()),
            of_samples=lambda ids: labels[ids],
            version=hashlib.sha256(self.labels.numpy().tobytes()).hexdigest()[:12],
        )


def clusters_of_run(
    reader: ShardReader, config: Config, *, folder: Path, world: World, device: torch.device
) -> Clusters:
    """Return the clusters stored in a run folder, or find them. Collective; raises UserError."""
    num_clusters = config.networks.num_clusters
    if reader.num_samples < 2 * num_clusters:
        raise UserError(
            f"{reader.files.source} has {reader.num_samples} images, too few for "
            f"networks.num_clusters={num_clusters}; use {max(2, reader.num_samples // 100)}"
        )
    facts = {
        "dataset": reader.index.fingerprint,
        "classes": ",".join(config.data.classes or ()),
        "num_clusters": str(num_clusters),
        "seed": str(config.train.seed),
    }
    stored = read_clusters(folder / FILE) if world.is_main else None
    is_stored = stored is not None and stored.facts.items() >= facts.items()
    if not world.broadcast_object(is_stored):
        return find_clusters(reader, config, facts, world=world, device=device)
    return broadcast_clusters(stored, world, device)


def find_clusters(
    reader: ShardReader,
    config: Config,
    facts: dict[str, str],
    *,
    world: World,
    device: torch.device,
) -> Clusters:
    """Cluster the features of all images. Collective; any number of ranks finds the same."""
    extractor, phrase = choose_extractor(config.evaluation, reader, world=world)
    extractor.to(device)
    num = config.networks.num_clusters
    if world.is_main:
        say(f"looking for {num} clusters of {reader.num_samples:,} images, {phrase} ...")

    def images(ids: Tensor) -> Tensor:
        return torch.from_numpy(reader.gather_8_bits(ids.numpy()))

    order = torch.Generator().manual_seed(config.train.seed)
    ids = torch.randperm(reader.num_samples, generator=order)[:NUM_FITTED].sort().values
    fitted = extract_sample(
        lambda start, stop: images(ids[start:stop]),
        len(ids),
        extractor,
        world,
        settings=DEFAULT_SETTINGS,
    )
    centres = torch.zeros(num, extractor.dim, device=fitted.features.device)
    if world.is_main:
        centres.copy_(fit_centres(fitted.features, num, seed=config.train.seed, num_starts=1))
    world.broadcast_([centres])  # rounding may differ between processors
    labels = torch.zeros(reader.num_samples, dtype=torch.int64)
    for chunk, part in enumerate(torch.arange(reader.num_samples).split(CHUNK)):
        if chunk % world.size == world.rank:
            labels[part] = nearest_centres(images(part), extractor, centres)
    labels = world.all_reduce_sum(labels.to(device)).cpu()
    order_of_size = torch.bincount(labels, minlength=num).argsort(descending=True, stable=True)
    order_of_size = order_of_size[: len(labels.unique())]  # a cluster may have remained empty
    new_numbers = torch.zeros(num, dtype=torch.int64)
    new_numbers[order_of_size] = torch.arange(len(order_of_size))
    return Clusters(
        new_numbers[labels].int(),
        centres.cpu()[order_of_size],
        facts | {"features": extractor.version},
    )


def nearest_centres(images: Tensor, extractor: Extractor, centres: Tensor) -> Tensor:
    """Return the number [n] of the centre that is nearest to each image uint8 [n, C, H, W]."""
    features = extractor(images).features.cpu().double()
    return squared_distances(features, centres.cpu().double()).argmin(1)


# ------------------------------------------------------------------------------------------- files


def write_clusters(folder: Path, clusters: Clusters, reader: ShardReader) -> None:
    """Write the clusters, and a grid of real images with one row for each; raises OSError."""
    tensors = {"labels": clusters.labels, "centres": clusters.centres.contiguous()}
    content = save(tensors, {"clusters": json.dumps(clusters.facts)})
    if (folder / FILE).exists() and (folder / FILE).read_bytes() == content:
        return
    write_atomic(folder / FILE, content)
    labels, rows = clusters.labels.numpy(), []
    for number in range(min(len(clusters.centres), MOST_ROWS)):
        ids = np.resize(np.flatnonzero(labels == number)[:COLUMNS], COLUMNS)
        rows.append(torch.from_numpy(reader.gather_8_bits(ids)))
    save_grid(torch.cat(rows), folder / "samples" / GRID_FILE, columns=COLUMNS)


def read_clusters(file: Path) -> Clusters | None:
    """Return what `write_clusters` wrote; None if there is nothing, or it is damaged."""
    try:
        with safe_open(file, framework="pt") as opened:
            facts = json.loads(opened.metadata()["clusters"])
            labels, centres = opened.get_tensor("labels"), opened.get_tensor("centres")
        if int(labels.min()) < 0 or int(labels.max()) >= len(centres):
            return None
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError):
        return None
    return Clusters(labels, centres, facts)


def broadcast_clusters(stored: Clusters | None, world: World, device: torch.device) -> Clusters:
    """Return rank zero's clusters on every rank."""
    described: Any = None
    if stored is not None:
        described = (stored.labels.shape, stored.centres.shape), stored.facts
    shapes, facts = world.broadcast_object(described)
    labels = torch.empty(shapes[0], dtype=torch.int32, device=device)
    centres = torch.empty(shapes[1], device=device)
    if stored is not None:
        labels.copy_(stored.labels)
        centres.copy_(stored.centres)
    world.broadcast_([labels, centres])
    return Clusters(labels.cpu(), centres.cpu(), facts)
