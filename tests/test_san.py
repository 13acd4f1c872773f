"""A discriminator whose last layer has unit norm, and whose direction has a loss of its own."""

from pathlib import Path

import numpy as np
import pytest
import torch

from distgan.config.load import load_config
from distgan.config.schema import Loss
from distgan.errors import UserError
from distgan.networks.base import ConditionalSpec, Discriminator, DiscriminatorSpec, GeneratorSpec
from distgan.networks.build import GENERATORS, build_discriminator
from distgan.steps import discriminator_loss
from tests.small_gan import make_gan, micro_batch
from tests.worlds import MODULATED, SMALL, checkpoint_digest, run_world, train_run

PLAIN = {"image_size": 32, "channels": 3, "width": 4, "latent_dim": 7}
SAN = "networks.san=true"
# Adam would make a step of full length of the gradients of the modulation, which begin at zero and
# then consist of little more than rounding.
SGD = ("optim.name=sgd", "optim.lr_g=0.05", "optim.lr_d=0.05")


def discriminators(architecture: str, *, conditional: bool) -> list[Discriminator]:
    """Return two with the same weights, the second with SAN."""
    classes = {"classes": ("a", "b", "c"), "shares": (0.5, 0.25, 0.25)}
    spec: GeneratorSpec = GeneratorSpec(architecture=architecture, **PLAIN)
    if conditional:
        spec = ConditionalSpec(architecture=architecture, **PLAIN, **classes)
    made = [
        build_discriminator(spec, DiscriminatorSpec(width=4, norm="none", san=san))
        for san in (False, True)
    ]
    with torch.no_grad():
        for each in made:
            each.head.bias.fill_(0.25)
    return made


@pytest.mark.parametrize("architecture", GENERATORS)
@pytest.mark.parametrize("conditional", [False, True])
def test_logits_do_not_depend_on_the_norm_of_the_last_layer(
    architecture: str, conditional: bool
) -> None:
    """They are those of a head that is divided by its norm, with that of the label added."""
    plain, sliced = discriminators(architecture, conditional=conditional)
    images = torch.randn(3, 3, 32, 32)
    labels = [torch.tensor([2])] if conditional else []
    for image in images.split(1):
        logit, maps = plain(image, *labels), plain.maps(image)
        weight = plain.head.weight.unflatten(1, (maps.shape[1], -1))
        if conditional:
            assert plain.projection is not None
            weight = weight + plain.projection(labels[0])[:, :, None]
        expected = (logit - 0.25) / weight.norm() + 0.25
        torch.testing.assert_close(sliced(image, *labels), expected)
    with torch.no_grad():
        for weight in (sliced.head.weight, *(p.weight for p in [sliced.projection] if p)):
            weight.mul_(3)
    torch.testing.assert_close(sliced(image, *labels), expected)


@pytest.mark.parametrize("conditional", [False, True])
def test_logits_train_the_layers_and_scores_the_direction(conditional: bool) -> None:
    """Both have the same values, and neither has a gradient by the weights of the other."""
    _, network = discriminators("dcgan", conditional=conditional)
    labels = [torch.tensor([0, 1, 2])] if conditional else []
    logits, scores = network(torch.randn(3, 3, 32, 32), *labels, with_scores=True)
    torch.testing.assert_close(scores + 0.25, logits)
    of_head = [network.head.weight, *(p.weight for p in [network.projection] if p)]
    of_layers = list(network.layers.parameters())
    for value, trained, others in ((logits, of_layers, of_head), (scores, of_head, of_layers)):
        gradients = torch.autograd.grad(
            value.sum(), [*trained, *others], allow_unused=True, retain_graph=True
        )
        assert all(gradient is not None for gradient in gradients[: len(trained)])
        assert all(gradient is None for gradient in gradients[len(trained) :])


def test_the_direction_is_trained_by_the_difference_of_mean_scores() -> None:
    """Its gradient is that of the fakes' mean score minus the reals', whatever the loss is."""
    gan = make_gan(discriminator_norm="none", san=True)
    batch, network = micro_batch(8), gan.raw_discriminator
    fakes = micro_batch(8, first=8).reals
    scores = [network(each, with_scores=True)[1].mean() for each in (fakes, batch.reals)]
    (expected,) = torch.autograd.grad(scores[0] - scores[1], network.head.weight)
    for loss in (Loss(), Loss(adversarial="relativistic", r1=1.0, r2=1.0)):
        scale = 8.0 if loss.penalised else 0.0
        total, _ = discriminator_loss(gan, batch, fakes, loss=loss, penalty_scale=scale)
        (found,) = torch.autograd.grad(total, network.head.weight)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("words", "world"),
    [
        ((SAN,), 2),
        ((SAN, MODULATED, *SGD), 2),
        pytest.param((SAN, MODULATED, *SGD, "networks.condition=class"), 3, marks=pytest.mark.slow),
    ],
)
def test_ranks_train_the_weights_of_micro_batches(
    shards: Path, tmp_path: Path, words: tuple[str, ...], world: int
) -> None:
    """Several processes compute what one does with as many micro-batches."""
    words = (*SMALL, *words, "train.kimg=0.048")
    together = (*words, f"train.accumulate={world}")
    one = run_world(1, train_run, shards, tmp_path / "one", together)[0]["weights"]
    ranks = run_world(world, train_run, shards, tmp_path / "many", words)
    for name, weight in one.items():
        np.testing.assert_allclose(ranks[0]["weights"][name], weight, atol=2e-4, err_msg=name)
        np.testing.assert_array_equal(ranks[0]["weights"][name], ranks[-1]["weights"][name])


def test_a_resumed_run_is_bit_identical(shards: Path, tmp_path: Path) -> None:
    """Nothing but the weights carries the direction over."""
    words = [*SMALL, SAN, "train.kimg=0.064"]
    run_world(1, train_run, shards, tmp_path / "whole", words)
    stopped = run_world(1, train_run, shards, tmp_path / "cut", words, 32)
    assert stopped[0]["state"] == "preempted"
    run_world(1, train_run, shards, tmp_path / "cut", words)
    assert checkpoint_digest(tmp_path / "whole") == checkpoint_digest(tmp_path / "cut")


def test_unrolling_is_refused() -> None:
    """It would not unroll the loss of the direction."""
    with pytest.raises(UserError, match=r"networks.san .* loss.unroll_steps"):
        load_config(None, [SAN, "loss.unroll_steps=2"])
