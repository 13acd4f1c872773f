"""`distgan bench --estimate`: what a training step would cost on GPUs, computed without one.

real training steps on a fake device -> launches, FLOPs, bytes, memory -> a roofline for each GPU

Nothing is measured: the figures say what bounds a step, and by how much at least.
"""

import multiprocessing
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from distgan.commands.bench import check_shape
from distgan.commands.fake_device import DeviceWork, FakeBatches, Kernel, fake_gan, install
from distgan.config.schema import Config
from distgan.reporting.console import say, show_columns
from distgan.reporting.metrics import RunningMeans
from distgan.run.folder import write_json
from distgan.run.preflight import settings_for
from distgan.steps import train_step
from distgan.text import format_number

LAUNCH_US = 6.0
"""Assumed time in which the host launches one operation of eager PyTorch.

The driver alone takes 4 to 6 us (https://susun-blog.com/blog/pegainfer-3-cuda-graph, on an RTX 5070
Ti); most of the rest, Python and PyTorch's dispatch, overlaps with it.
"""

WARM_UP_STEPS = 2  # create the optimizers' state


@dataclass(frozen=True)
class Gpu:
    """The peak rates of a GPU's data sheet, without sparsity."""

    name: str
    low_tflops: float  # bf16, or fp16 on a T4, with float32 sums
    float32_tflops: float
    gb_per_sec: float
    memory_gb: int
    source: str

    def roofline_ms(self, kernels: Iterable[Kernel]) -> float:
        """Return the least time of the kernels: each is bound by arithmetic or by memory."""
        return sum(
            max(
                kernel.flops
                / (self.float32_tflops if kernel.is_float32 else self.low_tflops)
                / 1e9,
                kernel.num_bytes / self.gb_per_sec / 1e6,
            )
            for kernel in kernels
        )


GPUS = (
    Gpu("H100 SXM", 989.4, 66.9, 3350, 80, "nvidia.com/en-us/data-center/h100"),
    Gpu("A100 SXM", 312.0, 19.5, 2039, 80, "nvidia.com/en-us/data-center/a100"),
    Gpu("RTX 4090", 165.2, 82.6, 1008, 24, "NVIDIA Ada GPU architecture, appendix A"),
    Gpu("T4", 65.0, 8.1, 320, 16, "nvidia.com/en-us/data-center/tesla-t4"),
)


@dataclass(frozen=True)
class StepCost:
    """Cost of a training step, or the mean over several."""

    launches: float
    flops: float
    num_bytes: float  # read and written by kernels
    peak_bytes: float  # of the device's memory, without what the allocator and libraries add
    roofline_ms: dict[str, float]  # by GPU
    reduced_bytes: tuple[
        int, int
    ]  # gradients of generator and discriminator; one step reduces each
    batch_size: int  # images of a step

    def launch_ms(self) -> float:
        """Return the time that the host needs to launch the step."""
        return self.launches * LAUNCH_US / 1e3

    def fits(self, gpu: Gpu) -> bool:
        """Return whether a step fits in a GPU's memory, as far as is counted."""
        return self.peak_bytes <= gpu.memory_gb * 1e9

    def step_ms(self, gpu: str) -> float:
        """Return the least time of a step: launching or executing its kernels takes longer."""
        return max(self.launch_ms(), self.roofline_ms[gpu])


