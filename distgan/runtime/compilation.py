"""How the networks run on this device, eager, compiled or as CUDA graphs: found out by trying, before the run begins."""

import copy
import gc
import math
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from distgan.config.schema import Train
from distgan.errors import UserError

INDUCTOR_MODES = {"compiled": "default", "graphs": "reduce-overhead"}  # by mode; eager has none
PASSES, ROUNDS = 10, 5
LEAST_GAIN = 1.03  # below it noise decides
# Between the gradients of two modes, relative to their norm. Rounding to bf16 makes up to 0.1 of it at initial weights (measured on a
# CPU); activations that were overwritten before their backward are meant to be seen.
MOST_DIFFERENCE = 0.3

Networks = tuple[nn.Module, nn.Module]  # generator, discriminator
Autocast = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Compilation:
    """The mode the networks run, and why."""

    mode: str  # eager, compiled or graphs
    reason: str

    def compile(self, network: nn.Module) -> None:
        """Compile a network in place, so that names, DDP and autocast see no difference."""
        if self.mode != "eager":
            torch._dynamo.config.optimize_ddp = (
                False  # it splits networks for reductions by parts, and here is but one
            )
            network.compile(mode=INDUCTOR_MODES[self.mode])

    def begin_step(self) -> None:
        """Let graphs write over what the last step left.

        Within a step they must not: the generator's activations are wanted once more after the discriminator has moved.
        Without this call the first forward after a backward would end what is kept. Until the next call, images whose graph is
        wanted must be held.
        """
        if self.mode == "graphs":
            torch.compiler.cudagraph_mark_step_begin()


EAGER = Compilation("eager", "nothing else was tried")
CANDIDATES = tuple(Compilation(mode, "on trial") for mode in INDUCTOR_MODES)


def choose_compilation(
    train: Train,
    networks: Networks,
    *,
    latent_shape: tuple[int, ...],
    image_shape: tuple[int, int, int],
    micro_batch_size: int,
    num_processes: int,
    autocast: Autocast,
) -> Compilation:
    """The mode from train.compile; `auto` tries, on a GPU, with batches of `micro_batch_size` images. Raises UserError.

    Under DDP, which the trial is without, graphs are left to those who ask for them.
    """
    device = next(networks[0].parameters()).device
    if train.compile != "auto":
        if train.compile == "graphs" and device.type != "cuda":
            raise UserError(
                "train.compile=graphs records work of a GPU, and there is none here; leave it at auto"
            )
        modes = {"always": "compiled", "never": "eager", "graphs": "graphs"}
        return Compilation(modes[train.compile], "train.compile says so")
    if device.type != "cuda":
        return Compilation("eager", "a CPU is faster without (docs/performance.md)")
    if train.deterministic:
        return Compilation(
            "eager", "a compiler may change the last digits from one start to the next"
        )
    return try_modes(
        networks,
        latents=ramp((micro_batch_size, *latent_shape), device=device),
        reals=ramp((micro_batch_size, *image_shape), device=device),
        autocast=autocast,
        modes=CANDIDATES if num_processes == 1 else CANDIDATES[:1],
    )


def ramp(shape: tuple[int, ...], *, device: torch.device) -> Tensor:
    """Numbers from -1 to 1, all different: a batch for which nobody's random state is touched."""
    return torch.linspace(-1, 1, math.prod(shape), device=device).view(shape)


def try_modes(
    networks: Networks,
    *,
    latents: Tensor,
    reals: Tensor,
    autocast: Autocast,
    modes: tuple[Compilation, ...] = CANDIDATES,
) -> Compilation:
    """The fastest of eager and the other modes, each on copies of the networks; one that fails or errs is out."""
    best, most, told = "eager", 1.0, []
    for mode in modes:
        try:
            gain = measure_speedup(mode, networks, latents=latents, reals=reals, autocast=autocast)
        except Exception as error:  # whatever a compiler stumbles over, the run can do without it
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            told.append(f"{mode.mode} fails here: {reason[:100]}")
            continue
        finally:
            torch.compiler.reset()  # it keeps only a few compiled networks, and the run's own are still to come
            gc.collect()  # compiled modules lie in cycles, and the run needs the memory
            if latents.device.type == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()  # the run reports its own
        told.append(f"{mode.mode} is {gain:.2f} times as fast as eager")
        if gain >= most * LEAST_GAIN:
            best, most = mode.mode, gain
    return Compilation(best, ", ".join(told))


def measure_speedup(
    mode: Compilation, networks: Networks, *, latents: Tensor, reals: Tensor, autocast: Autocast
) -> float:
    """How many times as fast as eager a mode is; raises RuntimeError where it computes something else."""
    pairs = {"eager": copy.deepcopy(networks), mode.mode: copy.deepcopy(networks)}
    for network in pairs[mode.mode]:
        mode.compile(network)

    def seconds(name: str) -> float:
        began = time.perf_counter()
        for _ in range(PASSES):
            mode.begin_step()
            train_pass(*pairs[name], latents=latents, reals=reals, autocast=autocast)
        if latents.device.type == "cuda":
            torch.cuda.synchronize(latents.device)
        return time.perf_counter() - began

    seconds("eager")
    seconds(mode.mode)  # compiles and records
    gain = statistics.median(seconds("eager") / seconds(mode.mode) for _ in range(ROUNDS))
    for name in pairs:
        mode.begin_step()
        train_pass(
            *pairs[name], latents=latents.flip(0), reals=reals.flip(0), autocast=autocast
        )  # nothing seen before
    for expected, found in zip(pairs["eager"], pairs[mode.mode], strict=True):
        difference = relative_difference(expected, found)
        if not difference <= MOST_DIFFERENCE:  # NaN too
            raise RuntimeError(f"its gradients differ from the eager ones by {difference:.0%}")
    return gain


def relative_difference(expected: nn.Module, found: nn.Module) -> float:
    """Norm of the difference of two networks' gradients, in norms of the first."""

    def gradients(network: nn.Module) -> list[Tensor]:
        return [torch.zeros_like(p) if p.grad is None else p.grad for p in network.parameters()]

    wanted, got = gradients(expected), gradients(found)
    total_norm = torch.nn.utils.get_total_norm
    return float(total_norm([b - a for a, b in zip(wanted, got, strict=True)]) / total_norm(wanted))


def train_pass(
    generator: nn.Module,
    discriminator: nn.Module,
    *,
    latents: Tensor,
    reals: Tensor,
    autocast: Autocast,
) -> None:
    """The forwards and backwards of one step, with a discriminator that is first trained and then frozen."""
    discriminator.zero_grad()
    with autocast():
        fakes = generator(latents)
    with autocast():
        real_score = discriminator(reals).mean()
    with autocast():
        fake_score = discriminator(fakes.detach()).mean()
    (real_score - fake_score).backward()
    generator.zero_grad()
    discriminator.requires_grad_(False)
    with autocast():
        score = discriminator(fakes).mean()
    score.backward()
    discriminator.requires_grad_(True)
