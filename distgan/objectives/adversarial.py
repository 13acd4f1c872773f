"""Adversarial losses on logits: what the discriminator and the generator minimise against each other."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import softplus


@dataclass(frozen=True)
class AdversarialLoss:
    """Three functions of logits [B], each the mean over the batch.

    `real_loss` and `fake_loss` sum to the discriminator's loss; `equilibrium` is what (discriminator, generator) pay
    when the discriminator cannot tell the two apart.
    """

    real_loss: Callable[[Tensor, float], Tensor]
    fake_loss: Callable[[Tensor], Tensor]
    generator_loss: Callable[[Tensor], Tensor]
    equilibrium: tuple[float, float]


def bce_real_loss(logits: Tensor, smoothing: float) -> Tensor:
    """Cross-entropy of reals against the target 1 - smoothing (one-sided: Salimans et al. 2016, section 3.4)."""
    return softplus(-logits).mean() + smoothing * logits.mean()


def bce_fake_loss(logits: Tensor) -> Tensor:
    """Cross-entropy of fakes against the target 0 (Goodfellow et al. 2014, equation 1)."""
    return softplus(logits).mean()


def bce_generator_loss(logits: Tensor) -> Tensor:
    """The non-saturating loss: cross-entropy of fakes against the target 1 (Goodfellow et al. 2014, section 3)."""
    return softplus(-logits).mean()


LN_2 = 0.6931471805599453

ADVERSARIAL = {
    "bce": AdversarialLoss(bce_real_loss, bce_fake_loss, bce_generator_loss, equilibrium=(2 * LN_2, LN_2)),
}
