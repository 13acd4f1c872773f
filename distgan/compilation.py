"""Whether compiled networks train faster on this device: found out by trying both, before the run begins."""

import copy
import gc
import math
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from distgan.config import Train

PASSES, ROUNDS = 10, 5
LEAST_GAIN = 1.03  # below it noise decides

Networks = tuple[nn.Module, nn.Module]  # generator, discriminator
Autocast = Callable[[], AbstractContextManager[Any]]


def choose_compile(
    train: Train,
    networks: Networks,
    *,
    latent_shape: tuple[int, ...],
    image_shape: tuple[int, int, int],
    share: int,
    autocast: Autocast,
) -> tuple[bool, str]:
    """(Whether to compile, why) from train.compile; `auto` tries it, on a GPU, with batches of `share` images."""
    device = next(networks[0].parameters()).device
    if train.compile != "auto":
        return train.compile == "always", "train.compile says so"
    if device.type != "cuda":
        return False, "a CPU is faster without (docs/performance.md)"
    if train.deterministic:
        return False, "a compiler may change the last digits from one start to the next"
    latents, reals = ramp((share, *latent_shape), device=device), ramp((share, *image_shape), device=device)
    decision = try_both(networks, latents=latents, reals=reals, autocast=autocast)
    torch.compiler.reset()  # it keeps only a few compiled networks, and the run's own are still to come
    return decision


def ramp(shape: tuple[int, ...], *, device: torch.device) -> Tensor:
    """Numbers from -1 to 1, all different: a batch for which nobody's random state is touched."""
    return torch.linspace(-1, 1, math.prod(shape), device=device).view(shape)


def try_both(
    networks: Networks,
    *,
    latents: Tensor,
    reals: Tensor,
    autocast: Autocast,
    compile_network: Callable[[nn.Module], None] = nn.Module.compile,
) -> tuple[bool, str]:
    """Time passes of copies of the networks, eager and compiled by turns; a compiler that fails loses."""
    eager, compiled = copy.deepcopy(networks), copy.deepcopy(networks)

    def seconds(pair: Networks) -> float:
        began = time.perf_counter()
        for _ in range(PASSES):
            train_pass(*pair, latents=latents, reals=reals, autocast=autocast)
        if latents.device.type == "cuda":
            torch.cuda.synchronize(latents.device)
        return time.perf_counter() - began

    seconds(eager)
    try:
        compile_network(compiled[0])
        compile_network(compiled[1])
        seconds(compiled)  # compiles
        gain = statistics.median(seconds(eager) / seconds(compiled) for _ in range(ROUNDS))
    except Exception as error:  # whatever a compiler stumbles over, the run can do without it
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return False, f"compiling fails here: {reason[:100]}"
    finally:
        del eager, compiled
        gc.collect()  # compiled modules lie in cycles, and the run needs the memory
        if latents.device.type == "cuda":
            torch.cuda.empty_cache()
    return gain >= LEAST_GAIN, f"compiled is {gain:.2f} times as fast as eager"


def train_pass(
    generator: nn.Module, discriminator: nn.Module, *, latents: Tensor, reals: Tensor, autocast: Autocast
) -> None:
    """The forwards and backwards of one step, with a discriminator that is first trained and then frozen."""
    with autocast():
        fakes = generator(latents)
        score = discriminator(reals).mean() - discriminator(fakes.detach()).mean()
    score.backward()
    discriminator.requires_grad_(False)
    with autocast():
        score = discriminator(fakes).mean()
    score.backward()
    discriminator.requires_grad_(True)
