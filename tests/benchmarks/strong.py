"""The rate of training of `cifar10-strong` beside that of `cifar10`, by turns, on one batch each.

    python -m tests.benchmarks.strong [--threads 1] [--repeats 5]

Also prints the FLOPs that each needs per image, and which part of the rate of a large matrix
product it reaches. FLOPs alone bound the ratio of the rates.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from distgan.commands.bench_training import (
    flops_per_image,
    make_gan,
    matrix_tflops,
    noise_batch,
    take_step,
)
from distgan.config.load import load_config
from tests.benchmarks.common import Rates, command_line, machine, measure_by_turns

SHAPE = (3, 32, 32)
IMAGES = {"cifar10": 1024, "cifar10-strong": 512}  # of one measurement


@dataclass(frozen=True)
class Training:
    """A preset's training on one batch of noise."""

    gflop_per_image: float
    train: Callable[[], int]  # returns the number of images


def prepare(preset: str, num_images: int, *, threads: int) -> Training:
    """Build the networks of a preset, which trains on `num_images` in each call."""
    config = load_config(preset, [f"train.cpu_threads={threads}", "train.compile=never"])
    gan = make_gan(config, SHAPE)
    batch_size, device = config.train.batch_size, gan.accelerator.device
    batch = noise_batch(config, SHAPE, size=batch_size, device=device)

    def train() -> int:
        for number in range(num_images // batch_size):
            take_step(gan, lambda _: [batch], config, number=number)
        return num_images

    return Training(flops_per_image(gan, config, SHAPE) / 1e9, train)


def report(trainings: dict[str, Training], rates: dict[str, Rates], tflops: float) -> list[str]:
    """Return the table of all presets, and the ratio of the second to the first."""
    lines = [
        "| preset | images/s | per CPU second | GFLOP per image | of the matrix product |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, training in trainings.items():
        by_clock, by_cpu = map(statistics.median, (rates[name].by_clock, rates[name].by_cpu))
        reached = by_clock * training.gflop_per_image / 1e3 / tflops
        lines.append(
            f"| `{name}` | {by_clock:,.0f} | {by_cpu:,.0f} | {training.gflop_per_image:.3f} "
            f"| {reached:.0%} |"
        )
    classic, strong = rates.values()
    by_turn = [
        statistics.median(s / c for s, c in zip(*pairs, strict=True))
        for pairs in ((strong.by_clock, classic.by_clock), (strong.by_cpu, classic.by_cpu))
    ]
    bound = [training.gflop_per_image for training in trainings.values()]
    lines += [
        "",
        f"Ratio, median of {len(strong.by_clock)}: {by_turn[0]:.2f} by the clock, "
        f"{by_turn[1]:.2f} by CPU time; {bound[0] / bound[1]:.2f} if arithmetic were equally fast.",
    ]
    return lines


def main() -> None:
    """Measure and print."""
    parser = command_line(__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    print(machine(), flush=True)
    trainings = {
        name: prepare(name, number, threads=options.threads) for name, number in IMAGES.items()
    }
    works = {name: partial(training.train) for name, training in trainings.items()}
    rates = measure_by_turns(works, repeats=options.repeats)
    torch.set_num_threads(options.threads)
    print("\n".join(report(trainings, rates, matrix_tflops(torch.device("cpu"), torch.bfloat16))))


if __name__ == "__main__":
    main()
