"""A model of training on many GPUs: what the reductions of gradients cost. It is not a measurement.

python -m tests.benchmarks.scaling
"""

import math
import textwrap
from dataclasses import dataclass

from distgan.commands.bench_training import make_gan
from distgan.config.schema import Config

IMAGES_PER_SEC = 100_000  # assumed, of one GPU
WORLDS = (1, 2, 4, 8, 16, 64, 256, 1024)


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


def table(step_ms: float, reduced_bytes: list[float], batch_size: int) -> list[str]:
    """Return a table of step time and efficiency; no reduction overlaps with arithmetic."""
    lines = [
        "| GPUs | reductions | step | images/s | efficiency |",
        "| ---: | ---: | ---: | ---: | ---: |",
    ]
    for gpus in WORLDS:
        waiting = sum(reduction_ms(size, gpus) for size in reduced_bytes) if gpus > 1 else 0.0
        total = step_ms + waiting
        lines.append(
            f"| {gpus:,} | {waiting:.3f} ms | {total:.2f} ms "
            f"| {gpus * batch_size / total * 1e3:,.0f} | {step_ms / total:.0%} |"
        )
    return lines


def describe(batch_size: int) -> list[str]:
    """Return the model of the default networks at 64 px, in Markdown, with its assumptions."""
    gan = make_gan(Config(), (3, 64, 64))
    sizes = [
        4.0 * sum(parameter.numel() for parameter in network.parameters())
        for network in (gan.raw_generator, gan.raw_discriminator)
    ]
    network = Network()
    assumptions = (
        f"Assumed, not measured: one GPU at {IMAGES_PER_SEC:,} images/s with {batch_size} images "
        f"per GPU; {sizes[0] / 1e6:.1f} MB and {sizes[1] / 1e6:.1f} MB of fp32 gradients, one "
        f"reduction each, none of it overlapping with arithmetic; {network.nvlink_gb_per_sec:.0f} "
        f"GB/s and {network.nvlink_latency_us:g} us per hop between the {network.gpus_per_node} "
        f"GPUs of a node, {network.fabric_gb_per_sec:.0f} GB/s per GPU and "
        f"{network.fabric_latency_us:g} us between nodes."
    )
    return [
        textwrap.fill(assumptions, 120),
        "",
        *table(batch_size / IMAGES_PER_SEC * 1e3, sizes, batch_size),
    ]


if __name__ == "__main__":
    print("\n".join(describe(batch_size=128)))
