"""One training step: `d_steps` discriminator steps, then one generator step.

discriminator  fakes = G(latents)
               losses of D(reals) and D(fakes), plus penalties -> backward -> optimizer
generator      adversarial loss of D(fakes) with D frozen, plus diversity terms -> backward
               -> optimizer -> lookahead and moving average

Each backward reduces its network's gradients over all ranks once.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from distgan.config.schema import Config, Loss
from distgan.data import MicroBatch
from distgan.gan import GAN
from distgan.losses.adversarial import ADVERSARIAL
from distgan.losses.augmentation import augment
from distgan.losses.diversity import feature_distance, mode_seeking
from distgan.losses.penalties import PENALTIES, gradient_penalties
from distgan.losses.unrolling import DifferentiableAdam, sgd, unroll
from distgan.networks.conditioning import label_strength, set_label_strength
from distgan.optimizers import lr_schedule, penalty_scale
from distgan.runtime.randomness import uniform

NextBatch = Callable[[int], list[MicroBatch]]
Statistics = dict[str, Tensor]  # metric name -> scalar on the device, of this rank


@dataclass(frozen=True)
class StepResult:
    """Statistics of each discriminator and generator step, and the last fakes."""

    statistics: list[Statistics]
    fakes: Tensor  # [b, C, H, W] in [-1, 1]


def train_step(
    gan: GAN,
    next_batch: NextBatch,
    config: Config,
    *,
    images_seen: int,
    progress: float,
    lr_factor: float = 1.0,
) -> StepResult:
    """Train both networks on the next `d_steps` global batches.

    `next_batch` takes the position of a global batch's first image and returns this rank's
    micro-batches of it. `progress` in [0, 1] is the completed part of the run, for schedules.
    """
    train, loss = config.train, config.loss
    lr_factor *= lr_schedule(config.optim, progress)
    gan.set_optimizers(config.optim, lr_factor=lr_factor)
    if start_kimg := config.networks.conditional_start_kimg:
        strength = label_strength(images_seen, start_kimg=start_kimg)
        for network in gan.networks().values():
            set_label_strength(network, strength)
    statistics = []
    for d_step in range(train.d_steps):
        position = images_seen + d_step * train.batch_size
        batches = next_batch(position)
        # With one micro-batch the generator trains on the fakes that the discriminator has just
        # seen. With several that would keep one graph for each, so they are generated again.
        reuse_fakes = train.accumulate == 1 and d_step == train.d_steps - 1
        fakes, d_statistics = discriminator_step(
            gan,
            batches,
            loss=loss,
            penalty_scale=penalty_scale(loss, position // train.batch_size, progress=progress),
            keep_graph=reuse_fakes,
        )
        if loss.augment_target is not None:
            accuracy = d_statistics["accuracy/d_real"]
            gan.adapt_augmentation(accuracy, loss, num_images=train.batch_size)
            d_statistics["progress/augment"] = gan.augment_probability
        statistics.append(d_statistics)
    statistics.append(generator_step(gan, batches, loss=loss, fakes=fakes if reuse_fakes else None))
    num_images = train.batch_size * train.d_steps
    gan.after_step(config.optim, num_images=num_images, images_seen=images_seen + num_images)
    return StepResult(statistics, fakes[-1].detach())


# ---------------------------------------------------------------------------------- discriminator


def discriminator_step(
    gan: GAN,
    batches: list[MicroBatch],
    *,
    loss: Loss,
    penalty_scale: float,
    keep_graph: bool,
) -> tuple[list[Tensor], Statistics]:
    """Update the discriminator once; penalties count `penalty_scale` times their weights.

    Returns each micro-batch's fakes, with the generator's graph if `keep_graph`, and statistics.
    """
    accelerator = gan.accelerator
    gan.compilation.begin_step()
    gan.optimizer_d.zero_grad()
    all_fakes, all_statistics = [], []
    for index, batch in enumerate(batches):
        fakes = generate(gan, batch, keep_graph=keep_graph)
        with reduce_on_last(accelerator, gan.discriminator, index, len(batches)):
            total, statistics = discriminator_loss(
                gan, batch, fakes.detach(), loss=loss, penalty_scale=penalty_scale
            )
            accelerator.backward(total / len(batches) if len(batches) > 1 else total)
        all_fakes.append(fakes)
        all_statistics.append(statistics)
    means = mean_of(all_statistics)
    accelerator.unscale_gradients(gan.optimizer_d)
    means["grad_norm/d"] = grad_norm(gan.weights_d)
    gan.optimizer_d.step()
    return all_fakes, means


def generate(gan: GAN, batch: MicroBatch, *, keep_graph: bool) -> Tensor:
    """Return fakes [b, C, H, W], with the generator's graph if `keep_graph`."""
    if keep_graph:
        return gan.generator(batch.latents, *batch.condition)
    with torch.no_grad():
        return gan.raw_generator(batch.latents, *batch.condition)


