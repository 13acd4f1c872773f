"""The same work as it is usually done, for `speed` to hold distgan against: a plain DCGAN loop, a stock WebDataset
pipeline, a stock writer loop. Written to be fair: no needless copies, and the settings their own guides recommend.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import webdataset as wds
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

LATENT_DIM = 100


def normalised(size: int) -> transforms.Compose:
    """PIL image -> float [3, size, size] in [-1, 1]."""
    return transforms.Compose(
        [
            transforms.Resize(size),
            transforms.CenterCrop(size),
            transforms.ToTensor(),
            transforms.Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        ]
    )


def networks(size: int, width: int = 64) -> tuple[nn.Module, nn.Module]:
    """Generator of latents [B, 100, 1, 1] and discriminator with a sigmoid, in plain layers (Radford et al. 2016)."""
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


def make_step(size: int, width: int = 64) -> Callable[[Tensor], list[float]]:
    """The loop's body: images [B, 3, size, size] -> the five numbers it prints, read from the device each step."""
    generator, discriminator = networks(size, width)
    for network in (generator, discriminator):
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.normal_(module.weight, 0.0, 0.02)
    bce = nn.BCELoss()
    optimizer_g, optimizer_d = (
        torch.optim.Adam(network.parameters(), lr=2e-4, betas=(0.5, 0.999))
        for network in (generator, discriminator)
    )

    def step(reals: Tensor) -> list[float]:
        discriminator.zero_grad()
        real_scores = discriminator(reals).view(-1)
        real_loss = bce(real_scores, torch.ones_like(real_scores))
        real_loss.backward()
        fakes = generator(torch.randn(len(reals), LATENT_DIM, 1, 1))
        fake_scores = discriminator(fakes.detach()).view(-1)
        fake_loss = bce(fake_scores, torch.zeros_like(fake_scores))
        fake_loss.backward()
        optimizer_d.step()
        generator.zero_grad()
        scores = discriminator(fakes).view(-1)
        generator_loss = bce(scores, torch.ones_like(scores))
        generator_loss.backward()
        optimizer_g.step()
        return [
            (real_loss + fake_loss).item(),
            generator_loss.item(),
            real_scores.mean().item(),
            fake_scores.mean().item(),
            scores.mean().item(),
        ]

    return step


def folder_batches(folder: Path, size: int, *, batch_size: int, workers: int) -> Iterator[Tensor]:
    """Batches without an end from an image folder, through PIL."""
    dataset = ImageFolder(str(folder), transform=normalised(size))
    loader = DataLoader(dataset, batch_size, shuffle=True, num_workers=workers, drop_last=True)
    while True:
        for images, _ in loader:
            yield images


def webdataset_batches(tars: list[str], size: int, *, batch_size: int) -> Iterator[Tensor]:
    """Batches without an end from tars of JPEG images."""
    dataset = wds.WebDataset(tars, shardshuffle=False, empty_check=False)
    decoded = dataset.shuffle(1000).decode("pil").to_tuple("jpg").map_tuple(normalised(size))
    batched = decoded.batched(batch_size, partial=False)
    while True:
        for (images,) in batched:
            yield images


def write_jpegs(folder: Path, out: Path) -> list[str]:
    """The files of an image folder in the tars of a stock writer, as they are."""
    out.mkdir(parents=True)
    with wds.ShardWriter(f"{out}/%06d.tar", maxsize=2**25, verbose=0) as writer:
        for number, file in enumerate(sorted(folder.glob("*/*"))):
            writer.write({"__key__": f"{number:09d}", "jpg": file.read_bytes()})
    return sorted(str(tar) for tar in out.glob("*.tar"))


def pack_folder(folder: Path, out: Path, size: int) -> int:
    """Decode, crop, resize and write one image after another as uint8 [3, size, size]; how many."""
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
                    "npy": transforms.functional.pil_to_tensor(image).numpy(),
                    "cls": 0,
                }
            )
    return len(files)
