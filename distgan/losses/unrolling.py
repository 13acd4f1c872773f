"""Unrolled GANs (Metz et al. 2017): train the generator against a future discriminator.

The discriminator takes K more steps on copies of its parameters. The generator's gradient flows
through those steps, so they are twice differentiable and in float32. The discriminator itself, its
buffers and its optimizer do not change.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

Parameters = dict[str, Tensor]
Moments = Mapping[str, Mapping[str, Any]]  # parameter name -> state of its optimizer


def sgd(parameters: Parameters, gradients: list[Tensor], *, lr: float) -> Parameters:
    """Return the parameters after a gradient step, out of place."""
    return {name: p - lr * g for (name, p), g in zip(parameters.items(), gradients, strict=True)}


class DifferentiableAdam:
    """Out-of-place Adam (Kingma and Ba 2015, algorithm 1) that starts from given moments."""

    def __init__(self, moments: Moments, *, betas: tuple[float, float], epsilon: float) -> None:
        zero = torch.zeros(())
        self.betas, self.epsilon = betas, max(epsilon, 1e-8)
        self.num_steps = count_steps(moments)
        self.first = {name: state.get("exp_avg", zero) for name, state in moments.items()}
        self.second = {name: state.get("exp_avg_sq", zero) for name, state in moments.items()}

    def __call__(self, parameters: Parameters, gradients: list[Tensor], *, lr: float) -> Parameters:
        """Return the parameters after one step, and advance the moments."""
        beta1, beta2 = self.betas
        self.num_steps = self.num_steps + 1
        bias1, bias2 = 1 - beta1**self.num_steps, 1 - beta2**self.num_steps
        stepped = {}
        for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
            self.first[name] = beta1 * self.first[name] + (1 - beta1) * gradient
            self.second[name] = beta2 * self.second[name] + (1 - beta2) * gradient.square()
            mean = self.first[name] / bias1
            # Epsilon is inside the root, whose gradient is unbounded at zero.
            scale = (self.second[name] / bias2 + self.epsilon**2).sqrt()
            stepped[name] = parameter - lr * mean / scale
        return stepped


def count_steps(moments: Moments) -> Tensor:
    """Return the number of steps behind Adam's moments, as a tensor.

    It is equal for all parameters, and 0 for those of RMSprop, which also counts its steps. A
    Python number would make the host wait for a GPU.
    """
    for state in moments.values():
        if "exp_avg" in state:
            dtype = torch.float32 if state["step"].device.type == "mps" else torch.float64
            return state["step"].to(dtype)
    return torch.zeros((), dtype=torch.float64)


def unroll(
    parameters: Parameters,
    discriminator_loss: Callable[[Parameters], Tensor],
    *,
    num_steps: int,
    lr: float,
    step: Callable[..., Parameters],
) -> Parameters:
    """Return the discriminator's parameters `num_steps` steps later, with their graph."""
    for _ in range(num_steps):
        gradients = torch.autograd.grad(
            discriminator_loss(parameters), list(parameters.values()), create_graph=True
        )
        parameters = step(parameters, list(gradients), lr=lr)
    return parameters
