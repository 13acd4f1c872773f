"""Two-dimensional mixtures with known modes, trained with the product's training step.

    python -m tests.benchmarks.mixtures [--seeds 3] [--steps 600] [--mixture ring] [--remedy bce]

A ring of 8 and a grid of 25 Gaussians. A sample belongs to a mode if it is within three standard
deviations of its centre; 2,500 samples are counted (Srivastava et al. 2017).
"""

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from distgan.config.load import load_config
from distgan.config.schema import Config, Networks
from distgan.data import MicroBatch
from distgan.gan import GAN, prepare_gan
from distgan.networks.base import Discriminator, GeneratorSpec, MinibatchStddev
from distgan.runtime.accelerator import build_accelerator
from distgan.steps import train_step
from tests.benchmarks.common import command_line

NUM_SAMPLES, LATENT_DIM, BATCH, HIDDEN = 2500, 32, 256, 128
NO_NORM = "networks.discriminator_norm=none"
# Settings with which a plain GAN loses modes of the ring.
PLAIN = (
    "optim.lr_g=3e-4", "optim.lr_d=3e-4", "optim.betas=[0.9,0.999]", "train.d_steps=5",
    f"train.batch_size={BATCH}", "train.precision=launcher", "train.cpu_threads=1",
)  # fmt: skip
# Modes, high-quality samples, reverse KL: Lin et al. 2018 (PacGAN), table 1.
PUBLISHED = {
    "ring": "GAN 6.3 of 8, 98.2 %, 0.45; ALI 6.6; PacGAN2 7.9; PacGAN4 7.8, 0.07",
    "grid": "GAN 17.3 of 25, 94.8 %, 0.70; ALI 24.1; PacGAN2 23.8; PacGAN4 24.8, 0.04",
}
# The settings that differ from those of a plain GAN.
REMEDIES: dict[str, tuple[str, ...]] = {
    "bce": (),
    "hinge": ("loss.adversarial=hinge",),
    "relativistic": ("loss.adversarial=relativistic",),
    "relativistic, R1 + R2": ("loss.adversarial=relativistic", "loss.r1=1", "loss.r2=1", NO_NORM),
    "R1 + R2": ("loss.r1=1", "loss.r2=1", NO_NORM),
    "wasserstein, gradient penalty": (
        "loss.adversarial=wasserstein",
        "loss.gradient_penalty=1",
        NO_NORM,
    ),
    "unrolled, 5 steps": ("loss.unroll_steps=5",),
    "unrolled, 5 steps, non-saturating": (
        "loss.unroll_steps=5",
        "loss.unroll_value=non_saturating",
    ),
    "lookahead": ("optim.lookahead_steps=5",),
    "minibatch stddev": ("networks.minibatch_stddev=4",),
    "packing": ("networks.packing=2",),
    "mode seeking": ("loss.diversity.mode_seeking=1",),
    "feature distance": ("loss.diversity.feature_distance=1",),
}


@dataclass(frozen=True)
class Score:
    """What a trained generator of points reached, and how long its steps took."""

    num_modes: int
    high_quality: float  # fraction of the samples near a centre
    reverse_kl: float  # of the use of modes from a uniform one, nats
    step_sec: float  # processor time


def centres(mixture: str) -> tuple[Tensor, float]:
    """Return the modes [M, 2] of a mixture and the standard deviation around each."""
    if mixture == "ring":
        angles = torch.arange(8) * (2 * math.pi / 8)
        return torch.stack([angles.cos(), angles.sin()], 1) * (2 / 3), 1 / 30
    places = torch.linspace(-1, 1, 5)
    return torch.cartesian_prod(places, places), 1 / 40


def mlp(inputs: int, outputs: int) -> nn.Sequential:
    """Build three hidden layers with leaky ReLU and a linear output."""
    layers: list[nn.Module] = []
    for before in (inputs, HIDDEN, HIDDEN):
        layers += [nn.Linear(before, HIDDEN), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Linear(HIDDEN, outputs))