def discriminator_loss(
    gan: GAN, batch: MicroBatch, fakes: Tensor, *, loss: Loss, penalty_scale: float
) -> tuple[Tensor, Statistics]:
    """Return the discriminator's total loss on one micro-batch, and its statistics."""
    adversarial = ADVERSARIAL[loss.adversarial]
    reals = augmented(batch.reals, batch, "reals", gan=gan, loss=loss)
    fakes = augmented(fakes, batch, "fakes", gan=gan, loss=loss)
    # Networks of any kind may lack `san`.
    has_scores = getattr(gan.raw_discriminator, "san", False)
    of_reals, of_fakes = discriminate(gan, reals, fakes, *batch.condition, with_scores=has_scores)
    if has_scores:
        (of_reals, real_scores), (of_fakes, fake_scores) = of_reals, of_fakes
    real_logits, fake_logits = adversarial.relate(of_reals, of_fakes)
    real_loss, fake_loss = adversarial.discriminator_losses(
        real_logits, fake_logits, loss.label_smoothing
    )
    total = adversarial_loss = real_loss + fake_loss
    if has_scores:  # the direction learns to separate the mean scores (Takida et al. 2024)
        total = total + fake_scores.float().mean() - real_scores.float().mean()
    penalties: dict[str, Tensor] = {}
    if penalty_scale:
        penalties = weighted_penalties(gan, batch, reals, fakes, loss=loss)
        total = total + penalty_scale * torch.stack([*penalties.values()]).sum()
    return total, {
        "loss/d": adversarial_loss.detach(),
        "loss/d_real": real_loss.detach(),
        "loss/d_fake": fake_loss.detach(),
        "logits/real_mean": real_logits.detach().mean(),
        "logits/fake_mean": fake_logits.detach().mean(),
        "accuracy/d_real": (real_logits > 0).mean(dtype=torch.float32),
        "accuracy/d_fake": (fake_logits < 0).mean(dtype=torch.float32),
        **{f"penalty/{name}": value.detach() for name, value in penalties.items()},
    }


def discriminate(
    gan: GAN, reals: Tensor, fakes: Tensor, *condition: Tensor, with_scores: bool = False
) -> tuple[Any, Any]:
    """Return what the discriminator returns for reals and for fakes, which have the same labels.

    One forward takes both, unless its result would differ from that of two.
    """
    options = {"with_scores": True} if with_scores else {}
    if gan.joins_forwards:
        return in_one_forward(gan.discriminator, reals, fakes, *condition, **options)
    discriminator = gan.discriminator
    return discriminator(reals, *condition, **options), discriminator(fakes, *condition, **options)


def in_one_forward(
    discriminator: nn.Module, reals: Tensor, fakes: Tensor, *condition: Tensor, **options: bool
) -> tuple[Any, Any]:
    """Return what the discriminator returns for reals and for fakes, from one forward of both."""
    labels = (torch.cat([each, each]) for each in condition)
    found = discriminator(torch.cat([reals, fakes]), *labels, **options)
    parts = found if isinstance(found, tuple) else (found,)
    of_reals, of_fakes = zip(*(part.chunk(2) for part in parts), strict=True)
    return (of_reals, of_fakes) if isinstance(found, tuple) else (of_reals[0], of_fakes[0])


