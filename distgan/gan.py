"""A GAN: both networks, their optimizers and the moving average."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.parametrize import is_parametrized

from distgan.config.schema import Config, Loss, Networks, Optim, Train
from distgan.labels import Labels
from distgan.losses.augmentation import adapt_probability
from distgan.networks.base import (
    ConditionalSpec,
    Discriminator,
    DiscriminatorSpec,
    GeneratorSpec,
)
from distgan.networks.build import build_discriminator, build_generator
from distgan.networks.conditioning import spread_labels
from distgan.networks.ema import GeneratorEma, recalibrate_batch_norm
from distgan.networks.generator_file import EMA_PREFIX
from distgan.networks.sizes import image_size
from distgan.optimizers import OPTIMIZERS, Lookahead, set_hyperparameters
from distgan.run.checkpoints import pack_optimizer, unpack_optimizer, with_current_names
from distgan.runtime.compilation import EAGER, Compilation, choose_compilation
from distgan.runtime.distributed import World, current_world, fix_gradient_buckets
from distgan.runtime.randomness import normal

CODE_DIM = 32  # numbers by which the latent modulates norms
NUM_CALIBRATION_LATENTS = 1024  # for the batch norm statistics of the averaged generator


@dataclass
class GAN:
    """A generator and a discriminator in training, equal on all ranks.

    `generator` and `discriminator` are prepared by Accelerate: they run under autocast, and their
    backward reduces gradients over all ranks. `raw_generator` and `raw_discriminator` are the same
    modules without these wrappers. `float32_skeleton` is the discriminator without weights.
    """

    accelerator: Accelerator
    world: World
    spec: GeneratorSpec
    generator: nn.Module
    discriminator: nn.Module
    raw_generator: nn.Module
    raw_discriminator: nn.Module
    float32_skeleton: nn.Module
    optimizer_g: AcceleratedOptimizer
    optimizer_d: AcceleratedOptimizer
    ema: GeneratorEma
    lookahead: Lookahead | None
    augment_probability: Tensor  # scalar; `loss.augment_target` adapts it in place
    compilation: Compilation
    weights_g: list[Tensor]
    weights_d: list[Tensor]  # without frozen ones
    # Whether the discriminator's step takes reals and fakes in one forward: if no layer
    # `depends_on_forwards`. Those of minibatch standard deviation and packing do not: the groups of
    # images that they mix are all real or all fake.
    joins_forwards: bool
    # Whether the generator's step does so, too. It launches fewer kernels, but also computes
    # gradients of the reals, which make the step of a CPU 5 to 10 % slower.
    compares_in_one_forward: bool
    is_calibrated: bool = False  # whether batch norm statistics belong to the current weights

    def float32_discriminator(
        self, parameters: dict[str, Tensor], *condition: Tensor
    ) -> Callable[[Tensor], Tensor]:
        """Return a function from images to logits that uses these parameters in full precision.

        It can be differentiated twice, and it leaves the discriminator's buffers unchanged. The
        labels of a batch, if there are any, hold for each of several batches in a row.
        """
        buffers = {n: buffer.clone() for n, buffer in self.raw_discriminator.named_buffers()}

        def discriminate(images: Tensor) -> Tensor:
            with torch.autocast(images.device.type, enabled=False):
                state = {**parameters, **buffers}
                labels = (each.repeat(len(images) // len(each)) for each in condition)
                return functional_call(self.float32_skeleton, state, (images.float(), *labels))

        return discriminate

    # ---------------------------------------------------------------------------------- training

    def set_optimizers(self, optim: Optim, *, lr_factor: float) -> None:
        """Set learning rates (times the factor) and all else that is not an optimizer's state."""
        for optimizer, lr in ((self.optimizer_g, optim.lr_g), (self.optimizer_d, optim.lr_d)):
            set_hyperparameters(optimizer.optimizer, optim, lr=lr * lr_factor)

    def freeze_discriminator(self, frozen: bool) -> None:
        """Choose whether a backward computes and reduces the discriminator's gradients."""
        for weight in self.weights_d:
            weight.requires_grad_(not frozen)

    def adapt_augmentation(self, real_accuracy: Tensor, loss: Loss, *, num_images: int) -> None:
        """Adapt the probability of augmentations. Collective; the host does not wait for a GPU."""
        assert loss.augment_target is not None, "loss.augment_target is not set"
        mean = self.world.all_reduce_sum(real_accuracy) / self.world.size
        probability = adapt_probability(
            self.augment_probability,
            mean,
            target=loss.augment_target,
            images=num_images,
            ramp_kimg=loss.augment_ramp_kimg,
        )
        self.augment_probability.copy_(probability)

    def after_step(self, optim: Optim, *, num_images: int, images_seen: int) -> None:
        """Apply lookahead, if due, and update the moving average after a step of `num_images`."""
        self.is_calibrated = False
        if self.lookahead is not None and images_seen // num_images % optim.lookahead_steps == 0:
            self.lookahead.step(optim.lookahead_alpha)
        if not self.optimizer_g.step_was_skipped:
            self.ema.update(self.weights_g, batch_size=num_images, images_seen=images_seen)

    # ------------------------------------------------------------------------------------- state

    def networks(self) -> dict[str, nn.Module]:
        """Return the networks by the prefix of their tensors in a checkpoint."""
        return {
            "generator.": self.raw_generator,
            "discriminator.": self.raw_discriminator,
            EMA_PREFIX: self.ema.generator,
        }

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Return the optimizers by their names in a checkpoint."""
        return {
            "optimizer_g": self.optimizer_g.optimizer,
            "optimizer_d": self.optimizer_d.optimizer,
        }

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the whole state as named tensors and plain values."""
        tensors = {
            prefix + name: tensor
            for prefix, network in self.networks().items()
            for name, tensor in network.state_dict().items()
        }
        plain: dict[str, Any] = {}
        for name, optimizer in self.optimizers().items():
            optimizer_tensors, plain[name] = pack_optimizer(name, optimizer)
            tensors |= optimizer_tensors
        if self.lookahead is not None:
            tensors |= self.lookahead.pack()
        tensors["augment_probability"] = self.augment_probability
        scaler = self.accelerator.scaler
        plain["scaler"] = scaler.state_dict() if scaler is not None else None
        return tensors, plain

    def load_state(self, tensors: dict[str, Tensor], plain: dict[str, Any]) -> None:
        """Restore what `state` returned, also under the names of older versions."""
        tensors = with_current_names(tensors)
        for prefix, network in self.networks().items():
            own = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
            network.load_state_dict(own)
        for name, optimizer in self.optimizers().items():
            unpack_optimizer(name, optimizer, tensors, plain[name])
        if self.lookahead is not None:
            self.lookahead.unpack(tensors)
        self.augment_probability.copy_(tensors["augment_probability"])
        if self.accelerator.scaler is not None and plain["scaler"]:
            self.accelerator.scaler.load_state_dict(plain["scaler"])
        self.is_calibrated = False

    def check_replicas(self) -> None:
        """Raise RuntimeError if the weights differ between ranks. Collective."""
        weights = [*self.weights_g, *self.weights_d]
        checksums = [w.detach().view(torch.int32).sum(dtype=torch.int64) for w in weights]
        all_checksums = self.world.all_gather(torch.stack(checksums)[None])
        if not bool((all_checksums == all_checksums[0]).all()):
            raise RuntimeError(
                "the networks differ between ranks; nothing was saved; please report this"
            )

    def recalibrate_batch_norm(self, *, seed: int) -> None:
        """Measure the averaged generator's batch norm statistics, and broadcast all buffers.

        Collective. Does nothing if no weight has changed since the last call.
        """
        if self.is_calibrated:
            return
        positions = torch.arange(NUM_CALIBRATION_LATENTS, device=self.accelerator.device)
        shape = (self.spec.latent_dim,)
        latents = normal(shape, positions, seed=seed, purpose="norm statistics")
        condition: tuple[Tensor, ...] = ()
        if isinstance(self.spec, ConditionalSpec):
            condition = (spread_labels(positions, self.spec.shares),)
        recalibrate_batch_norm(self.ema.generator, latents, *condition)
        for network in self.networks().values():
            self.world.broadcast_(list(network.buffers()))
        self.is_calibrated = True


