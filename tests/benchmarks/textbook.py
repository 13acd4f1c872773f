"""The same work as it is usually done, for distgan to be compared with.

A plain DCGAN loop, a stock WebDataset pipeline and a stock writer loop. They are written to be
fair: no needless copies, and the settings that their own guides recommend.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset as wds
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

from distgan.images import to_uint8

LATENT_DIM = 100


def normalised(size: int) -> Any:
    """Return the transform from a PIL image to float [3, size, size] in [-1, 1]."""
    from torchvision import transforms  # it imports torch's compiler, which takes seconds

    return transforms.Compose(
        [
            transforms.Resize(size),
            transforms.CenterCrop(size),
            transforms.ToTensor(),
            transforms.Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        ]
    )


def networks(size: int, width: int = 64) -> tuple[nn.Module, nn.Module]:
    """Build the networks of Radford et al. 2016 in plain layers.

    The generator takes latents [B, 100, 1, 1]; the discriminator ends in a sigmoid.
    """
    widths = {32: [4, 2, 1], 64: [8, 4, 2, 1]}[size]
    generator: list[nn.Module] = []
    before = LATENT_DIM
    for place, factor in enumerate(widths):
        stride, padding = (1, 0) if place == 0 else (2, 1)
        generator += [
            nn.ConvTranspose2d(before, width * factor, 4, stride, padding, bias=False),
            nn.BatchNorm2d(width * factor),
            nn.ReLU(True),
        ]
        before = width * factor
    generator += [nn.ConvTranspose2d(before, 3, 4, 2, 1, bias=False), nn.Tanh()]
    discriminator: list[nn.Module] = []
    before = 3
    for place, factor in enumerate(reversed(widths)):
        discriminator.append(nn.Conv2d(before, width * factor, 4, 2, 1, bias=False))
        discriminator += [nn.BatchNorm2d(width * factor)] if place else []
        discriminator.append(nn.LeakyReLU(0.2, inplace=True))
        before = width * factor
    discriminator += [nn.Conv2d(before, 1, 4, 1, 0, bias=False), nn.Sigmoid()]
    return nn.Sequential(*generator), nn.Sequential(*discriminator)


class TextbookGAN:
    """The networks and the body of the tutorial's loop, in fp32."""

    def __init__(self, size: int, width: int = 64) -> None:
        self.generator, self.discriminator = networks(size, width)
        for network in (self.generator, self.discriminator):
            for module in network.modules():
                if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                    nn.init.normal_(module.weight, 0.0, 0.02)
        self.bce = nn.BCELoss()
        self.optimizer_g, self.optimizer_d = (
            torch.optim.Adam(network.parameters(), lr=2e-4, betas=(0.5, 0.999))
            for network in (self.generator, self.discriminator)
        )

    def step(self, reals: Tensor) -> list[float]:
        """Train on images [B, 3, H, W]; return the five numbers that the loop prints."""
        self.discriminator.zero_grad()
        real_scores = self.discriminator(reals).view(-1)
        real_loss = self.bce(real_scores, torch.ones_like(real_scores))
        real_loss.backward()
        fakes = self.generator(torch.randn(len(reals), LATENT_DIM, 1, 1))
        fake_scores = self.discriminator(fakes.detach()).view(-1)
        fake_loss = self.bce(fake_scores, torch.zeros_like(fake_scores))
        fake_loss.backward()
        self.optimizer_d.step()
        self.generator.zero_grad()
        scores = self.discriminator(fakes).view(-1)
        generator_loss = self.bce(scores, torch.ones_like(scores))
        generator_loss.backward()
        self.optimizer_g.step()
        return [
            (real_loss + fake_loss).item(),
            generator_loss.item(),
            real_scores.mean().item(),
            fake_scores.mean().item(),
            scores.mean().item(),
        ]

    @torch.no_grad()
    def sample(self, n: int, *, batch_size: int = 128) -> Tensor:
        """Return `n` images as uint8 [n, 3, H, W], with batch statistics as in the loop."""
        sizes = [batch_size] * math.ceil(n / batch_size)
        batches = [self.generator(torch.randn(size, LATENT_DIM, 1, 1)) for size in sizes]
        return to_uint8(torch.cat(batches)[:n])

    def state(self) -> dict[str, Any]:
        """Return everything needed to resume."""
        return {name: part.state_dict() for name, part in self.parts().items()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Resume from what `state` returned."""
        for name, part in self.parts().items():
            part.load_state_dict(state[name])

    def parts(self) -> dict[str, Any]:
        """Return the networks and optimizers by name."""
        names = ("generator", "discriminator", "optimizer_g", "optimizer_d")
        return {name: getattr(self, name) for name in names}


def folder_batches(folder: Path, size: int, *, batch_size: int, workers: int) -> Iterator[Tensor]:
    """Yield batches of an image folder forever, decoded by PIL."""
    from torchvision.datasets import ImageFolder

    dataset = ImageFolder(str(folder), transform=normalised(size))
    loader = DataLoader(dataset, batch_size, shuffle=True, num_workers=workers, drop_last=True)
    while True:
        for images, _ in loader:
            yield images


def webdataset_batches(tars: list[str], size: int, *, batch_size: int) -> Iterator[Tensor]:
    """Yield batches of tars of JPEG images forever."""
    dataset = wds.WebDataset(tars, shardshuffle=False, empty_check=False)
    decoded = dataset.shuffle(1000).decode("pil").to_tuple("jpg").map_tuple(normalised(size))
    batched = decoded.batched(batch_size, partial=False)
    while True:
        for (images,) in batched:
            yield images


def write_jpegs(folder: Path, out: Path) -> list[str]:
    """Write the files of an image folder into tars with a stock writer; return the tars."""
    out.mkdir(parents=True)
    with wds.ShardWriter(f"{out}/%06d.tar", maxsize=2**25, verbose=0) as writer:
        for number, file in enumerate(sorted(folder.glob("*/*"))):
            writer.write({"__key__": f"{number:09d}", "jpg": file.read_bytes()})
    return sorted(str(tar) for tar in out.glob("*.tar"))


def pack_folder(folder: Path, out: Path, size: int) -> int:
    """Decode, crop, resize and write images as uint8 [3, size, size]; return their number."""
    out.mkdir(parents=True)
    files = sorted(folder.glob("*/*"))
    with wds.ShardWriter(f"{out}/%06d.tar", maxsize=2**25, verbose=0) as writer:
        for number, file in enumerate(files):
            image = Image.open(file).convert("RGB")
            width, height = image.size
            side = min(width, height)
            left, top = (width - side) // 2, (height - side) // 2
            image = image.crop((left, top, left + side, top + side)).resize(
                (size, size), Image.Resampling.LANCZOS
            )
            writer.write(
                {
                    "__key__": f"{number:09d}",
                    "npy": np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1)),
                    "cls": 0,
                }
            )
    return len(files)
