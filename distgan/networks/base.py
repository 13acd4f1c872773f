"""What all networks share: their specs, minibatch standard deviation, the discriminator's interface."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

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
    refinements: int = (
        0  # of a DCGAN's resolutions, from the full one down, that get a 3x3 convolution
    )

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

    `layers` end in feature maps of 4x4 or in features, and `head` maps them to one logit.
    """

    layers: nn.Sequential
    head: nn.Linear
    packing: int

    def maps(self, images: Tensor) -> Tensor:
        """images [B, C, H, W] -> what the head takes, [B / packing, ...]."""
        if (
            self.packing > 1
        ):  # consecutive images side by side, as channels (Lin et al. 2018, section 2)
            images = images.unflatten(0, (-1, self.packing)).flatten(1, 2)
        return self.layers(images)

    def features(self, images: Tensor) -> Tensor:
        """images [B, C, H, W] -> features [B / packing, F]."""
        return self.maps(images).flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        """images [B, C, H, W] in [-1, 1] -> logits [B / packing]."""
        maps, weight = self.maps(images), self.head.weight
        if (
            maps.dim() == 4
        ):  # the weight is turned to their layout, channels last: to turn the maps costs more
            weight = weight.unflatten(1, maps.shape[1:]).permute(0, 2, 3, 1).flatten(1)
            maps = maps.permute(0, 2, 3, 1).flatten(1)
        return linear(maps, weight, self.head.bias).squeeze(1)

    def normalise(self, norm: str) -> None:
        """Put spectral norm on every weight where it is asked for (Miyato et al. 2018)."""
        if norm == "spectral":
            for module in [*self.modules()]:
                if isinstance(module, nn.Conv2d | nn.Linear):
                    nn.utils.parametrizations.spectral_norm(module)
