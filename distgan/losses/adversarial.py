"""Adversarial losses on logits: what the discriminator and the generator minimise against each other."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import relu, softplus

from distgan.config.schema import Loss


@dataclass(frozen=True)
class AdversarialLoss:
    """Three functions of logits [B], each the mean over the batch.

    `real_loss` and `fake_loss` sum to the discriminator's loss; `equilibrium` is what (discriminator, generator) pay
    when the discriminator cannot tell the two apart. `relate` makes the logits that the losses take, undecided at zero,
    from the discriminator's own logits of reals and fakes; a `paired` loss needs both for the generator too.
    """

    real_loss: Callable[[Tensor, float], Tensor]
    fake_loss: Callable[[Tensor], Tensor]
    generator_loss: Callable[[Tensor], Tensor]
    equilibrium: tuple[float, float]
    relate: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = lambda reals, fakes: (reals, fakes)
    paired: bool = False


def bce_real_loss(logits: Tensor, smoothing: float) -> Tensor:
    """Cross-entropy of reals against the target 1 - smoothing (one-sided: Salimans et al. 2016, section 3.4)."""
    return softplus(-logits).mean() + smoothing * logits.mean()


def bce_fake_loss(logits: Tensor) -> Tensor:
    """Cross-entropy of fakes against the target 0 (Goodfellow et al. 2014, equation 1)."""
    return softplus(logits).mean()


def bce_generator_loss(logits: Tensor) -> Tensor:
    """The non-saturating loss: cross-entropy of fakes against the target 1 (Goodfellow et al. 2014, section 3)."""
    return softplus(-logits).mean()


def lsgan_real_loss(logits: Tensor, smoothing: float) -> Tensor:
    """Squared error of (logits + 1) / 2 against 1 - smoothing (Mao et al. 2017, equation 9), so that zero is undecided."""
    return ((logits - 1) / 2 + smoothing).square().mean()


def lsgan_fake_loss(logits: Tensor) -> Tensor:
    """Squared error of (logits + 1) / 2 against 0."""
    return ((logits + 1) / 2).square().mean()


def lsgan_generator_loss(logits: Tensor) -> Tensor:
    """Squared error of (logits + 1) / 2 against 1."""
    return ((logits - 1) / 2).square().mean()


def hinge_real_loss(logits: Tensor, smoothing: float) -> Tensor:
    """Reals are pushed up to a logit of 1 (Lim and Ye 2017; Miyato et al. 2018, equation 16)."""
    return relu(1 - logits).mean() + smoothing * logits.mean()


def hinge_fake_loss(logits: Tensor) -> Tensor:
    """Fakes are pushed down to a logit of -1."""
    return relu(1 + logits).mean()


def wasserstein_real_loss(logits: Tensor, smoothing: float) -> Tensor:
    """The critic's score of reals, negative (Arjovsky et al. 2017, equation 3); it has no target to smooth."""
    return (smoothing - 1) * logits.mean()


def mean_score(logits: Tensor) -> Tensor:
    """The critic's score of fakes."""
    return logits.mean()


def lifted_score(logits: Tensor) -> Tensor:
    """What a generator minimises to raise its score."""
    return -logits.mean()


def around_midpoint(real_scores: Tensor, fake_scores: Tensor) -> tuple[Tensor, Tensor]:
    """Scores as seen from between the two means: a critic's own zero means nothing, and no gradient changes."""
    midpoint = (real_scores.detach().mean() + fake_scores.detach().mean()) / 2
    return real_scores - midpoint, fake_scores - midpoint


def within_pairs(real_logits: Tensor, fake_logits: Tensor) -> tuple[Tensor, Tensor]:
    """By how much each real is more real than the fake beside it, and the reverse."""
    return real_logits - fake_logits, fake_logits - real_logits


def relativistic_real_loss(differences: Tensor, smoothing: float) -> Tensor:
    """Half the cross-entropy of "this real is more real than that fake" (Jolicoeur-Martineau 2019, equation 4)."""
    return bce_real_loss(differences, smoothing) / 2


def relativistic_fake_loss(differences: Tensor) -> Tensor:
    """The other half, of the same pairs seen from the fake."""
    return bce_fake_loss(differences) / 2


LN_2 = 0.6931471805599453

ADVERSARIAL = {
    "bce": AdversarialLoss(
        bce_real_loss, bce_fake_loss, bce_generator_loss, equilibrium=(2 * LN_2, LN_2)
    ),
    "lsgan": AdversarialLoss(
        lsgan_real_loss, lsgan_fake_loss, lsgan_generator_loss, equilibrium=(0.5, 0.25)
    ),
    "hinge": AdversarialLoss(
        hinge_real_loss, hinge_fake_loss, lifted_score, equilibrium=(2.0, 0.0)
    ),
    "wasserstein": AdversarialLoss(
        wasserstein_real_loss,
        mean_score,
        lifted_score,
        equilibrium=(0.0, 0.0),
        relate=around_midpoint,
    ),
    "relativistic": AdversarialLoss(
        relativistic_real_loss,
        relativistic_fake_loss,
        bce_generator_loss,
        equilibrium=(LN_2, LN_2),
        relate=within_pairs,
        paired=True,
    ),
}


def equilibrium(loss: Loss) -> tuple[float, float]:
    """What (discriminator, generator) pay where fakes cannot be told; an unrolled generator is paid the reals' part."""
    adversarial, zero = ADVERSARIAL[loss.adversarial], torch.zeros(1)
    discriminator, generator = adversarial.equilibrium
    if loss.unroll_steps == 0:
        return discriminator, generator
    if loss.unroll_value == "saddle":
        return discriminator, -discriminator
    return discriminator, generator - float(adversarial.real_loss(zero, 0.0))
