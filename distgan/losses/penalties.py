"""Gradient penalties on the discriminator, each the mean over the batch, in full precision.

A penalty asks how much the logits change with the images, and its own gradient is of second order: networks without
batch norm only, for there an image's logit has a gradient of its own.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Discriminator = Callable[
    [Tensor], Tensor
]  # images [B, C, H, W] -> logits, float32, differentiable twice


def image_gradients(discriminator: Discriminator, images: Tensor) -> Tensor:
    """Gradient of the summed logits with respect to images, flat [B, C * H * W], with its graph."""
    images = images.detach().float().requires_grad_()
    (gradients,) = torch.autograd.grad(discriminator(images).sum(), images, create_graph=True)
    return gradients.flatten(1)


def r1(discriminator: Discriminator, reals: Tensor, fakes: Tensor, mixing: Tensor) -> Tensor:
    """Half the squared gradient norm at reals (Mescheder et al. 2018, equation 9)."""
    return image_gradients(discriminator, reals).square().sum(1).mean() / 2


def r2(discriminator: Discriminator, reals: Tensor, fakes: Tensor, mixing: Tensor) -> Tensor:
    """Half the squared gradient norm at fakes (Mescheder et al. 2018, equation 10)."""
    return image_gradients(discriminator, fakes).square().sum(1).mean() / 2


def gradient_penalty(
    discriminator: Discriminator, reals: Tensor, fakes: Tensor, mixing: Tensor
) -> Tensor:
    """Squared distance of the gradient norm from 1 between reals and fakes (Gulrajani et al. 2017, equation 3).

    `mixing` [B] in [0, 1) is how far each image lies from its real toward its fake.
    """
    between = torch.lerp(
        reals.float(), fakes.detach().float(), mixing.view(-1, *[1] * (reals.dim() - 1))
    )
    # The square root has no slope at zero, where a new discriminator may be.
    norms = (image_gradients(discriminator, between).square().sum(1) + 1e-12).sqrt()
    return (norms - 1).square().mean()


PENALTIES: dict[str, Callable[[Discriminator, Tensor, Tensor, Tensor], Tensor]] = {
    "r1": r1,
    "r2": r2,
    "gradient_penalty": gradient_penalty,
}
