"""Specs of networks, the base classes of both, and minibatch standard deviation."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from distgan.config.schema import Networks
from distgan.networks.conditioning import ClassTable, ConditionalNorm, Layers, Modulation
from distgan.networks.sizes import ImageSize, sides


@dataclass(frozen=True, kw_only=True)
class GeneratorSpec:
    """Everything needed to rebuild a generator."""

    architecture: str
    image_size: ImageSize
    channels: int
    width: int
    latent_dim: int
    max_width: int = 1024
    bits: int = 8  # of the images it was trained on, or 16
    refinements: int = 0  # DCGAN: number of resolutions, from the full one, with a 3x3 convolution
    code_dim: int = 0  # length of the code made of the latent that modulates all norms, or 0

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        return (self.channels, *sides(self.image_size))

    @property
    def num_labels(self) -> int:
        """Number of labels that the networks take beside latents and images; 0 for none."""
        return 0

    def to_dict(self) -> dict[str, Any]:
        """Return the spec as plain values for JSON, without those of `USUAL`."""
        return without_usual(asdict(self))


USUAL = {"bits": 8, "refinements": 0, "code_dim": 0}
"""Values of a spec that go without saying, so that earlier versions can read it."""


def without_usual(plain: dict[str, Any]) -> dict[str, Any]:
    """Return a spec's values without those of `USUAL`, also in a spec that is part of it."""
    return {
        name: without_usual(value) if isinstance(value, dict) else value
        for name, value in plain.items()
        if (name, value) not in USUAL.items()
    }


@dataclass(frozen=True, kw_only=True)
class ConditionalSpec(GeneratorSpec):
    """Everything needed to rebuild a conditional generator."""

    classes: tuple[str, ...]
    shares: tuple[float, ...]  # of the classes among the training images
    label_dim: int = 32  # length of the embedding of a label
    blends: bool = False  # whether labels begin without effect and are blended in

    @property
    def num_labels(self) -> int:
        """Number of classes."""
        return len(self.classes)


@dataclass(frozen=True, kw_only=True)
class DiscriminatorSpec:
    """Everything needed to build a discriminator, except the size and channels of the images."""

    width: int = 64
    max_width: int = 1024
    norm: str = "batch"  # batch, spectral or none
    minibatch_stddev: int = 0  # images per group; 0 disables the feature
    packing: int = 1  # images per logit
    init: str = "normal"  # or he; initial weights of a DCGAN's convolutions
    refinements: int = (
        0  # number of a DCGAN's resolutions, from the full one, with a 3x3 convolution
    )
    san: bool = False  # whether the last layer has unit norm and a loss of its own

    @classmethod
    def from_settings(cls, networks: Networks) -> "DiscriminatorSpec":
        """Return the spec of the discriminator in the settings `networks.*`."""
        return cls(
            width=networks.discriminator_width,
            max_width=networks.max_width,
            norm=networks.discriminator_norm,
            minibatch_stddev=networks.minibatch_stddev,
            packing=networks.packing,
            init=networks.discriminator_init,
            refinements=networks.discriminator_refinements,
            san=networks.san,
        )


MOST_AT_ONCE = 256
PIXELS_AT_ONCE = MOST_AT_ONCE * 64**2


