"""Conditional GANs: networks with labels, labels of images, and training with them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import distgan.draws
from distgan.config.load import load_config
from distgan.config.schema import Config, Diversity, Loss, Networks, Train
from distgan.data import MicroBatch, TrainingBatches, open_dataset
from distgan.errors import UserError
from distgan.gan import GAN, build_gan
from distgan.labels import class_labels, labels_of
from distgan.networks.base import ConditionalSpec, DiscriminatorSpec, GeneratorSpec
from distgan.networks.build import build_discriminator, build_generator
from distgan.networks.conditioning import ConditionalNorm, set_label_strength, spread_labels
from distgan.networks.ema import recalibrate_batch_norm
from distgan.runtime.accelerator import build_accelerator, reset_accelerator
from distgan.steps import discriminate, generator_losses, weighted_penalties
from shards.pack import pack
from shards.reader import ShardReader
from tests.test_resume import pack_noise
from tests.worlds import (
    MODULATED,
    REFINED,
    REMEDIES,
    SMALL,
    checkpoint_digest,
    run_world,
    train_run,
)

CONDITION = "networks.condition=class"
CLASSES = (CONDITION,)
CLUSTERS = ("networks.condition=cluster", "networks.num_clusters=3")
TRAINED = ("even", "odd")


def spec_of(architecture: str) -> ConditionalSpec:
    """Return the spec of a small conditional generator of three classes."""
    return ConditionalSpec(
        architecture=architecture, image_size=32, channels=3, width=4, latent_dim=7,
        classes=("a", "b", "c"), shares=(0.5, 0.25, 0.25), blends=True,
    )  # fmt: skip


def plain(spec: GeneratorSpec) -> GeneratorSpec:
    """Return the same spec without classes."""
    return GeneratorSpec(
        architecture=spec.architecture, image_size=32, channels=3, width=4, latent_dim=7
    )


# ---------------------------------------------------------------------------------------- networks


@pytest.mark.parametrize("architecture", ["dcgan", "resnet"])
def test_labels_act_on_the_norms_alone(architecture: str) -> None:
    """At first they change nothing, and the other weights are those of an unconditional one."""
    network: Any = build_generator(spec_of(architecture)).eval()
    assert any(isinstance(module, ConditionalNorm) for module in network.modules())
    assert not network.modulation.weight.any()
    usual = build_generator(plain(spec_of(architecture))).state_dict()
    found = {name.replace(".norm.", "."): each for name, each in network.state_dict().items()}
    assert all(torch.equal(found[name], weight) for name, weight in usual.items())
    latents = torch.randn(1, 7, generator=torch.Generator().manual_seed(0))

    def difference() -> float:
        # One by one, because some processors round the rows of a batch differently.
        first, second = (network(latents, torch.tensor([label])) for label in (0, 2))
        return float((first - second).abs().max())

    with torch.no_grad():
        assert difference() == 0
        network.modulation.weight.normal_()
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
    network: Any = build_generator(spec_of("dcgan")).eval()
    random = torch.Generator().manual_seed(0)
    latents = torch.randn(3, 7, generator=random)
    with torch.no_grad():
        network.modulation.weight.normal_(generator=random)
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


# -------------------------------------------------------------------------------------------- steps


@pytest.fixture
def conditional_gan() -> Iterator[GAN]:
    """Build a small conditional GAN whose norms depend on the class."""
    train = Train(cpu_threads=1, precision="launcher")
    networks = Networks(condition="class", discriminator_width=4, discriminator_norm="none")
    reset_accelerator()
    accelerator, _ = build_accelerator(train)
    gan = build_gan(accelerator, spec_of("dcgan"), Config(networks=networks, train=train))
    draw = torch.Generator().manual_seed(0)
    for network in (gan.raw_generator, gan.ema.generator):
        weight: Any = network.modulation.weight
        weight.data = torch.randn(weight.shape, generator=draw)
    yield gan
    reset_accelerator()


def batch_of(size: int) -> MicroBatch:
    """Return random images and latents with labels of all three classes."""
    draw = torch.Generator().manual_seed(1)
    reals = torch.rand(size, 3, 32, 32, generator=draw) * 2 - 1
    latents, positions = torch.randn(size, 7, generator=draw), torch.arange(size)
    return MicroBatch(reals, latents, positions, seed=0, labels=positions % 3)


def test_penalties_are_of_each_image_with_its_label(conditional_gan: GAN) -> None:
    """R1 and R2, from one forward, equal those of single images."""
    gan, batch = conditional_gan, batch_of(4)
    assert batch.labels is not None
    fakes = batch.reals.flip(0)
    found = weighted_penalties(gan, batch, batch.reals, fakes, loss=Loss(r1=1.0, r2=1.0))
    for name, images in (("r1", batch.reals), ("r2", fakes)):
        squares = []
        for image, label in zip(images, batch.labels, strict=True):
            point = image[None].clone().requires_grad_()
            logit = gan.raw_discriminator(point, label[None]).sum()
            squares.append(torch.autograd.grad(logit, point)[0].square().sum())
        torch.testing.assert_close(found[name], torch.stack(squares).mean() / 2)


def test_one_forward_of_reals_and_fakes_equals_two(conditional_gan: GAN) -> None:
    """Fakes have the labels of the reals at their places."""
    gan, batch = conditional_gan, batch_of(4)
    assert batch.labels is not None and gan.joins_forwards
    fakes = batch.reals.flip(0)
    logits = discriminate(gan, batch.reals, fakes, batch.labels)
    for found, images in zip(logits, (batch.reals, fakes), strict=True):
        torch.testing.assert_close(found, gan.raw_discriminator(images, batch.labels))


def test_mode_seeking_compares_fakes_of_one_class(conditional_gan: GAN) -> None:
    """The term is largest for fakes that depend on their labels alone."""
    batch, loss = batch_of(8), Loss(diversity=Diversity(mode_seeking=1.0))
    assert batch.labels is not None
    fakes = batch.labels[:, None, None, None].expand(-1, 3, 32, 32) - 1.0
    _, terms = generator_losses(conditional_gan, batch, fakes, loss=loss)
    assert terms["mode_seeking"].item() == pytest.approx(1)


def test_norm_statistics_are_those_of_the_training_mix(conditional_gan: GAN) -> None:
    """Statistics of one class alone would be others."""
    gan = conditional_gan
    gan.recalibrate_batch_norm(seed=0)
    norms = [m for m in gan.ema.generator.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    found = [norm.running_mean.clone() for norm in norms if norm.running_mean is not None]
    latents = torch.randn(1024, 7, generator=torch.Generator().manual_seed(5))
    numbers = torch.arange(1024)
    mix, one_class = torch.tensor([0, 0, 1, 2])[numbers % 4], torch.zeros_like(numbers)
    differences = []
    for labels in (mix, one_class):
        recalibrate_batch_norm(gan.ema.generator, latents, labels)
        pairs = zip(found[1:], norms[1:], strict=True)
        differences.append(sum(float((a - b.running_mean).abs().sum()) for a, b in pairs))
    assert differences[0] < 0.3 * differences[1]


# ---------------------------------------------------------------------------------------- training


@pytest.mark.parametrize(
    ("labels", "world"),
    [
        (CLASSES, 2),
        pytest.param(CLASSES, 3, marks=pytest.mark.slow),
        pytest.param(CLUSTERS, 2, marks=pytest.mark.slow),
        pytest.param(CLUSTERS, 3, marks=pytest.mark.slow),
    ],
)
def test_ranks_train_the_weights_of_micro_batches(
    shards: Path, tmp_path: Path, labels: tuple[str, ...], world: int
) -> None:
    """Also a class that a rank's part of the batch lacks gets its gradient on every rank."""
    words = [*labels, REFINED, "train.kimg=0.048", "data.flip=true"]
    together = [*words, f"train.accumulate={world}"]
    one = run_world(1, train_run, shards, tmp_path / "one", together)[0]["weights"]
    ranks = run_world(world, train_run, shards, tmp_path / "many", words)
    assert any("embedding" in name for name in one) and any("projection" in name for name in one)
    for name, weight in one.items():
        np.testing.assert_allclose(ranks[0]["weights"][name], weight, atol=2e-4, err_msg=name)
        np.testing.assert_array_equal(ranks[0]["weights"][name], ranks[-1]["weights"][name])


def test_resumed_run_with_all_remedies_is_bit_identical(shards: Path, tmp_path: Path) -> None:
    """Penalties, unrolling, diversity terms and augmentation go together with labels."""
    words = [*REMEDIES, REFINED, MODULATED, CONDITION, "train.kimg=0.064", "data.flip=true"]
    run_world(1, train_run, shards, tmp_path / "whole", words)
    stopped = run_world(1, train_run, shards, tmp_path / "cut", words, 32)
    assert stopped[0]["state"] == "preempted"
    run_world(1, train_run, shards, tmp_path / "cut", words)
    assert checkpoint_digest(tmp_path / "whole") == checkpoint_digest(tmp_path / "cut")


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


def test_labels_that_would_come_too_late_are_refused(shards: Path, tmp_path: Path) -> None:
    """They are blended in until twice as many images as the number after which they begin."""
    words = [CONDITION, "train.kimg=0.048", "networks.conditional_start_kimg=0.025"]
    with pytest.raises(AssertionError, match=r"start_kimg=0.025: .* use at most 0.024"):
        run_world(1, train_run, shards, tmp_path / "run", words)


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
