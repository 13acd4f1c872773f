"""Conditional GANs: networks with labels, labels in training, sampling and export."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import distgan.draws
from distgan.commands.export import export
from distgan.config.load import load_config
from distgan.data import TrainingBatches, open_dataset
from distgan.errors import UserError
from distgan.labels import class_labels, labels_of
from distgan.networks.base import ConditionalSpec, DiscriminatorSpec, GeneratorSpec
from distgan.networks.build import build_discriminator, build_generator
from distgan.networks.conditioning import ConditionalNorm, set_label_strength, spread_labels
from distgan.networks.generator_file import load_generator
from distgan.networks.latents import generate
from shards.pack import pack
from shards.reader import ShardReader
from tests.conftest import NUM_IMAGES
from tests.test_commands import call
from tests.test_resume import pack_noise
from tests.worlds import REMEDIES, SMALL, checkpoint_digest, run_world, train_run

CONDITION = "networks.condition=class"
TRAINED = ("even", "odd")


def spec_of(architecture: str) -> ConditionalSpec:
    """Return the spec of a small conditional generator of three classes."""
    return ConditionalSpec(
        architecture=architecture, image_size=32, channels=3, width=4, latent_dim=7,
        classes=("a", "b", "c"), shares=(0.5, 0.25, 0.25),
    )  # fmt: skip


def plain(spec: GeneratorSpec) -> GeneratorSpec:
    """Return the same spec without classes."""
    return GeneratorSpec(
        architecture=spec.architecture, image_size=32, channels=3, width=4, latent_dim=7
    )


@pytest.fixture(scope="module")
def run(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a conditional run of a few steps on the even and the odd images."""
    folder = tmp_path_factory.mktemp("conditional") / "run"
    run_world(1, train_run, shards, folder, [CONDITION, "train.kimg=0.12", "data.flip=true"])
    return folder


# ---------------------------------------------------------------------------------------- networks


@pytest.mark.parametrize("architecture", ["dcgan", "resnet"])
def test_generator_is_moved_by_labels_through_codes_and_norms(architecture: str) -> None:
    """Norms change nothing at first; later each of both ways alone tells classes apart."""
    network: Any = build_generator(spec_of(architecture)).eval()
    norms = [module for module in network.modules() if isinstance(module, ConditionalNorm)]
    assert norms and all(not norm.deltas.any() for norm in norms)
    latents = torch.randn(1, 7, generator=torch.Generator().manual_seed(0)).repeat(2, 1)
    labels = torch.tensor([0, 2])

    def difference() -> float:
        first, second = network(latents, labels)
        return float((first - second).abs().max())

    with torch.no_grad():
        assert difference() > 1e-4
        network.project.weight[:, 7:] = 0  # the part that takes the embedded label
        assert difference() == 0
        for norm in norms:
            norm.deltas.normal_()
        assert difference() > 1e-4
        set_label_strength(network, 0.0)
        assert difference() == 0


@pytest.mark.parametrize("architecture", ["dcgan", "resnet"])
def test_labels_leave_the_other_initial_weights_as_they_are(architecture: str) -> None:
    """The discriminator begins with the weights of an unconditional one, and so do its features."""
    spec = spec_of(architecture)
    conditional, usual = (
        build_discriminator(each, DiscriminatorSpec(width=4, norm="none"), seed=1)
        for each in (spec, plain(spec))
    )
    for name, weight in usual.state_dict().items():
        assert torch.equal(conditional.state_dict()[name], weight), name


@pytest.mark.parametrize("architecture", ["dcgan", "resnet"])
@pytest.mark.parametrize("norm", ["none", "spectral"])
def test_logit_is_that_of_the_head_and_the_projection(architecture: str, norm: str) -> None:
    """w.h + e_y.h, with features summed over positions (Miyato and Koyama 2018, equation 4)."""
    network: Any = build_discriminator(
        spec_of(architecture), DiscriminatorSpec(width=4, norm=norm), seed=1
    ).eval()
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([2, 0, 2])
    with torch.no_grad():
        maps = network.maps(images)
        found = network(images, labels)
        expected = maps.flatten(1) @ network.head.weight[0] + network.head.bias
        expected += (maps.flatten(2).sum(2) * network.projection.weight[labels]).sum(1)
    torch.testing.assert_close(found, expected)
    if norm == "spectral":
        network.train()(images, labels)
        assert torch.linalg.matrix_norm(network.projection.weight, 2) < 1.5


