"""Generator, discriminator, their optimizers and the moving average: built together, saved together, equal on all ranks."""

from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn

from distgan import checkpoint
from distgan.config import Networks, Optim, Train
from distgan.distributed import World
from distgan.ema import GeneratorEma, measure_norm_statistics
from distgan.generators import EMA_PREFIX
from distgan.networks import GeneratorSpec, build_discriminator, build_generator
from distgan.optimizers import OPTIMIZERS
from distgan.randomness import normal

NUM_NORM_LATENTS = 1024  # from which the averaged generator measures its norm statistics


@dataclass(frozen=True)
class Players:
    """Both networks as prepared by Accelerate, and the bare ones inside the wrappers."""

    accelerator: Accelerator
    generator: nn.Module
    discriminator: nn.Module
    optimizer_g: AcceleratedOptimizer
    optimizer_d: AcceleratedOptimizer
    bare_generator: nn.Module
    bare_discriminator: nn.Module
    ema: GeneratorEma
    spec: GeneratorSpec

    def networks(self) -> dict[str, nn.Module]:
        """What a checkpoint holds, by the prefix of its tensors."""
        return {
            "generator.": self.bare_generator,
            "discriminator.": self.bare_discriminator,
            EMA_PREFIX: self.ema.generator,
        }

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Likewise, the optimizers by name."""
        return {"optimizer_g": self.optimizer_g.optimizer, "optimizer_d": self.optimizer_d.optimizer}

    def pack(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The whole state as named tensors and plain values."""
        tensors = {prefix + name: t for prefix, net in self.networks().items() for name, t in net.state_dict().items()}
        plain: dict[str, Any] = {}
        for name, optimizer in self.optimizers().items():
            optimizer_tensors, plain[name] = checkpoint.pack_optimizer(name, optimizer)
            tensors |= optimizer_tensors
        scaler = self.accelerator.scaler
        plain["scaler"] = scaler.state_dict() if scaler is not None else None
        return tensors, plain

    def unpack(self, tensors: dict[str, Tensor], plain: dict[str, Any]) -> None:
        """Undo `pack`."""
        for prefix, network in self.networks().items():
            own = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
            network.load_state_dict(own)
        for name, optimizer in self.optimizers().items():
            checkpoint.unpack_optimizer(name, optimizer, tensors, plain[name])
        if self.accelerator.scaler is not None and plain["scaler"]:
            self.accelerator.scaler.load_state_dict(plain["scaler"])

    def set_optimizers(self, optim: Optim, *, lr_factor: float) -> None:
        """Change learning rates and betas of running optimizers."""
        for optimizer, lr in ((self.optimizer_g, optim.lr_g), (self.optimizer_d, optim.lr_d)):
            for group in optimizer.optimizer.param_groups:
                group["lr"] = lr * lr_factor
                if "betas" in group:
                    group["betas"] = tuple(optim.betas)

    def check_replicas(self, world: World) -> None:
        """Fail rather than go on with networks that have drifted apart. Collective."""
        weights = [*self.bare_generator.parameters(), *self.bare_discriminator.parameters()]
        checksums = torch.stack([w.detach().view(torch.int32).sum(dtype=torch.int64) for w in weights])
        all_checksums = world.all_gather(checksums[None])
        if not bool((all_checksums == all_checksums[0]).all()):
            raise RuntimeError("the networks differ between ranks; nothing was saved; please report this")

    def refresh_statistics(self, world: World, *, seed: int) -> None:
        """Let the averaged generator measure its norm statistics, and make all buffers rank zero's. Collective."""
        positions = torch.arange(NUM_NORM_LATENTS, device=self.accelerator.device)
        latents = normal((self.spec.latent_dim,), positions, seed=seed, purpose="norm statistics")
        measure_norm_statistics(self.ema.generator, latents)
        for network in self.networks().values():
            world.broadcast_(list(network.buffers()))


def build_players(
    accelerator: Accelerator, spec: GeneratorSpec, *, networks: Networks, optim: Optim, train: Train
) -> Players:
    """Networks with weights from the seed, prepared for this world; raises ValueError for an image size not offered."""
    generator = build_generator(spec, seed=train.seed).to(accelerator.device)
    discriminator = build_discriminator(spec, width=networks.discriminator_width, seed=train.seed)
    discriminator = discriminator.to(accelerator.device)
    ema = GeneratorEma(generator, halflife_kimg=train.ema_halflife_kimg)
    if train.compile:  # before the wrappers, so that DDP and autocast see one module and names stay as they are
        generator.compile()
        discriminator.compile()
    make_optimizer = OPTIMIZERS[optim.name]
    wrapped_g, wrapped_d, optimizer_g, optimizer_d = accelerator.prepare(
        generator,
        discriminator,
        make_optimizer(generator.parameters(), lr=optim.lr_g, betas=optim.betas),
        make_optimizer(discriminator.parameters(), lr=optim.lr_d, betas=optim.betas),
    )
    for network in (wrapped_g, wrapped_d):
        if hasattr(network, "broadcast_buffers"):
            network.broadcast_buffers = False  # norm statistics are a rank's own between two looks at them
    return Players(
        accelerator,
        wrapped_g,
        wrapped_d,
        optimizer_g,
        optimizer_d,
        accelerator.unwrap_model(wrapped_g),
        accelerator.unwrap_model(wrapped_d),
        ema,
        spec,
    )
