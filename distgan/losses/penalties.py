"""Gradient penalties on the discriminator, each a mean over the batch, in float32.

A penalty measures how much logits change with their images, and its own gradient is of second
order. The discriminator must not have batch norm, which makes a logit depend on other images too.
"""

from collections.abc import Callable

import torch
from torch import Tensor

# Images [B, C, H, W] to logits, in float32 and twice differentiable.
Discriminator = Callable[[Tensor], Tensor]


def image_gradients(discriminator: Discriminator, images: Tensor) -> Tensor:
    """Return the gradients of logits with respect to images, [B, C * H * W], with their graph."""
    images = images.detach().float().requires_grad_()
    (gradients,) = torch.autograd.grad(discriminator(images).sum(), images, create_graph=True)
    return gradients.flatten(1)


def r1(discriminator: Discriminator, reals: Tensor, fakes: Tensor, mixing: Tensor) -> Tensor:
    """Return half the squared gradient norm at reals (Mescheder et al. 2018, equation 9)."""
    return image_gradients(discriminator, reals).square().sum(1).mean() / 2


def r2(discriminator: Discriminator, reals: Tensor, fakes: Tensor, mixing: Tensor) -> Tensor:
    """Return half the squared gradient norm at fakes (Mescheder et al. 2018, equation 10)."""
    return image_gradients(discriminator, fakes).square().sum(1).mean() / 2


def gradient_penalty(
    discriminator: Discriminator, reals: Tensor, fakes: Tensor, mixing: Tensor
) -> Tensor:
    """Return the squared distance of the gradient norm from 1, at points between reals and fakes.

    Gulrajani et al. 2017, equation 3. `mixing` [B] in [0, 1) is the position of each point on the
    line from its real to its fake.
    """
    mixing = mixing.view(-1, *[1] * (reals.dim() - 1))
    between = torch.lerp(reals.float(), fakes.detach().float(), mixing)
    # The square root has no gradient at zero, where that of a new discriminator may be.
    norms = (image_gradients(discriminator, between).square().sum(1) + 1e-12).sqrt()
    return (norms - 1).square().mean()


# By the name of the penalty's weight in `loss`.
PENALTIES: dict[str, Callable[[Discriminator, Tensor, Tensor, Tensor], Tensor]] = {
    "r1": r1,
    "r2": r2,
    "gradient_penalty": gradient_penalty,
}