def images_at_once(generator: nn.Module) -> int:
    """Return how many images a generator makes at once: large ones need no more memory."""
    assert isinstance(generator.spec, GeneratorSpec)
    height, width = sides(generator.spec.image_size)
    return min(MOST_AT_ONCE, PIXELS_AT_ONCE // (height * width))


class GeneratorNetwork(nn.Module):
    """Base class of generators: latents [B, Z], and labels if there are any, to images.

    Images are [B, C, H, W] in [-1, 1]. A family of networks builds `project`, from latents to the
    first maps, whose height and width are `start`, and the `layers` that follow. It makes its norms
    with `norm`, and ends with `add_condition`. Labels act on the norms alone. With `spec.code_dim`
    the latents act on them, too (self-modulation, Chen et al. 2019).
    """

    start: tuple[int, int]
    project: nn.Linear
    layers: Layers

    def __init__(self, spec: GeneratorSpec) -> None:
        super().__init__()
        self.spec = spec
        self.norm_channels: list[int] = []  # of the conditional norms
        self.embedding: ClassTable | None = None
        self.latent_code: nn.Sequential | None = None
        self.modulation: Modulation | None = None

    def norm(self, channels: int) -> nn.Module:
        """Return batch norm, which is conditional if labels or latents modulate it."""
        if not self.spec.num_labels and not self.spec.code_dim:
            return nn.BatchNorm2d(channels)
        self.norm_channels.append(channels)
        return ConditionalNorm(channels, len(self.norm_channels) - 1)

    def add_condition(self) -> None:
        """Add what modulates the norms. Call it last, so that no other weight depends on it."""
        spec, dim = self.spec, self.spec.code_dim
        if isinstance(spec, ConditionalSpec):
            num, dim = spec.num_labels, dim + spec.label_dim
            self.embedding = ClassTable(num, spec.label_dim, std=1.0, blends=spec.blends)
        if spec.code_dim:
            product = nn.Linear(spec.latent_dim, spec.code_dim)
            nn.init.kaiming_normal_(product.weight)
            self.latent_code = nn.Sequential(product, nn.ReLU())
        if dim:
            self.modulation = Modulation(self.norm_channels, dim)

    def make_images(self, latents: Tensor, modulation: list[Tensor] | None) -> Tensor:
        """Return images [B, C, H, W] in [-1, 1]; the modulation is that of all norms, or None."""
        maps = self.project(latents).unflatten(1, (-1, *self.start))
        return self.layers(maps.contiguous(memory_format=torch.channels_last), modulation)

    def forward(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return images for latents [B, Z], and for labels int64 [B] or their weights [B, K]."""
        if self.modulation is None:
            return self.make_images(latents, None)
        parts = [] if self.latent_code is None else [self.latent_code(latents)]
        if self.embedding is not None:
            assert labels is not None, "a conditional generator needs labels"
            parts.append(self.embedding(labels))
        return self.make_images(latents, self.modulation(torch.cat(parts, 1)))


class MinibatchStddev(nn.Module):
    """A feature that shows the discriminator how much consecutive samples vary.

    Karras et al. 2018, section 3. Maps [B, F, ...] to the same shape; B is a multiple of `group`.
    The paper appends the mean standard deviation of each group as a constant channel, which the
    next convolution multiplies by one weight per feature. This module adds that product directly,
    because an odd number of channels slows the convolution down.
    """

    def __init__(self, features: int, group: int) -> None:
        super().__init__()
        self.group = group
        self.weight = nn.Parameter(torch.randn(features) * 0.1)

    def forward(self, maps: Tensor) -> Tensor:
        """Add weight x standard deviation over the group, averaged over features and pixels."""
        # Features go last, as they are stored in memory. `var` is avoided, because its backward
        # takes six times as long.
        groups = maps.movedim(1, -1).float().flatten(1).unflatten(0, (-1, self.group))
        deviations = (groups - groups.mean(1, keepdim=True)).square().mean(1).add(1e-8).sqrt()
        added = (deviations.mean(1)[:, None] * self.weight).to(maps.dtype)  # [groups, F]
        added = added.view(len(added), 1, -1, *[1] * (maps.dim() - 2))
        return (maps.unflatten(0, (-1, self.group)) + added).flatten(0, 1)


class Discriminator(nn.Module):
    """Base class of discriminators: images [B, C, H, W] in [-1, 1] to logits [B / packing].

    A logit above zero means real. `layers` end in feature maps of few pixels or in feature
    vectors, and `head` maps those to one logit. A conditional one also takes labels, int64 [B].

    With `san`, logits are divided by the norm of the head's weight, and its direction gets no
    gradient from them, but from the directional scores alone (SAN, Takida et al. 2024).
    """

    layers: nn.Sequential
    head: nn.Linear
    packing: int
    num_channels: int  # of the maps that `layers` end in
    san = False

    def __init__(self) -> None:
        super().__init__()
        self.projection: ClassTable | None = None

    def add_projection(self, images: ConditionalSpec) -> None:
        """Make the discriminator conditional: logits gain e_y.h, with e_y from N(0, 0.02)."""
        self.projection = ClassTable(
            images.num_labels, self.num_channels, std=0.02, blends=images.blends
        )

    def maps(self, images: Tensor) -> Tensor:
        """Return the output of `layers`, [B / packing, ...], for images [B, C, H, W]."""
        if self.packing > 1:  # stack consecutive images as channels (Lin et al. 2018, section 2)
            images = images.unflatten(0, (-1, self.packing)).flatten(1, 2)
        return self.layers(images)

    def forward(
        self,
        images: Tensor,
        labels: Tensor | None = None,
        *,
        with_features: bool = False,
        with_scores: bool = False,
    ) -> Any:
        """Return logits [B / packing] for images [B, C, H, W] in [-1, 1], and labels if there are.

        With features, return (logits, features [B / packing, F]). With scores, return (logits,
        directional scores [B / packing]), which have a gradient by the head's direction alone.
        """
        maps, weight, vectors = self.maps(images), self.head.weight, None
        if self.projection is not None:
            assert labels is not None, "a conditional discriminator needs labels"
            vectors = self.projection(labels)
        if not self.san:
            logits = products(maps, weight, vectors, self.head.bias)
            return (logits, maps.flatten(1)) if with_features else logits
        norms = direction_norms(maps, weight, vectors)
        fixed = None if vectors is None else vectors.detach()
        logits = products(maps, weight.detach(), fixed) / norms.detach() + self.head.bias
        if with_scores:
            return logits, products(maps.detach(), weight, vectors) / norms
        return (logits, maps.flatten(1)) if with_features else logits


def products(
    maps: Tensor, weight: Tensor, vectors: Tensor | None, bias: Tensor | None = None
) -> Tensor:
    """Return w.h + e_y.h [B], for maps [B, F, ...], a weight [1, F * ...] and vectors e_y [B, F].

    In e_y.h the maps are summed over positions. The bias is [1].
    """
    projected: tuple[Tensor, Tensor] | None = None  # h [B, 1, F] and e_y [B, F, 1]
    if vectors is not None:
        summed = maps.sum((2, 3)) if maps.dim() == 4 else maps
        projected = summed[:, None], vectors.to(summed.dtype)[:, :, None]
    if maps.dim() == 4:
        # Flatten channels-last maps in memory order: reordering the weight costs less than
        # reordering the maps.
        weight = weight.unflatten(1, maps.shape[1:]).permute(0, 2, 3, 1).flatten(1)
        maps = maps.permute(0, 2, 3, 1).flatten(1)
    found = linear(maps, weight, bias).squeeze(1)
    if projected is not None:
        found = torch.baddbmm(found[:, None, None], *projected).flatten()
    return found


def direction_norms(maps: Tensor, weight: Tensor, vectors: Tensor | None) -> Tensor:
    """Return the norm, [1] or [B], of the weights by which `products` multiplies maps [B, F, ...].

    At each position that is the sum of w and e_y.
    """
    weights = weight.unflatten(1, (maps.shape[1], -1)).float()  # [1, F, positions]
    if vectors is not None:
        weights = weights + vectors.float()[:, :, None]
    return weights.flatten(1).norm(dim=1)