@dataclass(frozen=True)
class Estimate:
    """The mean step, and the least and the most expensive one, which has the penalties."""

    average: StepCost
    least: StepCost
    most: StepCost

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, which say what they are."""
        return {
            "kind": "estimate, not measured",
            "launch_us": LAUNCH_US,
            "gpus": [asdict(gpu) for gpu in GPUS],
            "step": asdict(self),
            "images_per_sec": {
                gpu.name: rate(self.average, self.average.step_ms(gpu.name))
                for gpu in GPUS
                if self.average.fits(gpu)
            },
        }


def estimate(config: Config, *, size: int, channels: int) -> Estimate:
    """Estimate the steps of one GPU that trains with a run's settings on images of `size` pixels.

    Takes a process of its own, because the fake device cannot be removed again. Raises UserError
    for an unusual shape.
    """
    check_shape(size, channels)
    config = settings_for(config, num_processes=1)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(estimate_here, (config, (channels, size, size)))


def estimate_here(config: Config, image_shape: tuple[int, int, int]) -> Estimate:
    """Take training steps on the fake device, which stays installed in this process."""
    registrations = install()
    costs = step_costs(config, image_shape)
    del registrations
    by_launches = sorted(costs, key=lambda cost: cost.launches)
    return Estimate(average(costs), by_launches[0], by_launches[-1])


def step_costs(config: Config, image_shape: tuple[int, int, int]) -> list[StepCost]:
    """Return the costs of as many steps as it takes until their work repeats."""
    work, period, costs = DeviceWork(), config.loss.penalty_period, []
    num_images = config.train.batch_size * config.train.d_steps
    with FakeTensorMode(allow_non_fake_inputs=True), work:
        gan, batches = fake_gan(config, image_shape, "bf16"), FakeBatches(config, image_shape)
        means = RunningMeans()
        sizes = num_bytes(gan.raw_generator), num_bytes(gan.raw_discriminator)
        first = WARM_UP_STEPS * period  # a step with penalties, if there are any
        for number in range(first - WARM_UP_STEPS, first + period):
            work.clear()
            result = train_step(
                gan,
                lambda position: batches.next(position, rollbacks=0),
                config,
                images_seen=number * num_images,
                progress=0.0,
            )
            for statistics in result.statistics:
                means.add(statistics)
            if number >= first:
                costs.append(cost_of(work, reduced_bytes=sizes, batch_size=num_images))
    return costs


def cost_of(work: DeviceWork, *, reduced_bytes: tuple[int, int], batch_size: int) -> StepCost:
    """Return the cost of the recorded work."""
    return StepCost(
        launches=len(work.kernels),
        flops=sum(kernel.flops for kernel in work.kernels),
        num_bytes=sum(kernel.num_bytes for kernel in work.kernels),
        peak_bytes=work.peak_bytes,
        roofline_ms={gpu.name: gpu.roofline_ms(work.kernels) for gpu in GPUS},
        reduced_bytes=reduced_bytes,
        batch_size=batch_size,
    )


def average(costs: list[StepCost]) -> StepCost:
    """Return the mean of several steps; the peak of memory is the highest."""
    return StepCost(
        launches=mean(cost.launches for cost in costs),
        flops=mean(cost.flops for cost in costs),
        num_bytes=mean(cost.num_bytes for cost in costs),
        peak_bytes=max(cost.peak_bytes for cost in costs),
        roofline_ms={gpu.name: mean(cost.roofline_ms[gpu.name] for cost in costs) for gpu in GPUS},
        reduced_bytes=costs[0].reduced_bytes,
        batch_size=costs[0].batch_size,
    )


def num_bytes(network: nn.Module) -> int:
    """Return the bytes of a network's gradients."""
    return sum(p.numel() * p.element_size() for p in network.parameters() if p.requires_grad)


def rate(cost: StepCost, milliseconds: float) -> float:
    """Return images per second."""
    return cost.batch_size / milliseconds * 1e3


# ----------------------------------------------------------------------------------------- output

STEP_HEAD = ["step", "launches", "GFLOP", "MB moved", "MB at most", "MB all-reduced (G + D)"]
GPU_HEAD = ["GPU", "roofline", "launching", "bound by", "images/s, eager"]


def show_estimate(config: Config, *, size: int, channels: int, json: Path | None) -> None:
    """Estimate as `estimate` does, print both tables, and write the figures to a JSON file."""
    found = estimate(config, size=size, channels=channels)
    show_columns(STEP_HEAD, step_rows(found))
    show_columns(GPU_HEAD, gpu_rows(found))
    say("\n".join(notes(found)))
    if json is not None:
        write_json(json, found.to_dict())
        say(f"wrote {json}")


def step_rows(found: Estimate) -> list[list[str]]:
    """Return the table of what steps consist of: the mean, and one with penalties if that differs.

    Columns as STEP_HEAD.
    """
    costs = {"mean of all steps": found.average}
    if found.most.launches > found.least.launches:
        costs |= {"without penalties": found.least, "with penalties": found.most}
    generator, discriminator = found.average.reduced_bytes
    return [
        [
            name,
            format_number(round(cost.launches)),
            format_number(cost.flops / 1e9),
            format_number(cost.num_bytes / 1e6),
            format_number(cost.peak_bytes / 1e6),
            f"{generator / 1e6:.2f} + {discriminator / 1e6:.2f}",
        ]
        for name, cost in costs.items()
    ]


def gpu_rows(found: Estimate) -> list[list[str]]:
    """Return the table of the mean step's least time on each GPU; columns as GPU_HEAD."""
    cost = found.average
    return [
        [
            gpu.name,
            f"{cost.roofline_ms[gpu.name]:.2f} ms",
            f"{cost.launch_ms():.2f} ms",
            "launches" if cost.launch_ms() > cost.roofline_ms[gpu.name] else "the GPU",
            format_number(rate(cost, cost.step_ms(gpu.name)))
            if cost.fits(gpu)
            else f"does not fit in {gpu.memory_gb} GB",
        ]
        for gpu in GPUS
    ]


def notes(found: Estimate) -> list[str]:
    """Return what the tables assume, one sentence a line."""
    return [
        "Estimates, not measurements: no GPU took part.",
        f"One GPU, {found.average.batch_size} images a step, bf16 (fp16 on a T4), eager.",
        "Roofline: every kernel reaches the data sheet's peak of arithmetic or of memory.",
        f"Launching: {LAUNCH_US:g} us per operation, assumed.",
    ]
