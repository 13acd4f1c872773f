"""The choice between eager, compiled and CUDA-graph networks, made by timing each of them."""

import copy
import gc
import math
import os
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from distgan.config.schema import Train
from distgan.errors import UserError
from distgan.runtime.accelerator import default_num_threads
from distgan.text import first_line

INDUCTOR_MODES = {"compiled": "default", "graphs": "reduce-overhead"}
PASSES, ROUNDS = 10, 5
MIN_SPEEDUP = 1.03  # smaller differences may be noise
COMPILE_SEC = 30.0  # approximate cost of trying one mode
MAX_SAVING = 0.5  # of the training time, if a mode is twice as fast as eager
# Bound on the relative difference between a mode's gradients and eager ones. Rounding to bf16 alone
# causes up to 0.1 at initial weights (measured on a CPU). The bound detects activations that were
# overwritten before the backward pass used them.
MAX_GRADIENT_DIFFERENCE = 0.3

Networks = tuple[nn.Module, nn.Module]  # generator, discriminator
Autocast = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Compilation:
    """The mode in which the networks run (eager, compiled or graphs), and why."""

    mode: str
    reason: str

    def compile(self, network: nn.Module) -> None:
        """Compile a network in place; parameter names, DDP and autocast are not affected."""
        if self.mode != "eager":
            # It splits a network at the boundaries of DDP buckets, but here there is only one.
            torch._dynamo.config.optimize_ddp = False
            limit_compile_threads()
            network.compile(mode=INDUCTOR_MODES[self.mode])

    def begin_step(self) -> None:
        """Mark the start of a step, so that CUDA graphs may reuse the previous step's buffers.

        Without the mark the first forward after a backward would reuse them, although the generator
        needs its activations once more after the discriminator's update. Images whose graph is
        still needed must be referenced until the next call.
        """
        if self.mode == "graphs":
            torch.compiler.cudagraph_mark_step_begin()


def limit_compile_threads() -> None:
    """Compile with the usable cores per process; the default is up to 32 threads in each."""
    from torch._inductor import config

    if "TORCHINDUCTOR_COMPILE_THREADS" not in os.environ:
        config.compile_threads = default_num_threads()


EAGER = Compilation("eager", "nothing else was tried")
CANDIDATES = tuple(Compilation(mode, "candidate") for mode in INDUCTOR_MODES)


@dataclass(frozen=True)
class TrialPass:
    """The forwards and backwards of one step, on batches of one micro-batch.

    `uses_features`: the generator's loss compares features too (loss.diversity.feature_distance).
    """

    latents: Tensor
    reals: Tensor
    autocast: Autocast
    uses_features: bool = False
    condition: tuple[Tensor, ...] = ()  # the labels of a conditional GAN

    def __call__(self, generator: nn.Module, discriminator: Any) -> None:
        """Compute the gradients of the discriminator, then freeze it for those of the generator."""
        discriminator.zero_grad()
        with self.autocast():
            fakes = generator(self.latents, *self.condition)
        with self.autocast():
            real_score = discriminator(self.reals, *self.condition).mean()
        with self.autocast():
            fake_score = discriminator(fakes.detach(), *self.condition).mean()
        (real_score - fake_score).backward()
        generator.zero_grad()
        discriminator.requires_grad_(False)
        with self.autocast():
            if self.uses_features:
                logits, features = discriminator(fakes, *self.condition, with_features=True)
                score = logits.mean() + features.float().mean()
            else:
                score = discriminator(fakes, *self.condition).mean()
        score.backward()
        discriminator.requires_grad_(True)

    def on_another_batch(self) -> "TrialPass":
        """Return the same pass on images and latents that no mode has seen before."""
        return replace(self, latents=self.latents.flip(0), reals=self.reals.flip(0))

    def seconds(self, networks: Networks, mode: Compilation) -> float:
        """Return the seconds of one pass, measured over PASSES."""
        began = time.perf_counter()
        for _ in range(PASSES):
            mode.begin_step()
            self(*networks)
        if self.latents.device.type == "cuda":
            torch.cuda.synchronize(self.latents.device)
        return (time.perf_counter() - began) / PASSES


