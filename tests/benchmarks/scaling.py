"""A model of training on many GPUs: what reducing gradients costs. It is not a measurement.

python -m tests.benchmarks.scaling
"""

import math
import textwrap
from dataclasses import dataclass

from distgan.commands.estimate import LAUNCH_US, StepCost, estimate
from distgan.config.load import load_config

WORLDS = (1, 8, 64, 1024)
GPU = "H100 SXM"
PRESETS = {"cifar10": 32, "cifar10-strong": 32, "anime-faces": 64}  # size of the images
LAUNCHES_PER_REDUCTION = 2  # DDP divides the gradients by the size of the world, and reduces them
STOP_MS = 0.0006  # per step, of agreeing on where to stop; measured at 2 to 16 ranks, the same


@dataclass(frozen=True)
class Network:
    """The links between GPUs, at the fraction of their speed that a reduction reaches."""

    gpus_per_node: int = 8
    nvlink_gb_per_sec: float = 450 * 0.8  # one direction of one GPU
    fabric_gb_per_sec: float = 50 * 0.8  # 400 Gb/s for each GPU
    nvlink_latency_us: float = 3.0  # of one hop
    fabric_latency_us: float = 10.0


def reduction_ms(num_bytes: float, gpus: int, network: Network = Network()) -> float:
    """Return the time of one all-reduce: a ring inside each node, then rings between the nodes.

    A ring of n GPUs sends 2 (n - 1) / n of the bytes over each link in 2 (n - 1) hops. Between
    nodes, where hops are expensive, a tree needs 2 log2(n) of them.
    """
    inside = min(gpus, network.gpus_per_node)
    nodes = math.ceil(gpus / network.gpus_per_node)
    seconds = 2 * (inside - 1) / inside * num_bytes / (network.nvlink_gb_per_sec * 1e9)
    seconds += 2 * (inside - 1) * network.nvlink_latency_us * 1e-6
    if nodes > 1:
        seconds += 2 * (nodes - 1) / nodes * num_bytes / inside / (network.fabric_gb_per_sec * 1e9)
        seconds += 2 * math.log2(nodes) * network.fabric_latency_us * 1e-6
    return seconds * 1e3


@dataclass(frozen=True)
class ScaledStep:
    """The times of a step in a world of `gpus`, each with the preset's batch."""

    gpus: int
    reductions_ms: float
    step_ms: float
    images_per_sec: float
    efficiency: float  # of this step compared with one GPU alone


def scale(cost: StepCost, gpus: int) -> ScaledStep:
    """Model a step on several GPUs; no reduction overlaps with arithmetic."""
    alone = cost.step_ms(GPU)
    waiting = launching = stopping = 0.0
    if gpus > 1:
        waiting = sum(reduction_ms(size, gpus) for size in cost.reduced_bytes)
        launching = len(cost.reduced_bytes) * LAUNCHES_PER_REDUCTION * LAUNCH_US / 1e3
        stopping = STOP_MS
    step = max(cost.launch_ms() + launching, cost.roofline_ms[GPU]) + waiting + stopping
    rate = gpus * cost.batch_size / step * 1e3
    return ScaledStep(gpus, waiting, step, rate, alone / step)


def table(costs: dict[str, StepCost]) -> list[str]:
    """Return the Markdown table of all presets and worlds."""
    lines = [
        "| preset, images per GPU | GPUs | reductions | step | images/s | efficiency |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, cost in costs.items():
        for gpus in WORLDS:
            scaled = scale(cost, gpus)
            lines.append(
                f"| `{name}`, {cost.batch_size} | {gpus:,} | {scaled.reductions_ms:.2f} ms "
                f"| {scaled.step_ms:.2f} ms | {scaled.images_per_sec:,.0f} "
                f"| {scaled.efficiency:.0%} |"
            )
    return lines


def describe() -> list[str]:
    """Return the model of several presets in Markdown, with its assumptions."""
    costs = {
        preset: estimate(load_config(preset, []), size=size, channels=3).average
        for preset, size in PRESETS.items()
    }
    sizes = ", ".join(
        f"{cost.reduced_bytes[0] / 1e6:.1f} + {cost.reduced_bytes[1] / 1e6:.1f} MB ({name})"
        for name, cost in costs.items()
    )
    network = Network()
    assumptions = (
        f"Estimated, not measured: steps as `distgan bench --estimate` estimates them for the "
        f"{GPU}, eager, {LAUNCH_US:g} us per launch; one all-reduce of each network's gradients, "
        f"{sizes}, none of it overlapping with arithmetic; {network.nvlink_gb_per_sec:.0f} GB/s "
        f"and {network.nvlink_latency_us:g} us per hop between the {network.gpus_per_node} GPUs of "
        f"a node, {network.fabric_gb_per_sec:.0f} GB/s per GPU and "
        f"{network.fabric_latency_us:g} us between nodes. Agreeing on where to stop costs "
        f"{STOP_MS:g} ms per step (measured)."
    )
    return [textwrap.fill(assumptions, 120), "", *table(costs)]


if __name__ == "__main__":
    print("\n".join(describe()))
