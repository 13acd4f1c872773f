"""A small GAN and its batches, for tests of the training step."""

from typing import Any

import torch
from torch import nn

from distgan.config.schema import Config, Loss, Networks, Optim, Train
from distgan.data import MicroBatch
from distgan.gan import GAN, build_gan
from distgan.networks.base import GeneratorSpec
from distgan.runtime.accelerator import build_accelerator, reset_accelerator

PLAIN = Config()


def make_gan(
    loss: Loss = PLAIN.loss,
    optim: Optim = PLAIN.optim,
    *,
    scaler: torch.amp.GradScaler | None = None,
    **networks: Any,
) -> GAN:
    """Build a small GAN on the CPU, with the loss scaler of fp16 if one is given."""
    train = Train(cpu_threads=1, precision="launcher")
    config = Config(
        networks=Networks(discriminator_width=4, **networks), loss=loss, optim=optim, train=train
    )
    reset_accelerator()  # a test before this one may have trained in another precision
    accelerator, _ = build_accelerator(train)
    accelerator.scaler = scaler
    spec = GeneratorSpec(architecture="dcgan", image_size=32, channels=1, width=4, latent_dim=8)
    return build_gan(accelerator, spec, config)


def micro_batch(size: int = 4, *, first: int = 0) -> MicroBatch:
    """Return random images and latents; equal positions give equal batches."""
    draw = torch.Generator().manual_seed(first)
    reals = torch.rand(size, 1, 32, 32, generator=draw) * 2 - 1
    return MicroBatch(
        reals, torch.randn(size, 8, generator=draw), torch.arange(first, first + size), seed=0
    )


def snapshot(network: nn.Module) -> list[torch.Tensor]:
    """Return copies of all parameters."""
    return [parameter.detach().clone() for parameter in network.parameters()]