def choose_compilation(
    train: Train,
    networks: Networks,
    *,
    latent_shape: tuple[int, ...],
    image_shape: tuple[int, int, int],
    micro_batch_size: int,
    num_passes: float,
    num_processes: int,
    uses_features: bool,
    autocast: Autocast,
    num_labels: int = 0,
) -> Compilation:
    """Return the mode for train.compile; with `auto` on a GPU the fastest one is found by trying.

    `num_passes` is the number of micro-batches of the run. The trial runs without DDP, so with
    several processes `auto` does not consider CUDA graphs. Raises UserError for graphs without a
    GPU.
    """
    device = next(networks[0].parameters()).device
    if train.compile != "auto":
        if train.compile == "graphs" and device.type != "cuda":
            raise UserError(
                "train.compile=graphs needs a GPU, and there is none here; use train.compile=auto"
            )
        modes = {"always": "compiled", "never": "eager", "graphs": "graphs"}
        return Compilation(modes[train.compile], f"train.compile={train.compile}")
    if device.type != "cuda":
        return Compilation("eager", "compiling does not pay on a CPU (docs/performance.md)")
    if train.deterministic:
        return Compilation(
            "eager", "compiled code may round differently from one start to the next"
        )
    trial_pass = TrialPass(
        ramp((micro_batch_size, *latent_shape), device=device),
        ramp((micro_batch_size, *image_shape), device=device),
        autocast,
        uses_features,
        (torch.arange(micro_batch_size, device=device) % num_labels,) if num_labels else (),
    )
    candidates = CANDIDATES if num_processes == 1 else CANDIDATES[:1]
    return try_modes(networks, trial_pass, num_passes=num_passes, modes=candidates)


def ramp(shape: tuple[int, ...], *, device: torch.device) -> Tensor:
    """Return distinct numbers from -1 to 1: a batch that needs no random state."""
    return torch.linspace(-1, 1, math.prod(shape), device=device).view(shape)


def try_modes(
    networks: Networks,
    trial_pass: TrialPass,
    *,
    num_passes: float = math.inf,
    modes: tuple[Compilation, ...] = CANDIDATES,
) -> Compilation:
    """Return the fastest of eager and the given modes, each tried on copies of the networks.

    A mode that raises an error or computes other gradients is not used. Nothing is tried if the run
    is so short that the trial costs more than it could save.
    """
    copies = copy.deepcopy(networks)
    trial_pass.seconds(copies, EAGER)  # includes the choice of convolution algorithms
    run_sec = num_passes * trial_pass.seconds(copies, EAGER)
    if run_sec * MAX_SAVING < len(modes) * COMPILE_SEC:
        return Compilation("eager", f"the run is too short to compile, about {run_sec:.0f} s")
    best, best_speedup, findings = "eager", 1.0, []
    for candidate in modes:
        try:
            speedup = measure_speedup(candidate, networks, trial_pass)
        except Exception as error:  # the run can do without a compiler, whatever its problem is
            findings.append(f"{candidate.mode} fails here: {first_line(error)[:100]}")
            continue
        finally:
            free_trial_memory(trial_pass.latents.device)
        findings.append(f"{candidate.mode} is {speedup:.2f} times as fast as eager")
        if speedup >= best_speedup * MIN_SPEEDUP:
            best, best_speedup = candidate.mode, speedup
    return Compilation(best, ", ".join(findings))


def free_trial_memory(device: torch.device) -> None:
    """Discard a trial's compiled code, free its memory and reset the memory peak."""
    torch.compiler.reset()  # the number of compiled variants is limited, and the run needs its own
    gc.collect()  # compiled modules are part of reference cycles
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def measure_speedup(candidate: Compilation, networks: Networks, trial_pass: TrialPass) -> float:
    """Return a mode's speed relative to eager; raises RuntimeError if its gradients are wrong."""
    eager, compiled = copy.deepcopy(networks), copy.deepcopy(networks)
    for network in compiled:
        candidate.compile(network)
    trial_pass.seconds(eager, EAGER)
    trial_pass.seconds(compiled, candidate)  # compiles and records
    speedup = statistics.median(
        trial_pass.seconds(eager, EAGER) / trial_pass.seconds(compiled, candidate)
        for _ in range(ROUNDS)
    )
    other_pass = trial_pass.on_another_batch()
    other_pass(*eager)
    candidate.begin_step()
    other_pass(*compiled)
    for expected, found in zip(eager, compiled, strict=True):
        difference = gradient_difference(expected, found)
        if not difference <= MAX_GRADIENT_DIFFERENCE:  # true for NaN as well
            raise RuntimeError(f"its gradients differ from the eager ones by {difference:.0%}")
    return speedup


def gradient_difference(expected: nn.Module, found: nn.Module) -> float:
    """Return the norm of the difference of two networks' gradients, relative to the first's."""

    def gradients(network: nn.Module) -> list[Tensor]:
        return [torch.zeros_like(p) if p.grad is None else p.grad for p in network.parameters()]

    wanted, got = gradients(expected), gradients(found)
    total_norm = torch.nn.utils.get_total_norm
    return float(total_norm([b - a for a, b in zip(wanted, got, strict=True)]) / total_norm(wanted))
