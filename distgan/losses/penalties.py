"""Gradient penalties on the discriminator, each a mean over the batch, in float32.

A penalty measures how much logits change with their images, and its own gradient is of second
order. With packing a logit belongs to several consecutive images, so its gradient is the one by all
images of the pack together. The discriminator must not have batch norm, which makes a logit depend
on images of other packs, too.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

# Images [B, C, H, W] to logits, in float32 and twice differentiable.
Discriminator = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Penalty:
    """The images at which a penalty measures the gradient, and its cost.

    `points` takes reals, fakes and mixing; `cost` takes squared gradient norms [B / packing].
    """

    points: Callable[[Tensor, Tensor, Tensor], Tensor]
    cost: Callable[[Tensor], Tensor]


def between(reals: Tensor, fakes: Tensor, mixing: Tensor) -> Tensor:
    """Return points on the lines from reals to fakes; `mixing` [B] in [0, 1) says where."""
    mixing = mixing.view(-1, *[1] * (reals.dim() - 1))
    return torch.lerp(reals.float(), fakes.float(), mixing)


def half_mean(squared_norms: Tensor) -> Tensor:
    """Return half the mean squared gradient norm (Mescheder et al. 2018, equations 9 and 10)."""
    return squared_norms.mean() / 2


def squared_distance_from_one(squared_norms: Tensor) -> Tensor:
    """Return the mean squared distance of norms from 1 (Gulrajani et al. 2017, equation 3)."""
    # The root's gradient is infinite at zero, where a new discriminator's norm may be.
    return ((squared_norms + 1e-12).sqrt() - 1).square().mean()


# By the name of the penalty's weight in `loss`.
PENALTIES = {
    "r1": Penalty(lambda reals, fakes, mixing: reals.float(), half_mean),
    "r2": Penalty(lambda reals, fakes, mixing: fakes.float(), half_mean),
    "gradient_penalty": Penalty(between, squared_distance_from_one),
}


def gradient_penalties(
    discriminator: Discriminator,
    reals: Tensor,
    fakes: Tensor,
    mixing: Tensor,
    *,
    weights: Mapping[str, float],
    packing: int = 1,
) -> dict[str, Tensor]:
    """Return each penalty of `weights` times its weight, all from one forward and one gradient.

    reals and fakes [B, C, H, W]; `mixing` [B] in [0, 1) is used by `gradient_penalty`. The images
    of a pack are mixed alike, as its first one is.
    """
    mixing = mixing[::packing].repeat_interleave(packing)
    points = [PENALTIES[name].points(reals, fakes, mixing) for name in weights]
    images = torch.cat(points).detach().requires_grad_()
    (gradients,) = torch.autograd.grad(discriminator(images).sum(), images, create_graph=True)
    packs = gradients.unflatten(0, (-1, packing)).flatten(1)
    squared_norms = packs.square().sum(1).chunk(len(weights))
    return {
        name: weight * PENALTIES[name].cost(norms)
        for (name, weight), norms in zip(weights.items(), squared_norms, strict=True)
    }