def test_weights_of_classes_lie_between_classes() -> None:
    """One-hot weights are labels, and weights in between give images in between."""
    network = build_generator(spec_of("dcgan")).eval()
    latents = torch.randn(3, 7, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        by_label = network(latents, torch.tensor([0, 1, 2]))
        torch.testing.assert_close(network(latents, torch.eye(3)), by_label)
        near = network(latents, torch.eye(3) * 0.99 + torch.eye(3).roll(1, 1) * 0.01)
    assert 0 < (near - by_label).norm() < 0.2 * (by_label[0] - by_label[1]).norm()


def test_labels_of_many_images_have_the_shares_of_classes() -> None:
    """Any run of consecutive numbers does, and each label depends on its number alone."""
    numbers, shares = torch.arange(1000), (0.7, 0.2, 0.1)
    labels = spread_labels(numbers, shares, seed=3)
    for first in (0, 137, 900):
        counts = torch.bincount(labels[first : first + 100], minlength=3) / 100
        assert (counts - torch.tensor(shares)).abs().max() <= 0.03
    assert torch.equal(spread_labels(numbers[500:510], shares, seed=3), labels[500:510])
    assert not torch.equal(spread_labels(numbers, shares, seed=4), labels)


# ------------------------------------------------------------------------------- labels of images


def numbers_in(reals: torch.Tensor) -> np.ndarray:
    """Return the numbers that the fixture `shards` hid in the first two pixels of images."""
    pixels = ((reals[:, 0, 0, :2] + 1) * 127.5).round().long().numpy()
    return pixels[:, 0] * 256 + pixels[:, 1]


@pytest.mark.parametrize("order", ["permutation", "windows"])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_labels_are_those_of_the_images(
    shards: Path, monkeypatch: pytest.MonkeyPatch, order: str, world_size: int
) -> None:
    """On every rank, in every micro-batch, from a later start, over more than one epoch."""
    monkeypatch.setattr(distgan.draws, "DRAWN_IMAGES", 24)  # labels are drawn in several parts
    settings = [*SMALL, CONDITION, f"data.order={order}", "data.lanes=2", "train.accumulate=2"]
    config = load_config(None, settings, data=str(shards))
    _, reader = open_dataset(config.data)
    labels = class_labels(reader, None)
    assert labels.names == TRAINED and sum(labels.shares) == 1
    for rank in range(world_size):
        place = {"rank": rank, "world_size": world_size, "device": torch.device("cpu")}
        with TrainingBatches(reader, config, start=24, labels=labels, **place) as batches:
            for step in range(6):
                for batch in batches.next(24 + 12 * step, rollbacks=step // 3):
                    assert batch.labels is not None
                    assert (numbers_in(batch.reals) % 2 == batch.labels.numpy()).all()


def test_labels_count_the_chosen_classes_alone(tmp_path: Path) -> None:
    """The last two of three classes have the labels 0 and 1."""
    for number in range(12):
        path = tmp_path / "images" / "abc"[number % 3] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((32, 32), number, np.uint8)).save(path)
    pack(str(tmp_path / "images"), tmp_path / "packed", size=32, channels=1, workers=1)
    reader = ShardReader(tmp_path / "packed", classes=("c", "b"))
    labels = class_labels(reader, ("c", "b"))
    pixels = reader.gather(np.arange(8))[:, 0, 0, 0]
    assert (labels.names, labels.counts) == (("b", "c"), (4, 4))
    assert (labels.of_samples(np.arange(8)) == pixels % 3 - 1).all()


# ---------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("world", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_ranks_train_the_weights_of_micro_batches(shards: Path, tmp_path: Path, world: int) -> None:
    """Also a class that a rank's part of the batch lacks gets its gradient on every rank."""
    words = [CONDITION, "train.kimg=0.048", "data.flip=true"]
    together = [*words, f"train.accumulate={world}"]
    one = run_world(1, train_run, shards, tmp_path / "one", together)[0]["weights"]
    ranks = run_world(world, train_run, shards, tmp_path / "many", words)
    assert any("embedding" in name for name in one) and any("projection" in name for name in one)
    for name, weight in one.items():
        np.testing.assert_allclose(ranks[0]["weights"][name], weight, atol=2e-4, err_msg=name)
        np.testing.assert_array_equal(ranks[0]["weights"][name], ranks[-1]["weights"][name])


def test_resumed_run_with_all_remedies_is_bit_identical(shards: Path, tmp_path: Path) -> None:
    """Penalties, unrolling, diversity terms and augmentation go together with labels."""
    words = [*REMEDIES, CONDITION, "train.kimg=0.064", "data.flip=true"]
    run_world(1, train_run, shards, tmp_path / "whole", words)
    stopped = run_world(1, train_run, shards, tmp_path / "cut", words, 32)
    assert stopped[0]["state"] == "preempted"
    run_world(1, train_run, shards, tmp_path / "cut", words)
    assert checkpoint_digest(tmp_path / "whole") == checkpoint_digest(tmp_path / "cut")


def test_few_images_of_a_class_cause_a_warning(run: Path) -> None:
    """The events say which classes are likely to collapse."""
    assert "few images in even (15 images), odd (15 images)" in (run / "events.jsonl").read_text()


def test_sample_grid_has_a_row_for_each_class(run: Path) -> None:
    """Of reals every image is of its row's class; fakes have the same size."""
    sizes = []
    for path in (run / "samples").iterdir():
        with Image.open(path) as picture:
            sizes.append(picture.size)
            if path.name == "reals.png":
                pixels = picture.convert("L")
    assert set(sizes) == {(8 * 68 + 4, 2 * 68 + 4)}
    for row in range(2):
        numbers = [
            256 * pixels.getpixel((4 + 68 * x, 4 + 68 * row))
            + pixels.getpixel((6 + 68 * x, 4 + 68 * row))
            for x in range(8)
        ]
        assert {number % 2 for number in numbers} == {row}
        assert len(set(numbers)) == 8 and max(numbers) < NUM_IMAGES


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["networks.per_class=true"], "networks.per_class=true one for each"),
        (["networks.packing=2"], "networks.packing=2 judges several images as one"),
        (["networks.condition=label"], "networks.condition"),
    ],
)
def test_settings_that_do_not_fit_are_refused(words: list[str], expected: str) -> None:
    """The error names what to leave out."""
    with pytest.raises(UserError, match=expected) as refused:
        load_config(None, [CONDITION, *words])
    assert "\n" not in str(refused.value)


