"""Optimizers by the word of `optim.name`, learning rates over a run, and lookahead."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn, optim

from distgan.config.schema import Optim

Parameters = Iterable[nn.Parameter]


def adam(parameters: Parameters, settings: Optim) -> optim.Optimizer:
    """Adam (Kingma and Ba 2015), all parameters in one fused pass."""
    return optim.Adam(
        parameters, betas=settings.betas, weight_decay=settings.weight_decay, fused=True
    )


def adamw(parameters: Parameters, settings: Optim) -> optim.Optimizer:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019)."""
    return optim.AdamW(
        parameters, betas=settings.betas, weight_decay=settings.weight_decay, fused=True
    )


def rmsprop(parameters: Parameters, settings: Optim) -> optim.Optimizer:
    """RMSprop (Hinton 2012) with the second decay rate for squares and the first as momentum."""
    momentum, alpha = settings.betas
    return optim.RMSprop(
        parameters, alpha=alpha, momentum=momentum, weight_decay=settings.weight_decay
    )


def sgd(parameters: Parameters, settings: Optim) -> optim.Optimizer:
    """Stochastic gradient descent with the first decay rate as momentum."""
    return optim.SGD(
        parameters, momentum=settings.betas[0], weight_decay=settings.weight_decay, fused=True
    )


OPTIMIZERS: dict[str, Callable[[Parameters, Optim], optim.Optimizer]] = {
    "adam": adam,
    "adamw": adamw,
    "rmsprop": rmsprop,
    "sgd": sgd,
}

SCHEDULES: dict[
    str, Callable[[float], float]
] = {  # part of the run that is over -> part of the fall that is left
    "constant": lambda progress: 1.0,
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: (1.0 + math.cos(math.pi * progress)) / 2,
}


def scheduled(word: str, progress: float, *, final: float) -> float:
    """Factor on a value that goes from 1 to `final` while progress goes from 0 to 1."""
    return final + (1.0 - final) * SCHEDULES[word](min(max(progress, 0.0), 1.0))


def lr_schedule(settings: Optim, progress: float) -> float:
    """Factor on both learning rates at this part of the run."""
    return scheduled(settings.schedule, progress, final=settings.final_lr)


class Lookahead:
    """Slow weights of both players, toward which they go back together (Chavdarova et al. 2021, algorithm 1)."""

    def __init__(self, networks: Iterable[nn.Module]) -> None:
        self.fast: list[Tensor] = [
            parameter for network in networks for parameter in network.parameters()
        ]
        self.slow = [parameter.detach().clone() for parameter in self.fast]

    @torch.no_grad()
    def step(self, alpha: float) -> None:
        """Move the slow weights by this part of the way to the fast ones, and the fast ones onto them."""
        torch._foreach_lerp_(self.slow, self.fast, weight=alpha)
        torch._foreach_copy_(self.fast, self.slow)

    def pack(self) -> dict[str, Tensor]:
        """The slow weights, named."""
        return {f"lookahead.{number}": weight for number, weight in enumerate(self.slow)}

    def unpack(self, tensors: dict[str, Tensor]) -> None:
        """Undo `pack`."""
        for number, weight in enumerate(self.slow):
            weight.copy_(tensors[f"lookahead.{number}"])