def depends_on_forwards(module: nn.Module) -> bool:
    """Return whether a layer's result depends on how images are divided among forwards.

    Batch norm normalises over the images of a forward, and spectral norm does one step of power
    iteration per forward.
    """
    return isinstance(module, nn.BatchNorm2d) or is_parametrized(module)


def generator_spec(
    networks: Networks,
    image_shape: tuple[int, int, int],
    labels: Labels | None = None,
    *,
    bits: int = 8,
) -> GeneratorSpec:
    """Return the spec of a generator of images [C, H, W]; labels make it a conditional one."""
    assert (labels is None) == (networks.condition == "none"), "a condition is given by labels"
    channels, height, width = image_shape
    spec: Callable[..., GeneratorSpec] = GeneratorSpec
    if labels is not None:
        blends = networks.conditional_start_kimg > 0
        spec = partial(ConditionalSpec, classes=labels.names, shares=labels.shares, blends=blends)
    return spec(
        architecture=networks.architecture,
        image_size=image_size(height, width),
        channels=channels,
        width=networks.generator_width,
        latent_dim=networks.latent_dim,
        max_width=networks.max_width,
        bits=bits,
        refinements=networks.generator_refinements,
        code_dim=CODE_DIM if networks.self_modulation else 0,
    )


def build_gan(
    accelerator: Accelerator,
    spec: GeneratorSpec,
    config: Config,
    *,
    total_images: float = math.inf,
) -> GAN:
    """Build networks with weights drawn from `train.seed`, prepared for this world.

    `total_images` is the length of the run; compiling is not tried if the run is short.
    Raises ValueError for an unsupported image size, and UserError for CUDA graphs without a GPU.
    """
    train = config.train
    discriminator_spec = DiscriminatorSpec.from_settings(config.networks)
    generator = build_generator(spec, seed=train.seed)
    discriminator = build_discriminator(spec, discriminator_spec, seed=train.seed)
    freeze_first_layers(discriminator, train.freeze_d)
    micro_batch_size = train.batch_size // accelerator.num_processes // train.accumulate
    compilation = choose_compilation(
        train,
        (generator.to(accelerator.device), discriminator.to(accelerator.device)),
        latent_shape=(spec.latent_dim,),
        num_labels=spec.num_labels,
        image_shape=spec.image_shape,
        micro_batch_size=micro_batch_size,
        num_passes=total_images / accelerator.num_processes / micro_batch_size,
        num_processes=accelerator.num_processes,
        uses_features=config.loss.diversity.feature_distance > 0,
        autocast=accelerator.autocast,
    )
    return prepare_gan(
        accelerator,
        spec,
        generator=generator,
        discriminator=discriminator,
        optim=config.optim,
        train=train,
        loss=config.loss,
        compilation=current_world().broadcast_object(compilation),
    )


