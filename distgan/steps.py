"""The adversarial step: the discriminator first, then the generator, each with one all-reduce of its gradients.

reals, latents -> fakes = G(latents) -> D(reals), D(fakes without gradient) -> penalties -> one backward -> D moves
               -> frozen D(the same fakes), or the D it will be -> diversity terms -> backward through both -> G moves
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from distgan.config.schema import Loss
from distgan.data import MicroBatch
from distgan.gan import GAN
from distgan.losses.adversarial import ADVERSARIAL
from distgan.losses.augmentation import augment
from distgan.losses.diversity import feature_distance, mode_seeking
from distgan.losses.penalties import PENALTIES
from distgan.losses.unrolling import DifferentiableAdam, anticipated, sgd
from distgan.runtime.randomness import uniform

Statistics = dict[str, Tensor]


def reduce_on_last(
    accelerator: Accelerator, network: nn.Module, index: int, count: int
) -> AbstractContextManager[None]:
    """Gradients stay local until the last micro-batch."""
    return nullcontext() if index == count - 1 else accelerator.no_sync(network)


def grad_norm(network: nn.Module) -> Tensor:
    """Euclidean norm of all gradients together."""
    return torch.nn.utils.get_total_norm(
        [p.grad for p in network.parameters() if p.grad is not None]
    )


def mean_of(statistics: list[Statistics]) -> Statistics:
    """Means over micro-batches."""
    return {name: torch.stack([each[name] for each in statistics]).mean() for name in statistics[0]}


def shown(images: Tensor, batch: MicroBatch, purpose: str, *, gan: GAN, loss: Loss) -> Tensor:
    """What the discriminator gets to see of images [b, C, H, W]."""
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


def discriminator_step(
    gan: GAN,
    batches: list[MicroBatch],
    *,
    loss: Loss,
    penalty_scale: float,
    keep_graph: bool,
) -> tuple[list[Tensor], Statistics]:
    """Move the discriminator by one step over micro-batches; penalties count `penalty_scale` times their weights.

    Returns the fakes, with the generator's graph where `keep_graph` asks for it, and this rank's statistics.
    """
    accelerator, adversarial = gan.accelerator, ADVERSARIAL[loss.adversarial]
    gan.compilation.begin_step()
    gan.optimizer_d.zero_grad()
    all_fakes, all_statistics = [], []
    for index, batch in enumerate(batches):
        if keep_graph:
            fakes = gan.generator(batch.latents)
        else:
            with torch.no_grad():
                fakes = gan.raw_generator(batch.latents)
        with reduce_on_last(accelerator, gan.discriminator, index, len(batches)):
            shown_reals = shown(batch.reals, batch, "reals", gan=gan, loss=loss)
            shown_fakes = shown(fakes.detach(), batch, "fakes", gan=gan, loss=loss)
            # Two forwards, so that norm statistics of reals and fakes stay apart; one backward, so that DDP reduces once.
            real_logits, fake_logits = adversarial.relate(
                gan.discriminator(shown_reals), gan.discriminator(shown_fakes)
            )
            real_loss = adversarial.real_loss(real_logits, loss.label_smoothing)
            fake_loss = adversarial.fake_loss(fake_logits)
            penalties = (
                weighted_penalties(gan, batch, shown_reals, shown_fakes, loss=loss)
                if penalty_scale
                else {}
            )
            total = real_loss + fake_loss + penalty_scale * sum(penalties.values())
            accelerator.backward(total / len(batches))
        all_fakes.append(fakes)
        all_statistics.append(
            {
                "loss/d": (real_loss + fake_loss).detach(),
                "loss/d_real": real_loss.detach(),
                "loss/d_fake": fake_loss.detach(),
                "logits/real_mean": real_logits.detach().mean(),
                "logits/fake_mean": fake_logits.detach().mean(),
                "accuracy/d_real": (real_logits > 0).float().mean(),
                "accuracy/d_fake": (fake_logits < 0).float().mean(),
                **{f"penalty/{name}": value.detach() for name, value in penalties.items()},
            }
        )
    statistics = mean_of(all_statistics)
    accelerator.unscale_gradients(gan.optimizer_d)
    statistics["grad_norm/d"] = grad_norm(gan.raw_discriminator)
    gan.optimizer_d.step()
    return all_fakes, statistics


def weighted_penalties(
    gan: GAN, batch: MicroBatch, reals: Tensor, fakes: Tensor, *, loss: Loss
) -> dict[str, Tensor]:
    """Each gradient penalty that has a weight, times its weight."""
    discriminator = gan.float32_discriminator(dict(gan.raw_discriminator.named_parameters()))
    mixing = uniform((), batch.positions, seed=batch.seed, purpose="gradient penalty")
    return {
        name: getattr(loss, name) * penalty(discriminator, reals, fakes, mixing)
        for name, penalty in PENALTIES.items()
        if getattr(loss, name)
    }


def generator_step(
    gan: GAN, batches: list[MicroBatch], *, loss: Loss, fakes: list[Tensor] | None = None
) -> Statistics:
    """Move the generator by one step on the fakes of the discriminator's step, or on fresh ones where they have no graph.

    The bare discriminator is frozen meanwhile: its gradients are neither computed nor reduced, and it does not change.
    """
    accelerator = gan.accelerator
    gan.optimizer_g.zero_grad()
    gan.raw_discriminator.requires_grad_(False)
    all_statistics = []
    for index, batch in enumerate(batches):
        with reduce_on_last(accelerator, gan.generator, index, len(batches)):
            images = gan.generator(batch.latents) if fakes is None else fakes[index]
            adversarial_loss, terms = generator_terms(gan, batch, images, loss=loss)
            accelerator.backward((adversarial_loss + sum(terms.values())) / len(batches))
        all_statistics.append(
            {"loss/g": adversarial_loss.detach()}
            | {f"diversity/{name}": term.detach() for name, term in terms.items()}
        )
    gan.raw_discriminator.requires_grad_(True)
    statistics = mean_of(all_statistics)
    accelerator.unscale_gradients(gan.optimizer_g)
    statistics["grad_norm/g"] = grad_norm(gan.raw_generator)
    gan.optimizer_g.step()
    return statistics


def generator_terms(
    gan: GAN, batch: MicroBatch, images: Tensor, *, loss: Loss
) -> tuple[Tensor, dict[str, Tensor]]:
    """The adversarial loss of fakes [b, C, H, W], and each diversity term that has a weight, times its weight."""
    adversarial, weights = ADVERSARIAL[loss.adversarial], loss.diversity
    discriminator: Any = gan.raw_discriminator
    terms: dict[str, Tensor] = {}
    fakes = shown(images, batch, "generator", gan=gan, loss=loss)
    reals = batch.reals
    if loss.unroll_steps or adversarial.paired or weights.feature_distance:
        reals = shown(batch.reals, batch, "reals", gan=gan, loss=loss)
    if weights.feature_distance:
        with gan.accelerator.autocast():
            fake_features, real_features = (
                discriminator.features(fakes),
                discriminator.features(reals),
            )
        terms["feature_distance"] = weights.feature_distance * feature_distance(
            fake_features, real_features
        )
    if weights.mode_seeking:
        terms["mode_seeking"] = weights.mode_seeking * mode_seeking(
            images, batch.reals, batch.latents
        )
    if loss.unroll_steps:
        return anticipated_loss(gan, reals, fakes, loss=loss), terms
    logits = discriminator(fakes)
    if adversarial.paired:
        with torch.no_grad():
            real_logits = discriminator(reals)
        _, logits = adversarial.relate(real_logits, logits)
    return adversarial.generator_loss(logits), terms


def anticipated_loss(gan: GAN, reals: Tensor, fakes: Tensor, *, loss: Loss) -> Tensor:
    """What the generator minimises where it anticipates the discriminator's next steps on these same images.

    The whole saddle value, the reals' part included, for through the anticipated parameters that depends on the
    generator too (Metz et al. 2017, equation 6); or the same with the generator's own loss for the fakes' part, which has
    a slope where the discriminator is sure, as the plain loss has (Goodfellow et al. 2014, section 3).
    """
    adversarial, optimizer = ADVERSARIAL[loss.adversarial], gan.optimizer_d.optimizer
    named = dict(gan.raw_discriminator.named_parameters())
    (group,) = optimizer.param_groups
    step = sgd
    if loss.unroll_optimizer == "adam":
        moments = {name: optimizer.state.get(parameter, {}) for name, parameter in named.items()}
        step = DifferentiableAdam(moments, betas=group.get("betas", (0.9, 0.999)))

    def losses(parameters: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        discriminator = gan.float32_discriminator(parameters)
        real_logits, fake_logits = adversarial.relate(discriminator(reals), discriminator(fakes))
        real_loss = adversarial.real_loss(real_logits, loss.label_smoothing)
        return (
            real_loss,
            adversarial.fake_loss(fake_logits),
            adversarial.generator_loss(fake_logits),
        )

    copies = {
        name: parameter.detach().clone().requires_grad_() for name, parameter in named.items()
    }
    ahead = anticipated(
        copies,
        lambda p: sum(losses(p)[:2], torch.zeros(())),
        num_steps=loss.unroll_steps,
        lr=group["lr"],
        step=step,
    )
    real_loss, fake_loss, generator_loss = losses(ahead)
    return (-fake_loss if loss.unroll_value == "saddle" else generator_loss) - real_loss
