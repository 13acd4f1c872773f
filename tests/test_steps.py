"""The training step changes one network at a time and reduces each gradient once."""

import pytest
import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState
from torch import nn

from distgan.config.schema import Loss
from distgan.gan import GAN
from distgan.steps import discriminator_step, generator_step, weighted_penalties
from tests.small_gan import make_gan, micro_batch, snapshot
from tests.worlds import run_world


def changed(network: nn.Module, before: list[torch.Tensor]) -> bool:
    """Return whether any parameter differs from the copies."""
    return any(
        not torch.equal(parameter, old)
        for parameter, old in zip(network.parameters(), before, strict=True)
    )


def test_each_step_changes_only_its_own_network(gan: GAN) -> None:
    """D's step gives G no gradient; G's step leaves D and its gradients as they were."""
    batches = [micro_batch()]
    before_g, before_d = snapshot(gan.raw_generator), snapshot(gan.raw_discriminator)
    fakes, statistics = discriminator_step(
        gan, batches, loss=Loss(), penalty_scale=0, keep_graph=True
    )
    assert changed(gan.raw_discriminator, before_d)
    assert not changed(gan.raw_generator, before_g)
    assert all(parameter.grad is None for parameter in gan.raw_generator.parameters())
    assert 0 <= statistics["accuracy/d_real"] <= 1

    before_d = snapshot(gan.raw_discriminator)
    gradients = [parameter.grad.clone() for parameter in gan.raw_discriminator.parameters()]
    generator_step(gan, batches, loss=Loss(), fakes=fakes)
    assert changed(gan.raw_generator, before_g)
    assert not changed(gan.raw_discriminator, before_d)
    for parameter, gradient in zip(gan.raw_discriminator.parameters(), gradients, strict=True):
        assert parameter.requires_grad
        assert torch.equal(parameter.grad, gradient)


def count_reductions() -> dict[str, int]:
    """Return the number of gradient all-reduces in three steps, by network, on this rank."""
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

    gan, counts = make_gan(discriminator_norm="none"), {"generator": 0, "discriminator": 0}

    def hook(name: str, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        counts[name] += 1
        return allreduce_hook(None, bucket)

    gan.generator.register_comm_hook("generator", hook)
    gan.discriminator.register_comm_hook("discriminator", hook)
    loss = Loss(
        adversarial="relativistic",
        r1=1.0,
        r2=1.0,
        gradient_penalty=1.0,
        diversity={"mode_seeking": 1.0},
    )
    for _ in range(3):
        batches = [micro_batch(8), micro_batch(8)]
        discriminator_step(gan, batches, loss=loss, penalty_scale=1.0, keep_graph=False)
        generator_step(gan, batches, loss=loss)
    return counts


def test_each_step_reduces_each_network_once() -> None:
    """On two ranks, three steps of two micro-batches have three all-reduces per network."""
    assert run_world(2, count_reductions) == [{"generator": 3, "discriminator": 3}] * 2


def drift() -> str:
    """Return the message of the replica check after rank one's generator has changed alone."""
    gan = make_gan()
    gan.check_replicas()
    if gan.world.rank == 1:
        next(iter(gan.raw_generator.parameters())).data.add_(1e-6)
    try:
        gan.check_replicas()
    except RuntimeError as error:
        return str(error)
    return "equal"


def test_replicas_that_differ_stop_all_ranks() -> None:
    """One changed weight on one rank is enough."""
    assert all("differ between ranks" in said for said in run_world(2, drift))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # the compiler's
@pytest.mark.filterwarnings("ignore:Guards may run slower:RuntimeWarning")  # on Python 3.13.0
@pytest.mark.parametrize("norm", ["batch", "none"])
def test_compiled_networks_train_with_feature_distance(norm: str) -> None:
    """Logits and features come from one forward, after which nothing changes what it saved."""
    loss = Loss(diversity={"feature_distance": 1.0})
    gan = make_gan(loss, discriminator_norm=norm)
    for network in (gan.raw_generator, gan.raw_discriminator):
        network.compile(backend="aot_eager")
    try:
        _, statistics = discriminator_step(
            gan, [micro_batch(8)], loss=loss, penalty_scale=0, keep_graph=False
        )
        statistics |= generator_step(gan, [micro_batch(8)], loss=loss)
    finally:
        AcceleratorState._reset_state(True)
        torch.compiler.reset()
    assert statistics["diversity/feature_distance"] >= 0


def test_one_forward_of_reals_and_fakes_equals_two(gan: GAN) -> None:
    """Without batch norm the discriminator's gradients do not depend on the number of forwards."""
    AcceleratorState._reset_state(True)
    gradients = []
    for joined in (True, False):
        other = make_gan(discriminator_norm="none", minibatch_stddev=4)
        assert other.joins_forwards
        other.joins_forwards = joined
        discriminator_step(other, [micro_batch(8)], loss=Loss(), penalty_scale=0, keep_graph=False)
        gradients.append([weight.grad for weight in other.weights_d])
        AcceleratorState._reset_state(True)
    torch.testing.assert_close(*gradients)
    assert not gan.joins_forwards


def test_spectral_norm_takes_two_forwards() -> None:
    """It does one step of power iteration per forward, which joining them would leave out."""
    gan = make_gan(discriminator_norm="spectral")
    AcceleratorState._reset_state(True)
    assert not gan.joins_forwards


def test_one_forward_in_the_generators_step_equals_two() -> None:
    """The generator's loss and gradients do not depend on it, and reals get no gradient."""
    loss, gradients, losses = Loss(adversarial="relativistic"), [], []
    for one_forward in (True, False):
        gan = make_gan(discriminator_norm="none", minibatch_stddev=4)
        assert not gan.compares_in_one_forward
        gan.compares_in_one_forward = one_forward
        losses.append(generator_step(gan, [micro_batch(8)], loss=loss)["loss/g"])
        gradients.append([weight.grad for weight in gan.weights_g])
        AcceleratorState._reset_state(True)
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*gradients)


def test_a_training_step_penalizes_packs() -> None:
    """With packing the R1 of a step is half the squared gradient by a pack, not by one image."""
    gan, batch = make_gan(discriminator_norm="none", packing=2), micro_batch(8)
    (penalty,) = weighted_penalties(
        gan, batch, batch.reals, batch.reals, loss=Loss(r1=1.0)
    ).values()
    reals = batch.reals.clone().requires_grad_()
    (gradients,) = torch.autograd.grad(gan.raw_discriminator(reals).sum(), reals)
    by_pack = gradients.square().sum() / 4  # packs
    torch.testing.assert_close(penalty, by_pack / 2)
