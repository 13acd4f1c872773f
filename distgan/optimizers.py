"""Optimizers, learning-rate and penalty schedules, and lookahead."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn, optim

from distgan.config.schema import Loss, Optim

Parameters = Iterable[nn.Parameter]


def adam(parameters: Parameters, settings: Optim, *, fused: bool) -> optim.Optimizer:
    """Return Adam (Kingma and Ba 2015)."""
    return optim.Adam(
        parameters, betas=settings.betas, weight_decay=settings.weight_decay, fused=fused
    )


def adamw(parameters: Parameters, settings: Optim, *, fused: bool) -> optim.Optimizer:
    """Return Adam with decoupled weight decay (Loshchilov and Hutter 2019)."""
    return optim.AdamW(
        parameters, betas=settings.betas, weight_decay=settings.weight_decay, fused=fused
    )


def rmsprop(parameters: Parameters, settings: Optim, *, fused: bool) -> optim.Optimizer:
    """Return RMSprop (Hinton 2012); beta 1 is the momentum, beta 2 the decay of squares."""
    momentum, alpha = settings.betas
    return optim.RMSprop(
        parameters, alpha=alpha, momentum=momentum, weight_decay=settings.weight_decay
    )


def sgd(parameters: Parameters, settings: Optim, *, fused: bool) -> optim.Optimizer:
    """Return stochastic gradient descent; the first beta is the momentum."""
    return optim.SGD(
        parameters, momentum=settings.betas[0], weight_decay=settings.weight_decay, fused=fused
    )


# By the value of `optim.name`. `fused` updates all parameters in one kernel.
OPTIMIZERS: dict[str, Callable[..., optim.Optimizer]] = {
    "adam": adam,
    "adamw": adamw,
    "rmsprop": rmsprop,
    "sgd": sgd,
}


def set_hyperparameters(optimizer: optim.Optimizer, settings: Optim, *, lr: float) -> None:
    """Set the learning rate and all settings that this optimizer has, as if it were built anew."""
    momentum, alpha = settings.betas
    values = {
        "lr": lr,
        "betas": (momentum, alpha),
        "momentum": momentum,
        "alpha": alpha,
        "eps": settings.epsilon,
        "weight_decay": settings.weight_decay,
    }
    for group in optimizer.param_groups:
        group.update({name: value for name, value in values.items() if name in group})
    if momentum and isinstance(optimizer, optim.RMSprop):
        for state in optimizer.state.values():  # made without momentum, they have no such buffer
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(state["square_avg"])


SCHEDULES: dict[str, Callable[[float], float]] = {  # progress in [0, 1] -> factor from 1 to 0
    "constant": lambda progress: 1.0,
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: (1.0 + math.cos(math.pi * progress)) / 2,
}


def scheduled(name: str, progress: float, *, final: float) -> float:
    """Return a factor that changes from 1 at progress 0 to `final` at progress 1."""
    return final + (1.0 - final) * SCHEDULES[name](min(max(progress, 0.0), 1.0))


def lr_schedule(settings: Optim, progress: float) -> float:
    """Return the factor on both learning rates at this progress of the run."""
    return scheduled(settings.schedule, progress, final=settings.final_lr)


def penalty_scale(loss: Loss, d_step: int, *, progress: float) -> float:
    """Return the factor on the gradient penalties in a discriminator step, 0 if none is due.

    A penalty computed every k steps counts k times (Karras et al. 2020, StyleGAN2, section 3.1).
    """
    if not loss.penalised or d_step % loss.penalty_interval:
        return 0.0
    return loss.penalty_interval * scheduled("cosine", progress, final=loss.penalty_final)


class Lookahead:
    """Slow copies of both networks' weights (Chavdarova et al. 2021, algorithm 1)."""

    def __init__(self, networks: Iterable[nn.Module]) -> None:
        self.fast: list[Tensor] = [p for network in networks for p in network.parameters()]
        self.slow = [parameter.detach().clone() for parameter in self.fast]

    @torch.no_grad()
    def restart(self) -> None:
        """Set the slow weights to the fast ones, which were replaced."""
        torch._foreach_copy_(self.slow, self.fast)

    @torch.no_grad()
    def step(self, alpha: float) -> None:
        """Move the slow weights toward the fast ones by `alpha`, and the fast ones to them."""
        torch._foreach_lerp_(self.slow, self.fast, weight=alpha)
        torch._foreach_copy_(self.fast, self.slow)

    def pack(self) -> dict[str, Tensor]:
        """Return the slow weights by name."""
        return {f"lookahead.{number}": weight for number, weight in enumerate(self.slow)}

    def unpack(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `pack` returned."""
        for number, weight in enumerate(self.slow):
            weight.copy_(tensors[f"lookahead.{number}"])
