"""One probe of the digits, trained once for all tests."""

import pytest
import torch

from distgan.evaluation.probe import Probe
from distgan.evaluation.probe_training import train_probe
from tests.evaluation.sets import digits


@pytest.fixture(scope="session")
def probe() -> Probe:
    """A probe of the 8x8 digits."""
    torch.set_num_threads(1)
    images, labels = digits()
    names = tuple("0123456789")
    return train_probe(
        images.__getitem__,
        labels,
        class_names=names,
        dataset_fingerprint="digits",
        width=16,
        kimg=16,
    )
