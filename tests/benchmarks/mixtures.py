"""Two-dimensional mixtures with known modes: a ring of 8 and a grid of 25 Gaussians, trained with the real steps.

    python -m tests.benchmarks.mixtures [--seeds 3] [--steps 600]

A sample counts for a mode where it lies within three standard deviations; 2,500 samples (Srivastava et al. 2017).
"""

import argparse
import math
import statistics

import torch
from torch import Tensor, nn

from distgan.config import Train
from distgan.ema import GeneratorEma
from distgan.networks import GeneratorSpec
from distgan.objectives.adversarial import ADVERSARIAL
from distgan.players import Players
from distgan.runtime import build_accelerator
from distgan.steps import discriminator_step, generator_step

NUM_SAMPLES, LATENT_DIM, D_STEPS, BATCH = 2500, 32, 5, 256
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


class Judge(nn.Module):
    """points [B, 2] -> logits [B]."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp(2, 1)

    def forward(self, points: Tensor) -> Tensor:
        return self.body(points).squeeze(1)


def build(seed: int) -> Players:
    """Two small networks under Adam 3e-4 (0.9, 0.999), the setting in which plain GANs collapse on the ring."""
    torch.manual_seed(seed)
    accelerator, _ = build_accelerator(Train(precision="launcher", cpu_threads=1))
    generator, discriminator = mlp(LATENT_DIM, 2), Judge()
    prepared = accelerator.prepare(
        generator,
        discriminator,
        torch.optim.Adam(generator.parameters(), lr=3e-4),
        torch.optim.Adam(discriminator.parameters(), lr=3e-4),
    )
    bare = [accelerator.unwrap_model(network) for network in prepared[:2]]
    spec = GeneratorSpec("mlp", 0, 2, 128, LATENT_DIM)
    return Players(accelerator, *prepared, *bare, GeneratorEma(generator, halflife_kimg=0), spec)


def run(name: str, seed: int, num_steps: int) -> tuple[int, float, float]:
    """(modes captured, share of high-quality samples, reverse KL) after so many generator steps."""
    players, loss = build(seed), ADVERSARIAL["bce"]
    modes, deviation = centres(name)
    draw = torch.Generator().manual_seed(seed)
    for _ in range(num_steps):
        for d_step in range(D_STEPS):
            chosen = torch.randint(len(modes), (BATCH,), generator=draw)
            reals = modes[chosen] + deviation * torch.randn(BATCH, 2, generator=draw)
            latents = [torch.randn(BATCH, LATENT_DIM, generator=draw)]
            keep = d_step == D_STEPS - 1
            fakes, _ = discriminator_step(
                players, reals=[reals], latents=latents, loss=loss, label_smoothing=0.0, keep_graph=keep
            )
        generator_step(players, fakes=fakes, latents=latents, loss=loss)
    with torch.no_grad():
        points = players.bare_generator(torch.randn(NUM_SAMPLES, LATENT_DIM, generator=draw))
    distances, nearest = torch.cdist(points, modes).min(1)
    good = distances < 3 * deviation
    shares = torch.bincount(nearest, minlength=len(modes)).double() / NUM_SAMPLES
    reverse_kl = float(torch.special.xlogy(shares, shares * len(modes)).sum())
    return len(nearest[good].unique()), float(good.float().mean()), reverse_kl


def main() -> None:
    """Print a row a mixture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=600)
    arguments = parser.parse_args()
    for name in ("ring", "grid"):
        found = [run(name, seed, arguments.steps) for seed in range(arguments.seeds)]
        modes, good, kl = (list(column) for column in zip(*found, strict=True))
        print(
            f"{name}: modes {', '.join(map(str, modes))} of {len(centres(name)[0])}; "
            f"high quality {statistics.mean(good):.0%}; reverse KL {', '.join(f'{value:.2f}' for value in kl)}"
        )
        print(f"  published, other networks and lengths: {PUBLISHED[name]}")


if __name__ == "__main__":
    main()
