"""Small players and batches for tests of the step."""

from typing import Any

import torch
from torch import nn

from distgan.batches import MicroBatch
from distgan.config import Config, Loss, Networks, Optim, Train
from distgan.networks import GeneratorSpec
from distgan.players import Players, build_players
from distgan.runtime import build_accelerator

PLAIN = Config()


def make_players(loss: Loss = PLAIN.loss, optim: Optim = PLAIN.optim, **networks: Any) -> Players:
    """Small players on the CPU."""
    spec = GeneratorSpec("dcgan", 32, 1, width=4, latent_dim=8)
    train = Train(cpu_threads=1, precision="launcher")
    accelerator, _ = build_accelerator(train)
    return build_players(
        accelerator, spec, networks=Networks(discriminator_width=4, **networks), optim=optim, train=train, loss=loss
    )


def micro_batch(size: int = 4, *, first: int = 0) -> MicroBatch:
    """Random images and latents, the same for the same place."""
    draw = torch.Generator().manual_seed(first)
    reals = torch.rand(size, 1, 32, 32, generator=draw) * 2 - 1
    return MicroBatch(reals, torch.randn(size, 8, generator=draw), torch.arange(first, first + size), seed=0)


def snapshot(network: nn.Module) -> list[torch.Tensor]:
    """Copies of all parameters."""
    return [parameter.detach().clone() for parameter in network.parameters()]
