"""`distgan probe`: train the small classifier of a dataset's own labels, whose features then score generators."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from distgan.config.schema import Data
from distgan.data import open_dataset
from distgan.evaluation.probe import Probe, probe_path, train_probe
from distgan.run.folder import check_writable
from distgan.runtime.accelerator import choose_precision


def probe(
    shards: str, *, flip: bool, seed: int, progress: Callable[[float, float], None]
) -> tuple[Probe, Path]:
    """Train a probe on packed shards and put it where trainings and evaluations look for it."""
    _, reader = open_dataset(Data(shards=shards))
    path = probe_path(reader.index.fingerprint)
    check_writable(path)
    labels = torch.from_numpy(reader.labels(np.arange(reader.num_samples)))
    on_cpu = not torch.cuda.is_available()
    precision, _ = choose_precision("auto", "no", on_cpu=on_cpu)
    trained = train_probe(
        lambda ids: torch.from_numpy(reader.gather(ids.numpy())),
        labels,
        class_names=reader.index.class_names or (),
        dataset_fingerprint=reader.index.fingerprint,
        flip=flip,
        seed=seed,
        device=torch.device("cpu" if on_cpu else "cuda"),
        precision=torch.bfloat16 if precision == "bf16" else torch.float32,
        progress=progress,
    )
    trained.save(path)
    return trained, path