def freeze_first_layers(discriminator: Discriminator, num_layers: int) -> None:
    """Freeze the layers with convolutions that are nearest to the images, and norms after them.

    FreezeD (Mo et al. 2020).
    """
    for layer in discriminator.layers:
        num_layers -= any(isinstance(module, nn.Conv2d) for module in layer.modules())
        if num_layers < 0:
            return
        layer.requires_grad_(False)


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
    """Build a GAN from two networks of any kind.

    `loss.diversity.feature_distance` needs a discriminator that returns `with_features`.
    """
    generator, discriminator = (net.to(accelerator.device) for net in (generator, discriminator))
    ramps_up = train.init_from is None
    ema = GeneratorEma(generator, halflife_kimg=train.ema_halflife_kimg, ramps_up=ramps_up)
    skeleton = copy.deepcopy(discriminator).to("meta")
    for network in (generator, discriminator):
        compilation.compile(network)
    # A fused optimizer skips a step inside its kernel, where the scaler of fp16 cannot see it.
    make_optimizer = partial(OPTIMIZERS[optim.name], fused=accelerator.scaler is None)
    prepared_g, prepared_d, optimizer_g, optimizer_d = accelerator.prepare(
        generator,
        discriminator,
        make_optimizer(generator.parameters(), optim),
        make_optimizer(discriminator.parameters(), optim),
    )
    for network in (prepared_g, prepared_d):
        if hasattr(network, "broadcast_buffers"):  # DDP; `recalibrate_batch_norm` broadcasts them
            network.broadcast_buffers = False
        fix_gradient_buckets(network)
    joins_forwards = not any(map(depends_on_forwards, discriminator.modules()))
    gan = GAN(
        accelerator=accelerator,
        world=current_world(),
        spec=spec,
        generator=prepared_g,
        discriminator=prepared_d,
        raw_generator=accelerator.unwrap_model(prepared_g),
        raw_discriminator=accelerator.unwrap_model(prepared_d),
        float32_skeleton=skeleton,
        optimizer_g=optimizer_g,
        optimizer_d=optimizer_d,
        ema=ema,
        lookahead=Lookahead([generator, discriminator]) if optim.lookahead_steps else None,
        augment_probability=torch.tensor(loss.augment_probability, device=accelerator.device),
        compilation=compilation,
        weights_g=list(generator.parameters()),
        weights_d=[weight for weight in discriminator.parameters() if weight.requires_grad],
        joins_forwards=joins_forwards,
        compares_in_one_forward=joins_forwards and accelerator.device.type != "cpu",
    )
    gan.set_optimizers(optim, lr_factor=1.0)
    return gan
