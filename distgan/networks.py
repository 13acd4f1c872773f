"""DCGAN generator and discriminator (Radford et al. 2016) for 32, 64 and 128 pixels, and residual ones.

generator      latents [B, Z] -> project to 4x4 -> (transposed convolution, norm, ReLU) x k -> tanh -> [B, C, H, W]
discriminator  images [B, C, H, W] -> (strided convolution, norm, leaky ReLU) x k -> 4x4 -> one logit [B],
               and before each step, where asked for, a 3x3 convolution and a leaky ReLU

Needs torch alone, so that an exported generator loads anywhere.
"""

import itertools
import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from distgan.convolutions import Double, Halve

IMAGE_SIZES = (32, 64, 128)


@dataclass(frozen=True)
class GeneratorSpec:
    """All that is needed to build a generator again."""

    architecture: str
    image_size: int
    channels: int
    width: int
    latent_dim: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class DiscriminatorSpec:
    """All that is needed to build a discriminator, beside the images' size and channels."""

    width: int = 64
    norm: str = "batch"  # batch, spectral or none
    minibatch_stddev: int = 0  # images of a group; 0 for no such feature
    packing: int = 1  # images that are judged together
    init: str = "normal"  # or he: of a DCGAN's convolutions
    refinements: int = 0  # of a DCGAN's resolutions, from the full one down, that get a 3x3 convolution

    @classmethod
    def from_settings(cls, networks: Any) -> "DiscriminatorSpec":
        """What the settings `networks.*` say of it."""
        return cls(
            networks.discriminator_width,
            networks.discriminator_norm,
            networks.minibatch_stddev,
            networks.packing,
            networks.discriminator_init,
            networks.discriminator_refinements,
        )


def num_doublings(image_size: int) -> int:
    """How often 4 pixels double to the image size; raises ValueError for a size that is not offered."""
    if image_size not in IMAGE_SIZES:
        raise ValueError(
            f"images of {image_size} pixels; the networks are built for {', '.join(map(str, IMAGE_SIZES))}"
        )
    return int(math.log2(image_size)) - 2


