"""Clusters take the place of classes, and labels that are blended in later."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from distgan.commands.evaluate import labels_of_classes, open_input
from distgan.commands.export import export
from distgan.config.load import load_config
from distgan.data import open_dataset
from distgan.errors import UserError
from distgan.networks.conditioning import label_strength
from distgan.networks.generator_file import load_generator
from distgan.run.checkpoints import load
from distgan.run.clusters import FILE, GRID_FILE, clusters_of_run, read_clusters
from distgan.runtime.distributed import World
from shards.pack import pack
from tests.worlds import SMALL, checkpoint_digest, run_world, train_run

CLUSTER = ("networks.condition=cluster", "networks.num_clusters=3")
NUM_IMAGES = 60
ALONE = World(0, 1)


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pack dark, bright and striped images without labels: 30, 20 and 10 of them."""
    root = tmp_path_factory.mktemp("kinds")
    (root / "images").mkdir()
    noise = np.random.default_rng(0)
    for number in range(NUM_IMAGES):
        pixels = noise.integers(0, 40, (32, 32), dtype=np.uint8)
        if number >= 30:
            pixels += 200
        if number >= 50:
            pixels[::2] -= 200
        Image.fromarray(pixels).save(root / "images" / f"{number:03d}.png")
    pack(str(root / "images"), root / "shards", size=32, channels=1, workers=1)
    return root / "shards"


