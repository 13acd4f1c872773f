"""Anticipating counterplay: the discriminator that a generator will meet after K more of its steps (Metz et al. 2017).

The generator's gradient flows through those steps, so all is differentiable twice, in full precision, on copies: the
discriminator itself, its buffers and its optimizer stay as they are.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

Parameters = dict[str, Tensor]
Moments = Mapping[str, Mapping[str, Any]]  # a parameter's name -> its optimizer's state


def sgd(parameters: Parameters, gradients: list[Tensor], *, lr: float) -> Parameters:
    """One plain step, out of place."""
    return {name: p - lr * g for (name, p), g in zip(parameters.items(), gradients, strict=True)}


class DifferentiableAdam:
    """Adam (Kingma and Ba 2015, algorithm 1) out of place, from where the discriminator's own optimizer stands."""

    def __init__(self, moments: Moments, *, betas: tuple[float, float]) -> None:
        self.betas = betas
        self.steps = {name: float(state.get("step", 0)) for name, state in moments.items()}
        self.first = {
            name: state.get("exp_avg", torch.zeros(())) for name, state in moments.items()
        }
        self.second = {
            name: state.get("exp_avg_sq", torch.zeros(())) for name, state in moments.items()
        }

    def __call__(self, parameters: Parameters, gradients: list[Tensor], *, lr: float) -> Parameters:
        """The next parameters; the moments go on too."""
        beta1, beta2 = self.betas
        moved = {}
        for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
            self.steps[name] += 1
            self.first[name] = beta1 * self.first[name] + (1 - beta1) * gradient
            self.second[name] = beta2 * self.second[name] + (1 - beta2) * gradient.square()
            mean = self.first[name] / (1 - beta1 ** self.steps[name])
            # Inside the root, for its slope has no bound at zero.
            scale = (self.second[name] / (1 - beta2 ** self.steps[name]) + 1e-16).sqrt()
            moved[name] = parameter - lr * mean / scale
        return moved


def anticipated(
    parameters: Parameters,
    discriminator_loss: Callable[[Parameters], Tensor],
    *,
    num_steps: int,
    lr: float,
    step: Callable[..., Parameters],
) -> Parameters:
    """The discriminator's parameters after `num_steps` of its steps, with the graph through all of them."""
    for _ in range(num_steps):
        gradients = torch.autograd.grad(
            discriminator_loss(parameters), list(parameters.values()), create_graph=True
        )
        parameters = step(parameters, list(gradients), lr=lr)
    return parameters