class PointDiscriminator(Discriminator):
    """points [B, 2] -> logits [B / packing]."""

    def __init__(self, networks: Networks) -> None:
        super().__init__()
        self.packing = networks.packing
        layers = [*mlp(2 * networks.packing, 1)][:-1]
        if networks.minibatch_stddev:
            layers.insert(5, MinibatchStddev(HIDDEN, networks.minibatch_stddev))
        self.layers, self.head = nn.Sequential(*layers), nn.Linear(HIDDEN, 1)


def build(config: Config) -> GAN:
    """Build two small networks with the settings of a remedy."""
    torch.manual_seed(config.train.seed)
    accelerator, _ = build_accelerator(config.train)
    return prepare_gan(
        accelerator,
        GeneratorSpec(
            architecture="mlp", image_size=0, channels=2, width=HIDDEN, latent_dim=LATENT_DIM
        ),
        generator=mlp(LATENT_DIM, 2),
        discriminator=PointDiscriminator(config.networks),
        optim=config.optim,
        train=config.train,
        loss=config.loss,
    )


def run(mixture: str, overrides: Sequence[str], *, seed: int, num_steps: int) -> Score:
    """Train for so many generator steps and score the generator."""
    config = load_config(None, [*PLAIN, *overrides, f"train.seed={seed}"])
    gan = build(config)
    modes, deviation = centres(mixture)
    draw = torch.Generator().manual_seed(seed)

    def next_batch(position: int) -> list[MicroBatch]:
        chosen = torch.randint(len(modes), (BATCH,), generator=draw)
        reals = modes[chosen] + deviation * torch.randn(BATCH, 2, generator=draw)
        latents = torch.randn(BATCH, LATENT_DIM, generator=draw)
        return [MicroBatch(reals, latents, torch.arange(position, position + BATCH), seed)]

    began = time.process_time()
    images_per_step = BATCH * config.train.d_steps
    for step in range(num_steps):
        train_step(gan, next_batch, config, images_seen=step * images_per_step, progress=0.0)
    step_sec = (time.process_time() - began) / num_steps
    with torch.no_grad():
        points = gan.raw_generator(torch.randn(NUM_SAMPLES, LATENT_DIM, generator=draw))
    distances, nearest = torch.cdist(points, modes).min(1)
    good = distances < 3 * deviation
    use = torch.bincount(nearest, minlength=len(modes)).double() / NUM_SAMPLES
    return Score(
        num_modes=len(nearest[good].unique()),
        high_quality=float(good.float().mean()),
        reverse_kl=float(torch.special.xlogy(use, use * len(modes)).sum()),
        step_sec=step_sec,
    )


def row(remedy: str, scores: list[Score], *, step_sec: float) -> str:
    """Return a row of the table; `step_sec` is the time of a step of the first row."""
    modes = ", ".join(str(score.num_modes) for score in scores)
    good = statistics.mean(score.high_quality for score in scores)
    divergence = ", ".join(f"{score.reverse_kl:.2f}" for score in scores)
    return (
        f"| {remedy} | {modes} | {good:.0%} | {divergence} | {median_sec(scores) / step_sec:.1f} |"
    )


def median_sec(scores: list[Score]) -> float:
    """Return the median time of a step."""
    return statistics.median(score.step_sec for score in scores)


def main() -> None:
    """Train every remedy with every seed and print one row per remedy."""
    parser = command_line(__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=600, help="generator steps")
    parser.add_argument("--mixture", action="append", choices=list(PUBLISHED))
    remedies = "; ".join(REMEDIES)
    parser.add_argument(
        "--remedy", action="append", choices=list(REMEDIES), metavar="NAME", help=remedies
    )
    options = parser.parse_args()
    for mixture in options.mixture or PUBLISHED:
        num_modes = len(centres(mixture)[0])
        print(f"\n{mixture}: {num_modes} modes, {options.steps} generator steps\n")
        print("| objective | modes | high quality | reverse KL | time a step |")
        print("| --- | --- | --- | --- | --- |")
        step_sec = None
        for remedy in options.remedy or REMEDIES:
            scores = [
                run(mixture, REMEDIES[remedy], seed=seed, num_steps=options.steps)
                for seed in range(options.seeds)
            ]
            step_sec = step_sec or median_sec(scores)
            print(row(remedy, scores, step_sec=step_sec), flush=True)
        print(f"\npublished, other networks and lengths: {PUBLISHED[mixture]}")


if __name__ == "__main__":
    main()
