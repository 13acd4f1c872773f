"""Generator, discriminator, their optimizers and the moving average: built together, saved together, equal on all ranks."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn
from torch.func import functional_call

from distgan.config.schema import Loss, Networks, Optim, Train
from distgan.losses.augmentation import adapted
from distgan.networks.base import DiscriminatorSpec, GeneratorSpec
from distgan.networks.build import build_discriminator, build_generator
from distgan.networks.ema import GeneratorEma, recalibrate_batch_norm
from distgan.networks.generator_file import EMA_PREFIX
from distgan.optimizers import OPTIMIZERS, Lookahead
from distgan.run import checkpoints as checkpoint
from distgan.runtime.compilation import EAGER, Compilation, choose_compilation
from distgan.runtime.distributed import World, current_world
from distgan.runtime.randomness import normal

OLD_HEAD, HEAD = "discriminator.judge.", "discriminator.head."  # before and since the renaming
NUM_NORM_LATENTS = 1024  # from which the averaged generator measures its norm statistics


@dataclass(frozen=True)
class GAN:
    """Both networks as prepared by Accelerate, and the bare ones inside the wrappers."""

    accelerator: Accelerator
    generator: nn.Module
    discriminator: nn.Module
    optimizer_g: AcceleratedOptimizer
    optimizer_d: AcceleratedOptimizer
    raw_generator: nn.Module
    raw_discriminator: nn.Module
    discriminator_skeleton: (
        nn.Module
    )  # without weights, and without what Accelerate does to a forward
    ema: GeneratorEma
    spec: GeneratorSpec
    lookahead: Lookahead | None
    augment_probability: Tensor  # a scalar, adapted in place where so wished
    compilation: Compilation

    def float32_discriminator(self, parameters: dict[str, Tensor]) -> Callable[[Tensor], Tensor]:
        """images -> logits with the given parameters in full precision; the discriminator's own buffers stay as they are."""
        buffers = {name: buffer.clone() for name, buffer in self.raw_discriminator.named_buffers()}

        def judge(images: Tensor) -> Tensor:
            with torch.autocast(images.device.type, enabled=False):
                return functional_call(
                    self.discriminator_skeleton, {**parameters, **buffers}, (images.float(),)
                )

        return judge

    def networks(self) -> dict[str, nn.Module]:
        """What a checkpoint holds, by the prefix of its tensors."""
        return {
            "generator.": self.raw_generator,
            "discriminator.": self.raw_discriminator,
            EMA_PREFIX: self.ema.generator,
        }

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Likewise, the optimizers by name."""
        return {
            "optimizer_g": self.optimizer_g.optimizer,
            "optimizer_d": self.optimizer_d.optimizer,
        }

    def pack(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The whole state as named tensors and plain values."""
        tensors = {
            prefix + name: t
            for prefix, net in self.networks().items()
            for name, t in net.state_dict().items()
        }
        plain: dict[str, Any] = {}
        for name, optimizer in self.optimizers().items():
            optimizer_tensors, plain[name] = checkpoint.pack_optimizer(name, optimizer)
            tensors |= optimizer_tensors
        if self.lookahead is not None:
            tensors |= self.lookahead.pack()
        tensors["augment_probability"] = self.augment_probability
        scaler = self.accelerator.scaler
        plain["scaler"] = scaler.state_dict() if scaler is not None else None
        return tensors, plain

    def unpack(self, tensors: dict[str, Tensor], plain: dict[str, Any]) -> None:
        """Undo `pack`; also reads checkpoints in which the discriminator's head had another name."""
        tensors = {name.replace(OLD_HEAD, HEAD, 1): tensor for name, tensor in tensors.items()}
        for prefix, network in self.networks().items():
            own = {
                name.removeprefix(prefix): t
                for name, t in tensors.items()
                if name.startswith(prefix)
            }
            network.load_state_dict(own)
        for name, optimizer in self.optimizers().items():
            checkpoint.unpack_optimizer(name, optimizer, tensors, plain[name])
        if self.lookahead is not None:
            self.lookahead.unpack(tensors)
        self.augment_probability.copy_(tensors["augment_probability"])
        if self.accelerator.scaler is not None and plain["scaler"]:
            self.accelerator.scaler.load_state_dict(plain["scaler"])

    def set_optimizers(self, optim: Optim, *, lr_factor: float) -> None:
        """Change learning rates and betas of running optimizers."""
        for optimizer, lr in ((self.optimizer_g, optim.lr_g), (self.optimizer_d, optim.lr_d)):
            for group in optimizer.optimizer.param_groups:
                group["lr"] = lr * lr_factor
                if "betas" in group:
                    group["betas"] = tuple(optim.betas)

    def settle(self, optim: Optim, *, num_images: int, images_seen: int) -> None:
        """What follows a generator step over `num_images`: lookahead where it is due, and the moving average."""
        if self.lookahead is not None and images_seen // num_images % optim.lookahead_steps == 0:
            self.lookahead.step(optim.lookahead_alpha)
        if not self.optimizer_g.step_was_skipped:
            self.ema.update(self.raw_generator, batch_size=num_images, images_seen=images_seen)

    def adapt_augmentation(
        self, real_accuracy: Tensor, loss: Loss, *, images: int, world: World
    ) -> None:
        """Move the augmentations' probability toward `loss.augment_target` after a step. Collective; nothing waits."""
        assert loss.augment_target is not None, "there is nothing to adapt to"
        mean = world.all_reduce_sum(real_accuracy) / world.size
        self.augment_probability.copy_(
            adapted(
                self.augment_probability,
                mean,
                target=loss.augment_target,
                images=images,
                ramp_kimg=loss.augment_ramp_kimg,
            )
        )

    def check_replicas(self, world: World) -> None:
        """Fail rather than go on with networks that have drifted apart. Collective."""
        weights = [*self.raw_generator.parameters(), *self.raw_discriminator.parameters()]
        checksums = torch.stack(
            [w.detach().view(torch.int32).sum(dtype=torch.int64) for w in weights]
        )
        all_checksums = world.all_gather(checksums[None])
        if not bool((all_checksums == all_checksums[0]).all()):
            raise RuntimeError(
                "the networks differ between ranks; nothing was saved; please report this"
            )

    def refresh_statistics(self, world: World, *, seed: int) -> None:
        """Let the averaged generator measure its norm statistics, and make all buffers rank zero's. Collective."""
        positions = torch.arange(NUM_NORM_LATENTS, device=self.accelerator.device)
        latents = normal((self.spec.latent_dim,), positions, seed=seed, purpose="norm statistics")
        recalibrate_batch_norm(self.ema.generator, latents)
        for network in self.networks().values():
            world.broadcast_(list(network.buffers()))