def test_images_without_labels_are_refused(tmp_path: Path) -> None:
    """The error says how to get labels."""
    config = load_config(None, [CONDITION], data=str(pack_noise(tmp_path, num=12, seed=0)))
    _, reader = open_dataset(config.data)
    with pytest.raises(UserError, match=r"has no labels.*class folders"):
        labels_of(config.networks, reader, config.data)


def test_one_class_is_refused(shards: Path) -> None:
    """A condition that is always the same tells nothing."""
    reader = ShardReader(shards, classes=("odd",))
    with pytest.raises(UserError, match="at least two classes"):
        class_labels(reader, ("odd",))


# --------------------------------------------------------------------------- the trained generator


def test_loaded_generator_samples_classes(run: Path) -> None:
    """By name, by number and by weights; without a choice both classes appear."""
    generator = load_generator(run)
    assert generator.classes == TRAINED
    odd = generator.sample(4, seed=1, class_name="odd")
    assert torch.equal(odd, generator.sample(4, seed=1, labels=torch.ones(4, dtype=torch.long)))
    weights = torch.tensor([[0.0, 1.0]]).repeat(4, 1)
    assert torch.equal(odd, generator.sample(4, seed=1, labels=weights))
    assert not torch.equal(odd, generator.sample(4, seed=1, class_name="even"))
    assert sorted(generator.inputs(8)[1].tolist()) == [0] * 4 + [1] * 4
    still = generator.sample(4, truncation=0.0, class_name="odd")
    assert torch.equal(still[0], still[3])


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (torch.tensor([0, 2, 1, 1]), r"label 2: this generator has 2 classes, 0 \(even\)"),
        (torch.tensor([0, -1, 1, 1]), "label -1"),
        (torch.tensor([0, 1]), "2 labels for 4 images"),
        (torch.zeros(4, 3), r"shape \[4, 3\]; give \[4, 2\]"),
    ],
)
def test_labels_that_do_not_exist_are_refused(
    run: Path, labels: torch.Tensor, expected: str
) -> None:
    """One line with what exists."""
    with pytest.raises(UserError, match=expected):
        load_generator(run).sample(4, labels=labels)