def weighted_penalties(
    gan: GAN, batch: MicroBatch, reals: Tensor, fakes: Tensor, *, loss: Loss
) -> dict[str, Tensor]:
    """Return every gradient penalty whose weight is not zero, times its weight."""
    parameters: dict[str, Tensor] = dict(gan.raw_discriminator.named_parameters())
    discriminator = gan.float32_discriminator(parameters, *batch.condition)
    mixing = batch.positions
    if loss.gradient_penalty:
        mixing = uniform((), batch.positions, seed=batch.seed, purpose="gradient penalty")
    weights = {name: getattr(loss, name) for name in PENALTIES if getattr(loss, name)}
    packing = getattr(gan.raw_discriminator, "packing", 1)  # networks of any kind may lack it
    return gradient_penalties(discriminator, reals, fakes, mixing, weights=weights, packing=packing)


# -------------------------------------------------------------------------------------- generator


def generator_step(
    gan: GAN, batches: list[MicroBatch], *, loss: Loss, fakes: list[Tensor] | None = None
) -> Statistics:
    """Update the generator once, on the discriminator step's fakes or, if None, on new ones.

    The raw discriminator is frozen meanwhile: its gradients are neither computed nor reduced.
    """
    accelerator = gan.accelerator
    gan.optimizer_g.zero_grad()
    gan.freeze_discriminator(True)
    all_statistics = []
    for index, batch in enumerate(batches):
        with reduce_on_last(accelerator, gan.generator, index, len(batches)):
            images = generate(gan, batch, keep_graph=True) if fakes is None else fakes[index]
            adversarial_loss, terms = generator_losses(gan, batch, images, loss=loss)
            total = sum(terms.values(), adversarial_loss)
            accelerator.backward(total / len(batches) if len(batches) > 1 else total)
        statistics = {"loss/g": adversarial_loss.detach()}
        statistics |= {f"diversity/{name}": term.detach() for name, term in terms.items()}
        all_statistics.append(statistics)
    gan.freeze_discriminator(False)
    means = mean_of(all_statistics)
    accelerator.unscale_gradients(gan.optimizer_g)
    means["grad_norm/g"] = grad_norm(gan.weights_g)
    gan.optimizer_g.step()
    return means


