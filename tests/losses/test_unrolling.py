"""Unrolling: the gradient flows through all steps, and the discriminator itself does not change."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call

from distgan.config.load import load_config
from distgan.config.schema import Loss, Optim
from distgan.gan import GAN
from distgan.losses.unrolling import DifferentiableAdam, sgd, unroll
from distgan.steps import discriminator_step, generator_step
from tests.small_gan import make_gan, micro_batch, snapshot
from tests.worlds import run_world

UNROLLED = Loss(unroll_steps=3)


class Scene:
    """A small discriminator with its reals and fakes in two dimensions, in float64."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1)).double()
        self.reals, self.fakes = torch.randn(2, 16, 2, dtype=torch.float64)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=0.05, betas=(0.5, 0.9))
        for _ in range(3):  # so that the moments are not zero
            self.optimizer.zero_grad()
            self.loss(dict(self.network.named_parameters()), self.fakes).backward()
            self.optimizer.step()

    def loss(self, parameters: dict[str, torch.Tensor], fakes: torch.Tensor) -> torch.Tensor:
        real, fake = (functional_call(self.network, parameters, (x,)) for x in (self.reals, fakes))
        return nn.functional.softplus(-real).mean() + nn.functional.softplus(fake).mean()

    def unrolled(self, fakes: torch.Tensor, kind: str) -> torch.Tensor:
        named = dict(self.network.named_parameters())
        step = sgd
        if kind == "adam":
            moments = {name: self.optimizer.state[parameter] for name, parameter in named.items()}
            step = DifferentiableAdam(moments, betas=(0.5, 0.9), epsilon=1e-8)
        copies = {
            name: parameter.detach().clone().requires_grad_() for name, parameter in named.items()
        }
        return self.loss(
            unroll(copies, lambda p: self.loss(p, fakes), num_steps=4, lr=0.05, step=step),
            fakes,
        )


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_gradient_is_the_finite_difference(kind: str) -> None:
    """The gradient by the fakes flows through all four steps; it is not the first-order one."""
    scene = Scene()
    fakes = scene.fakes.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(scene.unrolled(fakes, kind), fakes)
    assert torch.autograd.gradcheck(lambda x: scene.unrolled(x, kind), (fakes,), atol=1e-6)
    first_order = torch.autograd.grad(
        scene.loss(dict(scene.network.named_parameters()), fakes), fakes
    )[0]
    assert not torch.allclose(gradient, first_order, rtol=0.01)


def test_steps_are_those_of_the_optimizer() -> None:
    """Unrolled Adam steps reach the loss that PyTorch's Adam reaches on the same images."""
    scene = Scene()
    expected = copy.deepcopy(scene)
    expected.optimizer = torch.optim.Adam(expected.network.parameters(), lr=0.05, betas=(0.5, 0.9))
    expected.optimizer.load_state_dict(copy.deepcopy(scene.optimizer.state_dict()))
    for _ in range(4):
        expected.optimizer.zero_grad()
        expected.loss(dict(expected.network.named_parameters()), scene.fakes).backward()
        expected.optimizer.step()
    reached = expected.loss(dict(expected.network.named_parameters()), scene.fakes)
    torch.testing.assert_close(scene.unrolled(scene.fakes, "adam"), reached, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("epsilon", "expected"), [(1e-8, -0.01), (4.0, -0.006)])
def test_adam_after_steps_of_rmsprop_begins_with_its_first_step(
    epsilon: float, expected: float
) -> None:
    """It is as long as the learning rate, whatever the gradient, unless epsilon shortens it."""
    weight = nn.Parameter(torch.tensor([1.0]))
    optimizer = torch.optim.RMSprop([weight], lr=1e-3)
    for _ in range(100):
        weight.grad = torch.ones(1)
        optimizer.step()
    moments = {"weight": optimizer.state[weight]}
    step = DifferentiableAdam(moments, betas=(0.5, 0.999), epsilon=epsilon)
    stepped = step({"weight": torch.zeros(1)}, [torch.full((1,), 3.0)], lr=0.01)
    assert stepped["weight"].item() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("words", "chosen"),
    [
        ([], "adam"),
        (["optim.name=adamw"], "adam"),
        (["optim.name=rmsprop"], "adam"),
        (["optim.name=sgd"], "sgd"),
        (["optim.name=sgd", "loss.unroll_optimizer=adam"], "adam"),
    ],
)
def test_unrolled_steps_follow_the_optimizer(words: list[str], chosen: str) -> None:
    """The learning rate of SGD would be far too high for Adam."""
    config = load_config(None, ["loss.unroll_steps=5", *words])
    assert config.loss.unroll_optimizer == chosen


def test_unrolling_does_not_change_the_discriminator(gan: GAN) -> None:
    """Its parameters, norm statistics, gradients and optimizer stay the same to the last bit."""
    batches = [micro_batch(8)]
    fakes, _ = discriminator_step(gan, batches, loss=UNROLLED, penalty_scale=0, keep_graph=True)
    discriminator, optimizer = gan.raw_discriminator, gan.optimizer_d.optimizer
    tensors = [*discriminator.state_dict().values(), *(p.grad for p in discriminator.parameters())]
    tensors += [value for state in optimizer.state.values() for value in state.values()]
    before, generator = [tensor.clone() for tensor in tensors], snapshot(gan.raw_generator)
    generator_step(gan, batches, loss=UNROLLED, fakes=fakes)
    assert all(torch.equal(now, then) for now, then in zip(tensors, before, strict=True))
    assert any(
        not torch.equal(p, old)
        for p, old in zip(gan.raw_generator.parameters(), generator, strict=True)
    )


def test_only_the_saddle_value_saturates(gan: GAN) -> None:
    """If logits of fakes are far below zero, only the gradient of `saddle` vanishes."""
    with torch.no_grad():
        gan.raw_discriminator.head.bias.fill_(-40)
    norms = {}
    for value in ("saddle", "non_saturating"):
        loss = Loss(unroll_steps=1, unroll_optimizer="sgd", unroll_value=value)
        norms[value] = float(generator_step(gan, [micro_batch(8)], loss=loss)["grad_norm/g"])
    assert norms["saddle"] < 1e-6 * norms["non_saturating"]


def unrolled_step_on_own_images() -> list[float]:
    """Return sums of the generator's weights after one unrolled step on this rank's images."""
    gan = make_gan(loss=UNROLLED, optim=Optim(lr_g=0.01))
    rank = torch.distributed.get_rank()
    batches = [micro_batch(8, first=8 * rank)]
    fakes, _ = discriminator_step(gan, batches, loss=UNROLLED, penalty_scale=0, keep_graph=True)
    generator_step(gan, batches, loss=UNROLLED, fakes=fakes)
    return [float(p.double().sum()) for p in gan.raw_generator.parameters()]


def test_ranks_agree_after_an_unrolled_step() -> None:
    """Each rank unrolls on its own images; gradients are averaged, so the generators stay equal."""
    first, second = run_world(2, unrolled_step_on_own_images)
    assert first == second
