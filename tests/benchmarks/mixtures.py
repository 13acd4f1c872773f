"""Two-dimensional mixtures with known modes: a ring of 8 and a grid of 25 Gaussians, trained with the real steps.

    python -m tests.benchmarks.mixtures [--seeds 3] [--steps 600] [--mixture ring] [--remedy bce]

A sample counts for a mode where it lies within three standard deviations; 2,500 samples (Srivastava et al. 2017).
"""

import argparse
import math
import statistics
import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from distgan.config.load import load_config
from distgan.config.schema import Config, Networks
from distgan.data import MicroBatch
from distgan.gan import GAN, prepare_gan
from distgan.networks.base import Discriminator, GeneratorSpec, MinibatchStddev
from distgan.runtime.accelerator import build_accelerator
from distgan.steps import discriminator_step, generator_step

NUM_SAMPLES, LATENT_DIM, D_STEPS, BATCH = 2500, 32, 5, 256
NO_NORM = "networks.discriminator_norm=none"
PLAIN = (  # in which plain GANs collapse on the ring
    "optim.lr_g=3e-4", "optim.lr_d=3e-4", "optim.betas=[0.9,0.999]", "train.precision=launcher", "train.cpu_threads=1",
)  # fmt: skip
PUBLISHED = {  # modes, high-quality samples, reverse KL: Lin et al. 2018 (PacGAN), table 1
    "ring": "GAN 6.3 of 8, 98.2 %, 0.45; ALI 6.6; PacGAN2 7.9; PacGAN4 7.8, 0.07",
    "grid": "GAN 17.3 of 25, 94.8 %, 0.70; ALI 24.1; PacGAN2 23.8; PacGAN4 24.8, 0.04",
}


def centres(name: str) -> tuple[Tensor, float]:
    """Modes [M, 2] of a mixture, and the standard deviation around each."""
    if name == "ring":
        angles = torch.arange(8) * (2 * math.pi / 8)
        return torch.stack([angles.cos(), angles.sin()], 1) * (2 / 3), 1 / 30
    places = torch.linspace(-1, 1, 5)
    return torch.cartesian_prod(places, places), 1 / 40


def mlp(inputs: int, outputs: int, width: int = 128) -> nn.Sequential:
    """Three hidden layers with leaky ReLU."""
    layers: list[nn.Module] = []
    for before, after in ((inputs, width), (width, width), (width, width)):
        layers += [nn.Linear(before, after), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Linear(width, outputs))


REMEDIES: dict[str, tuple[str, ...]] = {  # settings that differ from a plain GAN's
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


class Judge(Discriminator):
    """points [B, 2] -> logits [B / packing]."""

    def __init__(self, networks: Networks) -> None:
        super().__init__()
        self.packing = networks.packing
        body = [*mlp(2 * networks.packing, 1)]
        if networks.minibatch_stddev:
            body.insert(5, MinibatchStddev(128, networks.minibatch_stddev))
        self.layers, self.head = nn.Sequential(*body[:-1]), nn.Linear(128, 1)


def build(config: Config) -> GAN:
    """Two small networks that know the settings of a remedy."""
    torch.manual_seed(config.train.seed)
    accelerator, _ = build_accelerator(config.train)
    return prepare_gan(
        accelerator,
        GeneratorSpec(
            architecture="mlp", image_size=0, channels=2, width=128, latent_dim=LATENT_DIM
        ),
        generator=mlp(LATENT_DIM, 2),
        discriminator=Judge(config.networks),
        optim=config.optim,
        train=config.train,
        loss=config.loss,
    )


def run(
    name: str, words: Sequence[str], *, seed: int, num_steps: int
) -> tuple[int, float, float, float]:
    """(modes captured, share of high-quality samples, reverse KL, processor seconds a step) after so many generator steps."""
    config = load_config(None, [*PLAIN, *words, f"train.seed={seed}"])
    gan = build(config)
    modes, deviation = centres(name)
    draw = torch.Generator().manual_seed(seed)
    began = time.process_time()
    for step in range(1, num_steps + 1):
        for d_step in range(D_STEPS):
            chosen = torch.randint(len(modes), (BATCH,), generator=draw)
            reals = modes[chosen] + deviation * torch.randn(BATCH, 2, generator=draw)
            latents = torch.randn(BATCH, LATENT_DIM, generator=draw)
            first = (step * D_STEPS + d_step) * BATCH
            batches = [MicroBatch(reals, latents, torch.arange(first, first + BATCH), seed)]
            keep = d_step == D_STEPS - 1
            fakes, _ = discriminator_step(
                gan, batches, loss=config.loss, penalty_scale=1, keep_graph=keep
            )
        generator_step(gan, batches, loss=config.loss, fakes=fakes)
        gan.settle(config.optim, num_images=BATCH * D_STEPS, images_seen=step * BATCH * D_STEPS)
    seconds = (time.process_time() - began) / num_steps
    with torch.no_grad():
        points = gan.raw_generator(torch.randn(NUM_SAMPLES, LATENT_DIM, generator=draw))
    distances, nearest = torch.cdist(points, modes).min(1)
    good = distances < 3 * deviation
    shares = torch.bincount(nearest, minlength=len(modes)).double() / NUM_SAMPLES
    reverse_kl = float(torch.special.xlogy(shares, shares * len(modes)).sum())
    return len(nearest[good].unique()), float(good.float().mean()), reverse_kl, seconds


def main() -> None:
    """Print a row a remedy."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--mixture", action="append", choices=list(PUBLISHED))
    parser.add_argument(
        "--remedy",
        action="append",
        choices=list(REMEDIES),
        metavar="NAME",
        help="; ".join(REMEDIES),
    )
    arguments = parser.parse_args()
    for name in arguments.mixture or PUBLISHED:
        print(
            f"\n{name}: {len(centres(name)[0])} modes, {arguments.steps} generator steps, {NUM_SAMPLES:,} samples\n"
        )
        print(
            "| objective | modes | high quality | reverse KL | time a step |\n| --- | --- | --- | --- | --- |"
        )
        baseline = None
        for remedy in arguments.remedy or REMEDIES:
            found = [
                run(name, REMEDIES[remedy], seed=seed, num_steps=arguments.steps)
                for seed in range(arguments.seeds)
            ]
            modes, good, kl, seconds = (list(column) for column in zip(*found, strict=True))
            baseline = baseline or statistics.median(seconds)
            print(
                f"| {remedy} | {', '.join(map(str, modes))} | {statistics.mean(good):.0%} "
                f"| {', '.join(f'{value:.2f}' for value in kl)} | {statistics.median(seconds) / baseline:.1f} |",
                flush=True,
            )
        print(f"\npublished, other networks and lengths: {PUBLISHED[name]}")


if __name__ == "__main__":
    main()