def generator_losses(
    gan: GAN, batch: MicroBatch, images: Tensor, *, loss: Loss
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the adversarial loss of images [b, C, H, W], and every weighted diversity term."""
    adversarial, weights = ADVERSARIAL[loss.adversarial], loss.diversity
    terms: dict[str, Tensor] = {}
    fakes = augmented(images, batch, "generator", gan=gan, loss=loss)
    reals, is_paired = batch.reals, adversarial.paired and not loss.unroll_steps
    if is_paired or weights.feature_distance or loss.unroll_steps:
        reals = augmented(batch.reals, batch, "reals", gan=gan, loss=loss)
    if weights.feature_distance:
        of_reals, of_fakes = compare(gan, reals, fakes, *batch.condition, with_features=True)
        (real_logits, real_features), (logits, fake_features) = of_reals, of_fakes
        distance = feature_distance(fake_features, real_features)
        terms["feature_distance"] = weights.feature_distance * distance
    elif is_paired:
        real_logits, logits = compare(gan, reals, fakes, *batch.condition)
    elif not loss.unroll_steps:
        logits = gan.raw_discriminator(fakes, *batch.condition)
    if weights.mode_seeking:
        term = mode_seeking(images, batch.reals, batch.latents, *batch.condition)
        terms["mode_seeking"] = weights.mode_seeking * term
    if loss.unroll_steps:
        return unrolled_loss(gan, reals, fakes, *batch.condition, loss=loss), terms
    if adversarial.paired:
        _, logits = adversarial.relate(real_logits, logits)
    return adversarial.generator_loss(logits), terms


def compare(
    gan: GAN, reals: Tensor, fakes: Tensor, *condition: Tensor, with_features: bool = False
) -> tuple[Any, Any]:
    """Return what the discriminator returns for reals and for fakes; no gradient flows to reals."""
    discriminator = gan.raw_discriminator
    if gan.compares_in_one_forward and not with_features:
        return in_one_forward(discriminator, reals, fakes, *condition)
    with torch.no_grad():
        of_reals = discriminator(reals, *condition, with_features=with_features)
    return of_reals, discriminator(fakes, *condition, with_features=with_features)


def unrolled_loss(gan: GAN, reals: Tensor, fakes: Tensor, *condition: Tensor, loss: Loss) -> Tensor:
    """Return the generator's loss against the discriminator after `unroll_steps` more steps.

    `saddle` is the whole value function. It includes the loss on reals, which depends on the
    generator through the unrolled parameters (Metz et al. 2017, equation 6). `non_saturating` uses
    the generator's own loss on fakes, whose gradient does not vanish if the discriminator is
    certain (Goodfellow et al. 2014, section 3).
    """
    adversarial, optimizer = ADVERSARIAL[loss.adversarial], gan.optimizer_d.optimizer
    named = dict(gan.raw_discriminator.named_parameters())
    (group,) = optimizer.param_groups
    step = sgd
    if loss.unroll_optimizer == "adam":
        moments = {name: optimizer.state.get(parameter, {}) for name, parameter in named.items()}
        step = DifferentiableAdam(
            moments, betas=group.get("betas", (0.9, 0.999)), epsilon=group.get("eps", 0.0)
        )

    def losses(parameters: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        discriminator = gan.float32_discriminator(parameters, *condition)
        real_logits, fake_logits = adversarial.relate(discriminator(reals), discriminator(fakes))
        real_loss = adversarial.real_loss(real_logits, loss.label_smoothing)
        fake_loss = adversarial.fake_loss(fake_logits)
        return real_loss, fake_loss, adversarial.generator_loss(fake_logits)

    copies = {name: p.detach().clone().requires_grad_() for name, p in named.items()}
    ahead = unroll(
        copies,
        lambda parameters: sum(losses(parameters)[:2], torch.zeros(())),
        num_steps=loss.unroll_steps,
        lr=group["lr"],
        step=step,
    )
    real_loss, fake_loss, generator_loss = losses(ahead)
    return (-fake_loss if loss.unroll_value == "saddle" else generator_loss) - real_loss


# ---------------------------------------------------------------------------------------- helpers


def augmented(images: Tensor, batch: MicroBatch, purpose: str, *, gan: GAN, loss: Loss) -> Tensor:
    """Return images [b, C, H, W] with `loss.augment` applied."""
    if not loss.augment:
        return images
    return augment(
        images,
        batch.positions,
        kinds=loss.augment,
        probability=gan.augment_probability,
        seed=batch.seed,
        purpose=f"augment {purpose}",
    )


def reduce_on_last(
    accelerator: Accelerator, network: nn.Module, index: int, count: int
) -> AbstractContextManager[None]:
    """Accumulate gradients locally; only the last micro-batch's backward reduces them."""
    return nullcontext() if index == count - 1 else accelerator.no_sync(network)


def grad_norm(weights: list[Tensor]) -> Tensor:
    """Return the Euclidean norm of all gradients together."""
    norms = torch._foreach_norm([w.grad for w in weights if w.grad is not None])
    return torch.linalg.vector_norm(torch.stack(norms))


def mean_of(statistics: list[Statistics]) -> Statistics:
    """Return the means over micro-batches."""
    if len(statistics) == 1:
        return statistics[0]
    return {name: torch.stack([each[name] for each in statistics]).mean() for name in statistics[0]}