def build_gan(
    accelerator: Accelerator,
    spec: GeneratorSpec,
    *,
    networks: Networks,
    optim: Optim,
    train: Train,
    loss: Loss,
) -> GAN:
    """Networks with weights from the seed, prepared for this world.

    Raises ValueError for an image size not offered, UserError for graphs without a GPU.
    """
    generator = build_generator(spec, seed=train.seed)
    discriminator = build_discriminator(
        spec, DiscriminatorSpec.from_settings(networks), seed=train.seed
    )
    compilation = choose_compilation(
        train,
        (generator.to(accelerator.device), discriminator.to(accelerator.device)),
        latent_shape=(spec.latent_dim,),
        image_shape=(spec.channels, spec.image_size, spec.image_size),
        micro_batch_size=train.batch_size // accelerator.num_processes // train.accumulate,
        num_processes=accelerator.num_processes,
        autocast=accelerator.autocast,
    )
    return prepare_gan(
        accelerator,
        spec,
        generator=generator,
        discriminator=discriminator,
        optim=optim,
        train=train,
        loss=loss,
        compilation=current_world().broadcast_object(compilation),
    )


def prepare_gan(
    accelerator: Accelerator,
    spec: GeneratorSpec,
    *,
    generator: nn.Module,
    discriminator: nn.Module,
    optim: Optim,
    train: Train,
    loss: Loss,
    compilation: Compilation = EAGER,
) -> GAN:
    """Any two networks as gan; `loss.diversity.feature_distance` wants a discriminator with `features`."""
    generator, discriminator = (
        generator.to(accelerator.device),
        discriminator.to(accelerator.device),
    )
    ema = GeneratorEma(generator, halflife_kimg=train.ema_halflife_kimg)
    skeleton = copy.deepcopy(discriminator).to("meta")
    for network in (generator, discriminator):
        compilation.compile(network)
    make_optimizer = OPTIMIZERS[optim.name]
    wrapped_g, wrapped_d, optimizer_g, optimizer_d = accelerator.prepare(
        generator,
        discriminator,
        make_optimizer(generator.parameters(), optim),
        make_optimizer(discriminator.parameters(), optim),
    )
    for network in (wrapped_g, wrapped_d):
        if hasattr(network, "broadcast_buffers"):
            network.broadcast_buffers = (
                False  # norm statistics are a rank's own between two looks at them
            )
    gan = GAN(
        accelerator,
        wrapped_g,
        wrapped_d,
        optimizer_g,
        optimizer_d,
        accelerator.unwrap_model(wrapped_g),
        accelerator.unwrap_model(wrapped_d),
        skeleton,
        ema,
        spec,
        Lookahead([generator, discriminator]) if optim.lookahead_steps else None,
        torch.tensor(loss.augment_probability, device=accelerator.device),
        compilation,
    )
    gan.set_optimizers(optim, lr_factor=1.0)
    return gan