def init_dcgan(module: nn.Module) -> None:
    """Weights from N(0, 0.02), norm scales from N(1, 0.02), biases zero (Radford et al. 2016, section 4)."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
        nn.init.normal_(module.weight, 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)


def init_he(module: nn.Module) -> None:
    """Weights that keep the spread of maps through leaky ReLUs of slope 0.2 (He et al. 2015, equation 15).

    Those of N(0, 0.02) leave it to a norm layer to make up for what they take away.
    """
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, 0.2)


class DCGANGenerator(nn.Module):
    """latents [B, latent_dim] -> images [B, C, H, W] in [-1, 1]."""

    def __init__(self, spec: GeneratorSpec) -> None:
        super().__init__()
        doublings = num_doublings(spec.image_size)
        widths = [spec.width * 2 ** (doublings - 1 - i) for i in range(doublings)]
        self.latent_dim = spec.latent_dim
        # A 4x4 transposed convolution of a 1x1 input is this matrix product.
        self.project = nn.Linear(spec.latent_dim, widths[0] * 16, bias=False)
        layers: list[nn.Module] = [nn.BatchNorm2d(widths[0]), nn.ReLU(inplace=True)]
        for before, after in itertools.pairwise(widths):
            layers += [
                Double(before, after, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(inplace=True),
            ]
        layers += [Double(widths[-1], spec.channels), nn.Tanh()]
        self.layers = nn.Sequential(*layers)
        self.apply(init_dcgan)

    def forward(self, latents: Tensor) -> Tensor:
        """latents [B, latent_dim] -> images [B, C, H, W] in [-1, 1]."""
        seed_map = self.project(latents).unflatten(1, (-1, 4, 4))
        return self.layers(seed_map.contiguous(memory_format=torch.channels_last))


class MinibatchStddev(nn.Module):
    """Shows the discriminator how much each group of consecutive samples varies (Karras et al. 2018, section 3).

    maps [B, F, ...] -> the same shape, B a multiple of the group. The published form appends the spread as a constant
    map for the next convolution; what that makes of it, the spread times a weight for each feature, is added here
    directly, for a channel more than a round number of them slows the convolution down.
    """

    def __init__(self, features: int, group: int) -> None:
        super().__init__()
        self.group = group
        self.weight = nn.Parameter(torch.randn(features) * 0.1)

    def forward(self, maps: Tensor) -> Tensor:
        """Adds weight x standard deviation over the group, averaged over features and places."""
        # Features last, as they lie in memory, and no `var`, whose backward is six times as slow.
        groups = maps.movedim(1, -1).float().flatten(1).unflatten(0, (-1, self.group))
        deviations = (groups - groups.mean(1, keepdim=True)).square().mean(1).add(1e-8).sqrt()
        added = deviations.mean(1).repeat_interleave(self.group)[:, None] * self.weight
        return maps + added.to(maps.dtype).view(*added.shape, *[1] * (maps.dim() - 2))


class Discriminator(nn.Module):
    """images [B, C, H, W] in [-1, 1] -> logits [B / packing], above zero where the images are held to be real.

    `layers` end in feature maps of 4x4 or in features, and `judge` weighs them.
    """

    layers: nn.Sequential
    judge: nn.Linear
    packing: int

    def maps(self, images: Tensor) -> Tensor:
        """images [B, C, H, W] -> what the judge weighs, [B / packing, ...]."""
        if self.packing > 1:  # consecutive images side by side, as channels (Lin et al. 2018, section 2)
            images = images.unflatten(0, (-1, self.packing)).flatten(1, 2)
        return self.layers(images)

    def features(self, images: Tensor) -> Tensor:
        """images [B, C, H, W] -> features [B / packing, F]."""
        return self.maps(images).flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        """images [B, C, H, W] in [-1, 1] -> logits [B / packing]."""
        maps, weight = self.maps(images), self.judge.weight
        if maps.dim() == 4:  # the weight is turned to their layout, channels last: to turn the maps costs more
            weight = weight.unflatten(1, maps.shape[1:]).permute(0, 2, 3, 1).flatten(1)
            maps = maps.permute(0, 2, 3, 1).flatten(1)
        return linear(maps, weight, self.judge.bias).squeeze(1)

    def normalise(self, norm: str) -> None:
        """Put spectral norm on every weight where it is asked for (Miyato et al. 2018)."""
        if norm == "spectral":
            for module in [*self.modules()]:
                if isinstance(module, nn.Conv2d | nn.Linear):
                    nn.utils.parametrizations.spectral_norm(module)


class DCGANDiscriminator(Discriminator):
    """Strided convolutions, the first and the last without norm, and where asked for 3x3 ones in turn with them.

    Those begin at full resolution (Miyato et al. 2018, table 3), there with half the width, and have no norm.
    """

    def __init__(self, spec: DiscriminatorSpec, *, image_size: int, channels: int) -> None:
        super().__init__()
        self.packing = spec.packing
        widths = [spec.width * 2**i for i in range(num_doublings(image_size))]
        seen = channels * spec.packing
        layers: list[nn.Module] = []
        for number, width in enumerate([max(1, spec.width // 2), *widths]):  # 0 is the full resolution
            if number > 0:
                is_normed = spec.norm == "batch" and number > 1
                layers.append(Halve(seen, width, bias=not is_normed))
                if spec.minibatch_stddev and number == len(widths):
                    layers.append(MinibatchStddev(width, spec.minibatch_stddev))
                layers += [nn.BatchNorm2d(width)] if is_normed else []
                layers.append(nn.LeakyReLU(0.2, inplace=True))
                seen = width
            if number < spec.refinements:
                layers += [nn.Conv2d(seen, width, 3, padding=1), nn.LeakyReLU(0.2, inplace=True)]
                seen = width
        self.layers = nn.Sequential(*layers)
        # A 4x4 convolution of a 4x4 map to one number is this matrix product.
        self.judge = nn.Linear(widths[-1] * 16, 1)
        self.apply(init_dcgan)
        if spec.init == "he":
            self.layers.apply(init_he)
        self.normalise(spec.norm)


def init_resnet(module: nn.Module) -> None:
    """Glorot's uniform weights (Gulrajani et al. 2017, appendix F), biases zero."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.xavier_uniform_(module.weight, gain=2**0.5 if getattr(module, "kernel_size", 1) == (3, 3) else 1.0)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class UpBlock(nn.Module):
    """Residual block of the generator: [B, before, S, S] -> [B, after, 2 S, 2 S]."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.BatchNorm2d(before),
            nn.ReLU(),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(before, after, 3, padding=1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(inplace=True),
            nn.Conv2d(after, after, 3, padding=1),
        )
        self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1), nn.Upsample(scale_factor=2))

    def forward(self, maps: Tensor) -> Tensor:
        """Maps twice as large."""
        return self.residual(maps) + self.shortcut(maps)


class ResNetGenerator(nn.Module):
    """latents [B, latent_dim] -> images [B, C, H, W] in [-1, 1] (Miyato et al. 2018, table 4).

    4 x width channels up to 16 pixels, then half as many at each doubling, which keeps it near 3.5M parameters.
    """

    def __init__(self, spec: GeneratorSpec) -> None:
        super().__init__()
        sizes = [4 * 2**i for i in range(num_doublings(spec.image_size) + 1)]
        widths = [max(1, spec.width * 4 * min(16, size) // size) for size in sizes]
        self.latent_dim = spec.latent_dim
        self.project = nn.Linear(spec.latent_dim, widths[0] * 16)
        self.layers = nn.Sequential(
            *(UpBlock(before, after) for before, after in itertools.pairwise(widths)),
            nn.BatchNorm2d(widths[-1]),
            nn.ReLU(inplace=True),
            nn.Conv2d(widths[-1], spec.channels, 3, padding=1),
            nn.Tanh(),
        )
        self.apply(init_resnet)

    def forward(self, latents: Tensor) -> Tensor:
        """latents [B, latent_dim] -> images [B, C, H, W] in [-1, 1]."""
        seed_map = self.project(latents).unflatten(1, (-1, 4, 4))
        return self.layers(seed_map.contiguous(memory_format=torch.channels_last))


class DownBlock(nn.Module):
    """Residual block of the discriminator: [B, before, S, S] -> [B, after, S / 2, S / 2], or the same size."""

    def __init__(self, before: int, after: int, *, has_batch_norm: bool, is_first: bool, shrinks: bool) -> None:
        super().__init__()
        shrink = [nn.AvgPool2d(2)] if shrinks else []

        def activation(channels: int) -> list[nn.Module]:
            return [*([nn.BatchNorm2d(channels)] if has_batch_norm else []), nn.ReLU()]

        self.residual = nn.Sequential(
            *([] if is_first else activation(before)),
            nn.Conv2d(before, after, 3, padding=1, bias=not has_batch_norm),
            *activation(after),
            nn.Conv2d(after, after, 3, padding=1),
            *shrink,
        )
        self.shortcut = nn.Sequential(*([nn.Conv2d(before, after, 1)] if before != after else []), *shrink)

    def forward(self, maps: Tensor) -> Tensor:
        """Maps half as large, or of the same size."""
        return self.residual(maps) + self.shortcut(maps)


class ResNetDiscriminator(Discriminator):
    """Residual blocks of 2 x width channels down to 8x8, two more there, then a sum over places (as above)."""

    def __init__(self, spec: DiscriminatorSpec, *, image_size: int, channels: int) -> None:
        super().__init__()
        self.packing = spec.packing
        shrinking, width, has_batch_norm = num_doublings(image_size) - 1, 2 * spec.width, spec.norm == "batch"
        blocks: list[nn.Module] = []
        for number in range(shrinking + 2):
            before = channels * spec.packing if number == 0 else width
            if spec.minibatch_stddev and number == shrinking + 1:
                blocks.append(MinibatchStddev(width, spec.minibatch_stddev))
            blocks.append(
                DownBlock(
                    before,
                    width,
                    has_batch_norm=has_batch_norm,
                    is_first=number == 0,
                    shrinks=number < shrinking,
                )
            )
        self.layers = nn.Sequential(*blocks, nn.ReLU(), nn.AvgPool2d(8, divisor_override=1))
        self.judge = nn.Linear(width, 1)
        self.apply(init_resnet)
        self.normalise(spec.norm)


NETWORKS: dict[str, tuple[type[nn.Module], type[Discriminator]]] = {
    "dcgan": (DCGANGenerator, DCGANDiscriminator),
    "resnet": (ResNetGenerator, ResNetDiscriminator),
}


def build_generator(spec: GeneratorSpec, *, seed: int = 0) -> nn.Module:
    """A generator with weights drawn from the seed, channels last in memory."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return NETWORKS[spec.architecture][0](spec).to(memory_format=torch.channels_last)


def build_discriminator(
    spec: GeneratorSpec, discriminator: DiscriminatorSpec = DiscriminatorSpec(), *, seed: int = 0
) -> Discriminator:
    """The discriminator that goes with a generator, weights drawn from the seed, channels last in memory."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1)  # not the generator's draws over again
        network = NETWORKS[spec.architecture][1](discriminator, image_size=spec.image_size, channels=spec.channels)
        return network.to(memory_format=torch.channels_last)
