"""Optimizers by the word of `optim.name`."""

from collections.abc import Callable, Iterable

from torch import nn, optim

MakeOptimizer = Callable[..., optim.Optimizer]


def adam(parameters: Iterable[nn.Parameter], *, lr: float, betas: tuple[float, float]) -> optim.Optimizer:
    """Adam (Kingma and Ba 2015), all parameters in one fused pass."""
    return optim.Adam(parameters, lr=lr, betas=betas, fused=True)


OPTIMIZERS: dict[str, MakeOptimizer] = {"adam": adam}