@pytest.mark.parametrize(
    ("words", "size"),
    [
        ([], (8, 2)),
        (["--class", "odd", "--num", "9"], (3, 3)),
        (["--labels", "odd,0,even,odd"], (2, 2)),
        (["--interpolate", "--labels", "even,odd", "--num", "16"], (8, 2)),
        (["--interpolate", "--num", "8"], (8, 1)),
        (["--progress", "--num", "2"], None),
        (["--video", "walk.gif", "--labels", "even,odd"], None),
    ],
)
def test_sample_makes_images_of_classes(
    run: Path, tmp_path: Path, words: list[str], size: tuple[int, int] | None
) -> None:
    """Grids are as large as their images need; the default is one row per class."""
    words = [str(tmp_path / word) if word.endswith(".gif") else word for word in words]
    code, said = call("sample", run, *words, "--out", tmp_path / "grid.png")
    assert code == 0, said
    if size is not None:
        with Image.open(tmp_path / "grid.png") as picture:
            assert picture.size == tuple(side * 68 + 4 for side in size)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--class", "cat"], "no class 'cat'; choose from even, odd"),
        (["--labels", "even,cat"], "no class 'cat'"),
        (["--labels", "0,7"], "label 7: this generator has 2 classes"),
        (["--labels", "0,1", "--num", "3"], "--labels names 2 images, and --num 3"),
        (["--labels", "0", "--class", "odd"], "exclude one another"),
        (["--interpolate", "--labels", "0"], "two or more"),
    ],
)
def test_mistakes_in_sampling_exit_2(run: Path, words: list[str], expected: str) -> None:
    """The message names what to change."""
    code, said = call("sample", run, *words)
    assert (code, expected in " ".join(said.split())) == (2, True), said


def test_labels_of_an_unconditional_generator_are_refused(finished: Path) -> None:
    """So is a class."""
    for words in (["--labels", "0"], ["--class", "odd"]):
        code, said = call("sample", finished, *words)
        assert (code, "conditional" in said or "no classes" in said) == (2, True), said


def test_demo_is_refused(run: Path, tmp_path: Path) -> None:
    """The error names the command that exports the generator."""
    code, said = call("demo", run, "--out", tmp_path / "page")
    assert (code, "distgan export" in " ".join(said.split())) == (2, True), said


def test_exported_file_is_the_generator(run: Path, tmp_path: Path) -> None:
    """It loads again, and the card lists the classes."""
    export(run, tmp_path, format="safetensors", license="mit")
    again, generator = load_generator(tmp_path / "generator.safetensors"), load_generator(run)
    assert again.spec == generator.spec
    assert torch.equal(again.sample(3, seed=1), generator.sample(3, seed=1))
    card = (tmp_path / "README.md").read_text()
    assert "conditional DCGAN of 2 classes" in card and "0. `even`\n1. `odd`" in card


def test_onnx_takes_labels_as_second_input(run: Path, tmp_path: Path) -> None:
    """onnxruntime makes the images of the class that is asked for, in batches of any size."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="pip install 'distgan[onnx]'")
    pytest.importorskip("onnxscript", reason="pip install 'distgan[onnx]'")
    export(run, tmp_path, format="onnx", license="mit")
    session = onnxruntime.InferenceSession(tmp_path / "generator.onnx")
    generator = load_generator(run)
    for num in (1, 5):
        latents, labels = generator.inputs(num, seed=2)
        feeds = {"latents": latents.numpy(), "labels": labels.numpy()}
        (images,) = session.run(None, feeds)
        expected = generate(generator.network, latents, labels)
        torch.testing.assert_close(torch.from_numpy(images), expected, rtol=0, atol=1e-4)
