"""Adversarial losses: functions of logits that the two networks minimise against each other."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import relu, softplus

from distgan.config.schema import Loss

Logits = tuple[Tensor, Tensor]  # of reals [B] and of fakes [B]


def keep_logits(real_logits: Tensor, fake_logits: Tensor) -> Logits:
    """Return the discriminator's logits as they are."""
    return real_logits, fake_logits


@dataclass(frozen=True, kw_only=True)
class AdversarialLoss:
    """Three functions of logits [B], each a mean over the batch.

    The discriminator minimises `real_loss` + `fake_loss`, the generator `generator_loss`. Label
    smoothing acts on the losses that have a target. `undecided` maps it to the logit that is best
    if the discriminator cannot tell fakes from reals. `relate` computes the logits that the losses
    take, from the discriminator's logits of reals and of fakes. If `paired`, the generator's loss
    needs both too.
    """

    real_loss: Callable[[Tensor, float], Tensor]  # logits, label smoothing
    fake_loss: Callable[[Tensor], Tensor]
    generator_loss: Callable[[Tensor], Tensor]
    undecided: Callable[[float], float] = lambda _: 0.0
    relate: Callable[[Tensor, Tensor], Logits] = keep_logits
    paired: bool = False

    def discriminator_losses(
        self, real_logits: Tensor, fake_logits: Tensor, smoothing: float
    ) -> tuple[Tensor, Tensor]:
        """Return the losses on reals and on fakes, from logits that `relate` has returned."""
        real_loss = self.real_loss(real_logits, smoothing)
        if self.paired:  # both losses are the same function of a pair's difference
            return real_loss, real_loss
        return real_loss, self.fake_loss(fake_logits)


# ----------------------------------------------------------------------------- binary cross-entropy


def bce_undecided(smoothing: float) -> float:
    """Return the logit whose probability is halfway between the targets, 1 - smoothing and 0."""
    return math.log((1 - smoothing) / (1 + smoothing))


def bce_real_loss(logits: Tensor, smoothing: float) -> Tensor:
    """Return the cross-entropy of reals with the target 1 - smoothing.

    One-sided label smoothing: Salimans et al. 2016, section 3.4.
    """
    loss = softplus(-logits).mean()
    return loss + smoothing * logits.mean() if smoothing else loss


def bce_fake_loss(logits: Tensor) -> Tensor:
    """Return the cross-entropy of fakes with the target 0 (Goodfellow et al. 2014, equation 1)."""
    return softplus(logits).mean()


def bce_generator_loss(logits: Tensor) -> Tensor:
    """Return the cross-entropy of fakes with the target 1, the non-saturating loss.

    Goodfellow et al. 2014, section 3.
    """
    return softplus(-logits).mean()


# ------------------------------------------------------------------------------------ least squares
# The targets apply to (logits + 1) / 2, so that a logit of 0 means undecided, as elsewhere.


def lsgan_real_loss(logits: Tensor, smoothing: float) -> Tensor:
    """Return the squared error of reals to 1 - smoothing (Mao et al. 2017, equation 9)."""
    return ((logits - 1) / 2 + smoothing).square().mean()


def lsgan_fake_loss(logits: Tensor) -> Tensor:
    """Return the squared error of fakes to 0."""
    return ((logits + 1) / 2).square().mean()


def lsgan_generator_loss(logits: Tensor) -> Tensor:
    """Return the squared error of fakes to 1."""
    return ((logits - 1) / 2).square().mean()


# -------------------------------------------------------------------------------------------- hinge


def hinge_real_loss(logits: Tensor, _: float) -> Tensor:
    """Return the mean amount by which logits of reals are below 1.

    Miyato et al. 2018, equation 16.
    """
    return relu(1 - logits).mean()


def hinge_fake_loss(logits: Tensor) -> Tensor:
    """Return the mean amount by which logits of fakes are above -1."""
    return relu(1 + logits).mean()


# -------------------------------------------------------------------------------------- Wasserstein


def wasserstein_real_loss(logits: Tensor, _: float) -> Tensor:
    """Return the negative mean score of reals (Arjovsky et al. 2017, equation 3)."""
    return -logits.mean()


def wasserstein_fake_loss(logits: Tensor) -> Tensor:
    """Return the mean score of fakes."""
    return logits.mean()


def wasserstein_generator_loss(logits: Tensor) -> Tensor:
    """Return the negative mean score of fakes."""
    return -logits.mean()


def center_scores(real_scores: Tensor, fake_scores: Tensor) -> Logits:
    """Shift all scores so that zero is halfway between the mean scores of reals and of fakes.

    A Wasserstein critic's scores have no meaningful zero. The shift changes no gradient.
    """
    midpoint = (real_scores.detach().mean() + fake_scores.detach().mean()) / 2
    return real_scores - midpoint, fake_scores - midpoint


# ------------------------------------------------------------------------------------- relativistic


def pair_differences(real_logits: Tensor, fake_logits: Tensor) -> Logits:
    """Return the logit of each real minus that of its paired fake, and the negative."""
    return real_logits - fake_logits, fake_logits - real_logits


def relativistic_real_loss(differences: Tensor, _: float) -> Tensor:
    """Return half the cross-entropy of classifying the real of each pair as more realistic.

    Jolicoeur-Martineau 2019, equation 4.
    """
    return bce_real_loss(differences, 0.0) / 2


def relativistic_fake_loss(differences: Tensor) -> Tensor:
    """Return the other half of the cross-entropy, computed from the fake minus the real."""
    return bce_fake_loss(differences) / 2


# By the value of `loss.adversarial`.
ADVERSARIAL = {
    "bce": AdversarialLoss(
        real_loss=bce_real_loss,
        fake_loss=bce_fake_loss,
        generator_loss=bce_generator_loss,
        undecided=bce_undecided,
    ),
    "lsgan": AdversarialLoss(
        real_loss=lsgan_real_loss,
        fake_loss=lsgan_fake_loss,
        generator_loss=lsgan_generator_loss,
        undecided=lambda smoothing: -smoothing,
    ),
    "hinge": AdversarialLoss(
        real_loss=hinge_real_loss,
        fake_loss=hinge_fake_loss,
        generator_loss=wasserstein_generator_loss,  # Miyato et al. 2018, equation 17
    ),
    "wasserstein": AdversarialLoss(
        real_loss=wasserstein_real_loss,
        fake_loss=wasserstein_fake_loss,
        generator_loss=wasserstein_generator_loss,
        relate=center_scores,
    ),
    "relativistic": AdversarialLoss(
        real_loss=relativistic_real_loss,
        fake_loss=relativistic_fake_loss,
        generator_loss=bce_generator_loss,
        relate=pair_differences,
        paired=True,
    ),
}


def equilibrium(loss: Loss) -> tuple[float, float]:
    """Return both losses, (discriminator, generator), for indistinguishable fakes and reals.

    The loss of an unrolled generator includes the reals' part with a negative sign.
    """
    adversarial, smoothing = ADVERSARIAL[loss.adversarial], loss.label_smoothing
    logits = torch.full((1,), adversarial.undecided(smoothing), dtype=torch.float64)
    real_logits, fake_logits = adversarial.relate(logits, logits)
    losses = adversarial.discriminator_losses(real_logits, fake_logits, smoothing)
    on_reals, discriminator = float(losses[0]), float(sum(losses))
    generator = float(adversarial.generator_loss(fake_logits))
    if loss.unroll_steps == 0:
        return discriminator, generator
    if loss.unroll_value == "saddle":
        return discriminator, -discriminator
    return discriminator, generator - on_reals
