"""The adversarial step moves one network at a time."""

import torch
import torch.distributed as dist
from torch import nn

from distgan.config.schema import Loss
from distgan.gan import GAN
from distgan.steps import discriminator_step, generator_step
from tests.small_gan import make_gan, micro_batch, snapshot
from tests.worlds import run_world


def changed(network: nn.Module, before: list[torch.Tensor]) -> bool:
    """Whether any parameter differs from the copies."""
    return any(
        not torch.equal(parameter, old)
        for parameter, old in zip(network.parameters(), before, strict=True)
    )


def test_each_step_moves_its_own_network_only(gan: GAN) -> None:
    """D's step leaves G as it was and gives it no gradient; G's step leaves D, and its gradients, as they were."""
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
    """All-reduces of gradients in three steps, by network, on this rank of a world of two."""
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


def test_one_reduction_a_network_a_step() -> None:
    """Two micro-batches, three steps, two ranks: three all-reduces of each network, no more."""
    assert run_world(2, count_reductions) == [{"generator": 3, "discriminator": 3}] * 2


def drift() -> str:
    """What the replica check says when rank one's generator has moved on its own."""
    gan = make_gan()
    gan.check_replicas()
    if gan.world.rank == 1:
        next(iter(gan.raw_generator.parameters())).data.add_(1e-6)
    try:
        gan.check_replicas()
    except RuntimeError as error:
        return str(error)
    return "equal"


def test_replicas_that_drift_are_noticed() -> None:
    """A single changed weight on one rank stops all ranks."""
    assert all("differ between ranks" in said for said in run_world(2, drift))
