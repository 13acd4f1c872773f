"""Fixtures for all tests: numbered images, packed once, a finished run, and a small GAN."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distgan.gan import GAN
from distgan.runtime.accelerator import reset_accelerator
from shards.pack import pack
from tests.conftest import NUM_IMAGES
from tests.hub_server import HubServer
from tests.reports import REPORT_SETTINGS
from tests.small_gan import make_gan
from tests.worlds import MODULATED, REFINED, run_world, train_run


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pack 30 grey 32x32 images in two classes, each with its number in its first two pixels."""
    root = tmp_path_factory.mktemp("images")
    noise = np.random.default_rng(0)
    for number in range(NUM_IMAGES):
        pixels = noise.integers(0, 256, (32, 32), dtype=np.uint8)
        pixels[0, :2] = divmod(number, 256)
        folder = root / ("even" if number % 2 == 0 else "odd")
        folder.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{number:03d}.png")
    out = tmp_path_factory.mktemp("packed") / "shards"
    pack(str(root), out, size=32, channels=1, workers=1)
    return out


@pytest.fixture(scope="session")
def finished(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a run with a report, samples and evaluations, to be read only."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    run_world(1, train_run, shards, folder, REPORT_SETTINGS)
    return folder


@pytest.fixture(scope="session")
def conditional_run(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a conditional GAN of the even and the odd images for a few steps, to be read only.

    Its generator is refined.
    """
    folder = tmp_path_factory.mktemp("conditional") / "run"
    words = ["networks.condition=class", "train.kimg=0.12", "data.flip=true", REFINED, MODULATED]
    run_world(1, train_run, shards, folder, words)
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """Copy the finished run, for a test that changes it."""
    return Path(shutil.copytree(finished, tmp_path / "runs" / "first"))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """Start a stand-in for the Hugging Face Hub, as HF_ENDPOINT, HF_HUB_CACHE and HF_TOKEN would.

    The library reads the first two only when it is imported.
    """
    constants = pytest.importorskip(
        "huggingface_hub.constants", reason="pip install 'distgan[hub]'"
    )
    server = HubServer(token="hf_secret")
    files = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", server.token)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def gan() -> Iterator[GAN]:
    """Build a small GAN in a world of one process, and undo Accelerate's state afterwards."""
    yield make_gan()
    reset_accelerator()