@pytest.fixture(scope="module")
def run(kinds: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a run of a few steps on clusters."""
    folder = tmp_path_factory.mktemp("clusters") / "run"
    run_world(1, train_run, kinds, folder, [*CLUSTER, "train.kimg=0.072"])
    return folder


def kind_of(pixels: np.ndarray) -> int:
    """Return 0 for a dark image, 1 for a bright one, 2 for a striped one."""
    dark, bright = (pixels < 40).mean(), (pixels >= 200).mean()
    return 0 if dark > 0.9 else 1 if bright > 0.9 else 2


def test_clusters_are_the_kinds_of_images_and_the_largest_comes_first(
    kinds: Path, run: Path
) -> None:
    """Each kind is one cluster; the generator is asked for them by name."""
    _, reader = open_dataset(load_config(None, [], data=str(kinds)).data)
    pixels = reader.gather(np.arange(NUM_IMAGES))[:, 0]
    clusters = read_clusters(run / FILE)
    assert clusters is not None
    assert clusters.labels.tolist() == [kind_of(image) for image in pixels]
    assert clusters.as_labels().counts == (30, 20, 10)
    generator = load_generator(run)
    assert generator.classes == ("cluster 0", "cluster 1", "cluster 2")
    assert generator.sample(2, class_name="cluster 2").shape == (2, 1, 32, 32)
    with Image.open(run / "samples" / GRID_FILE) as picture:
        assert picture.size == (8 * 68 + 4, 3 * 68 + 4)


def test_evaluate_finds_the_clusters_of_a_run(kinds: Path, run: Path, shards: Path) -> None:
    """They are labels of the images that they were made from, and of no others."""
    for data, counts in ((kinds, (30, 20, 10)), (shards, None)):
        _, reader = open_dataset(load_config(None, [], data=str(data)).data)
        opened = open_input(run, reader.image_shape, seed=0)
        labels = labels_of_classes([run], [opened], reader)
        assert (None if labels is None else labels.counts) == counts


def find(kinds: Path, folder: Path) -> list[int]:
    """Return the clusters that this rank gets."""
    from accelerate import Accelerator

    from distgan.runtime.distributed import current_world

    Accelerator(cpu=True)
    config = load_config(None, [*SMALL, *CLUSTER], data=str(kinds))
    _, reader = open_dataset(config.data)
    found = clusters_of_run(
        reader, config, folder=folder, world=current_world(), device=torch.device("cpu")
    )
    return found.labels.tolist()


def test_ranks_find_and_read_the_clusters_of_one_process(
    kinds: Path, run: Path, tmp_path: Path
) -> None:
    """Whether rank zero finds them stored or not; the other ranks read no file."""
    clusters = read_clusters(run / FILE)
    assert clusters is not None
    expected = clusters.labels.tolist()
    for folder in (tmp_path, run):
        assert run_world(2, find, kinds, folder) == [expected] * 2


def test_a_resumed_run_keeps_its_clusters_and_is_bit_identical(kinds: Path, tmp_path: Path) -> None:
    """Also while labels are being blended in."""
    words = [*CLUSTER, "networks.conditional_start_kimg=0.036", "train.kimg=0.084"]
    run_world(1, train_run, kinds, tmp_path / "whole", words)
    stopped = run_world(1, train_run, kinds, tmp_path / "cut", words, 36)
    assert stopped[0]["state"] == "preempted"
    run_world(1, train_run, kinds, tmp_path / "cut", words)
    assert checkpoint_digest(tmp_path / "whole") == checkpoint_digest(tmp_path / "cut")


def test_a_refused_command_leaves_the_clusters_of_the_run(kinds: Path, run: Path) -> None:
    """Resumed with its own settings, it would train with other labels otherwise."""
    before = (run / FILE).read_bytes()
    words = [CLUSTER[0], "networks.num_clusters=2", "train.kimg=0.072"]
    with pytest.raises(AssertionError, match=r"run with other settings: networks\.num_c"):
        run_world(1, train_run, kinds, run, words)
    assert (run / FILE).read_bytes() == before


def test_exported_file_is_the_generator(run: Path, tmp_path: Path) -> None:
    """It is asked for the number of a cluster."""
    export(run, tmp_path, format="safetensors", license="mit")
    again, generator = load_generator(tmp_path / "generator.safetensors"), load_generator(run)
    assert again.spec == generator.spec
    chosen = [images.sample(3, seed=1, class_name="cluster 1") for images in (again, generator)]
    assert torch.equal(*chosen)
    assert "conditional DCGAN of 3 classes" in (tmp_path / "README.md").read_text()


def test_stored_clusters_are_used_and_damaged_ones_found_again(
    kinds: Path, run: Path, tmp_path: Path
) -> None:
    """What is stored may come from another machine, whose features differ a little."""
    content = (run / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(content)
    clusters = read_clusters(run / FILE)
    assert clusters is not None
    config = load_config(None, [*SMALL, *CLUSTER], data=str(kinds))
    _, reader = open_dataset(config.data)
    place: dict[str, Any] = {"folder": tmp_path, "world": ALONE, "device": torch.device("cpu")}
    assert clusters_of_run(reader, config, **place).facts == clusters.facts
    (tmp_path / FILE).write_bytes(content[: len(content) // 2])
    assert read_clusters(tmp_path / FILE) is None
    again = clusters_of_run(reader, config, **place)
    assert torch.equal(again.labels, clusters.labels)


def test_too_many_clusters_are_refused(kinds: Path, tmp_path: Path) -> None:
    """The error names a number that would do."""
    config = load_config(None, [*SMALL, CLUSTER[0], "networks.num_clusters=40"], data=str(kinds))
    _, reader = open_dataset(config.data)
    with pytest.raises(UserError, match=r"60 images, too few .* use 2"):
        clusters_of_run(reader, config, folder=tmp_path, world=ALONE, device=torch.device("cpu"))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["networks.num_clusters=7"], "networks.num_clusters=7 needs networks.condition=cluster"),
        (["networks.conditional_start_kimg=7"], "needs a condition"),
    ],
)
def test_settings_of_a_missing_condition_are_refused(words: list[str], expected: str) -> None:
    """The error names the setting that is missing."""
    with pytest.raises(UserError, match=expected):
        load_config(None, words)


def test_labels_are_blended_in_after_the_start() -> None:
    """Not before it, and fully from twice as many images on; without a start at once."""
    strengths = [label_strength(images, start_kimg=2) for images in (0, 2000, 3000, 4000, 9000)]
    assert strengths == [0.0, 0.0, 0.5, 1.0, 1.0]
    assert label_strength(0, start_kimg=0) == 1.0


def test_before_the_start_labels_have_no_effect(shards: Path, tmp_path: Path) -> None:
    """Images of both classes are equal, and the checkpoint says so."""
    words = ["networks.condition=class", "networks.conditional_start_kimg=1", "train.kimg=2"]
    run_world(1, train_run, shards, tmp_path / "run", words, 36)
    generator = load_generator(tmp_path / "run")
    even, odd = (generator.sample(3, class_name=name) for name in ("even", "odd"))
    assert torch.equal(even, odd)
    newest = sorted(os.scandir(tmp_path / "run" / "checkpoints"), key=lambda entry: entry.name)[-1]
    tensors, _ = load(Path(newest.path))
    strengths = [tensor for name, tensor in tensors.items() if name.endswith("strength")]
    assert len(strengths) == 3 and not any(strengths)
