"""The adversarial step moves one network at a time."""

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState
from torch import nn

from distgan.config import Networks, Optim, Train
from distgan.networks import GeneratorSpec
from distgan.objectives.adversarial import ADVERSARIAL
from distgan.players import Players, build_players
from distgan.runtime import build_accelerator
from distgan.steps import discriminator_step, generator_step
from tests.worlds import run_world


def make_players() -> Players:
    """Small players on the CPU."""
    spec = GeneratorSpec("dcgan", 32, 1, width=4, latent_dim=8)
    train = Train(cpu_threads=1, precision="launcher")
    accelerator, _ = build_accelerator(train)
    return build_players(accelerator, spec, networks=Networks(discriminator_width=4), optim=Optim(), train=train)


@pytest.fixture
def players() -> Iterator[Players]:
    """Players in a world of one; Accelerate's state is undone afterwards."""
    yield make_players()
    AcceleratorState._reset_state(True)


def snapshot(network: nn.Module) -> list[torch.Tensor]:
    """Copies of all parameters."""
    return [parameter.detach().clone() for parameter in network.parameters()]


def changed(network: nn.Module, before: list[torch.Tensor]) -> bool:
    """Whether any parameter differs from the copies."""
    return any(not torch.equal(parameter, old) for parameter, old in zip(network.parameters(), before, strict=True))


def test_each_step_moves_its_own_network_only(players: Players) -> None:
    """D's step leaves G as it was and gives it no gradient; G's step leaves D, and its gradients, as they were."""
    loss, reals, latents = ADVERSARIAL["bce"], [torch.rand(4, 1, 32, 32)], [torch.randn(4, 8)]
    before_g, before_d = snapshot(players.bare_generator), snapshot(players.bare_discriminator)
    fakes, statistics = discriminator_step(
        players, reals=reals, latents=latents, loss=loss, label_smoothing=0.0, keep_graph=True
    )
    assert changed(players.bare_discriminator, before_d)
    assert not changed(players.bare_generator, before_g)
    assert all(parameter.grad is None for parameter in players.bare_generator.parameters())
    assert 0 <= statistics["accuracy/d_real"] <= 1

    before_d = snapshot(players.bare_discriminator)
    gradients = [parameter.grad.clone() for parameter in players.bare_discriminator.parameters()]
    generator_step(players, fakes=fakes, latents=latents, loss=loss)
    assert changed(players.bare_generator, before_g)
    assert not changed(players.bare_discriminator, before_d)
    for parameter, gradient in zip(players.bare_discriminator.parameters(), gradients, strict=True):
        assert parameter.requires_grad
        assert torch.equal(parameter.grad, gradient)


def count_reductions() -> dict[str, int]:
    """All-reduces of gradients in three steps, by network, on this rank of a world of two."""
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

    players, counts = make_players(), {"generator": 0, "discriminator": 0}

    def hook(name: str, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        counts[name] += 1
        return allreduce_hook(None, bucket)

    players.generator.register_comm_hook("generator", hook)
    players.discriminator.register_comm_hook("discriminator", hook)
    loss, latents = ADVERSARIAL["bce"], [torch.randn(4, 8), torch.randn(4, 8)]
    for _ in range(3):
        discriminator_step(
            players,
            reals=[torch.rand(4, 1, 32, 32)] * 2,
            latents=latents,
            loss=loss,
            label_smoothing=0.0,
            keep_graph=False,
        )
        generator_step(players, fakes=None, latents=latents, loss=loss)
    return counts


def test_one_reduction_a_network_a_step() -> None:
    """Two micro-batches, three steps, two ranks: three all-reduces of each network, no more."""
    assert run_world(2, count_reductions) == [{"generator": 3, "discriminator": 3}] * 2


def drift() -> str:
    """What the replica check says when rank one's generator has moved on its own."""
    from distgan.distributed import current_world

    players = make_players()
    world = current_world()
    players.check_replicas(world)
    if world.rank == 1:
        next(iter(players.bare_generator.parameters())).data.add_(1e-6)
    try:
        players.check_replicas(world)
    except RuntimeError as error:
        return str(error)
    return "equal"


def test_replicas_that_drift_are_noticed() -> None:
    """A single changed weight on one rank stops all ranks."""
    assert all("differ between ranks" in said for said in run_world(2, drift))
