"""`distgan probe`: train a classifier of a dataset; its features serve to evaluate generators."""

from pathlib import Path

import numpy as np
import torch

from distgan.config.schema import Data
from distgan.data import open_dataset
from distgan.evaluation.probe import Probe, probe_path
from distgan.evaluation.probe_training import train_probe
from distgan.reporting.console import accuracy_progress, say, show_warning
from distgan.run.folder import check_writable
from distgan.runtime.accelerator import choose_precision
from shards.files import locked
from shards.reader import ShardReader


def probe(shards: str, *, flip: bool, seed: int, minutes: float | None) -> None:
    """Train a probe on packed shards and save it in the cache for runs and evaluations.

    An interrupted training is kept beside the probe's file until an equal command resumes it.
    """
    _, reader = open_dataset(Data(shards=shards))
    path = probe_path(reader.index.fingerprint)
    check_writable(path)
    state_file = path.with_suffix(".partial")
    busy = f"another process is training the probe of {reader.files.source}; wait for it or stop it"
    with locked(path.with_suffix(".lock"), busy=busy):
        trained = train_on(reader, flip=flip, seed=seed, minutes=minutes, state_file=state_file)
        trained.save(path)
        state_file.unlink(missing_ok=True)
    report(trained, path)


def train_on(
    reader: ShardReader, *, flip: bool, seed: int, minutes: float | None, state_file: Path
) -> Probe:
    """Train a probe on all images of a dataset, on a GPU if there is one."""
    on_cpu = not torch.cuda.is_available()
    precision, _ = choose_precision("auto", "no", on_cpu=on_cpu)
    labels = torch.from_numpy(reader.labels(np.arange(reader.num_samples)))
    with accuracy_progress("training the probe") as progress:
        return train_probe(
            lambda ids: torch.from_numpy(reader.gather_8_bits(ids.numpy())),
            labels,
            class_names=reader.index.class_names or (),
            dataset_fingerprint=reader.index.fingerprint,
            flip=flip,
            minutes=minutes,
            seed=seed,
            device=torch.device("cpu" if on_cpu else "cuda"),
            precision=torch.bfloat16 if precision == "bf16" else torch.float32,
            state_file=state_file,
            progress=progress,
        )


def report(trained: Probe, path: Path) -> None:
    """Print a probe's accuracy."""
    card = trained.card
    if card.is_weak:
        show_warning(
            "the probe is hardly better than guessing (the classes may look too similar); "
            "evaluation.extractor=auto will use random features instead"
        )
    say(
        f"accuracy {card.accuracy:.1%} on {card.num_held_out:,} held-out images; "
        f"probe {trained.version} in {path}"
    )
