"""The trained generator of the Python API and the commands."""

from typing import Self

import torch
from torch import Tensor, nn

from distgan.images import to_uint8
from distgan.networks.base import GeneratorSpec
from distgan.networks.latents import generate, sample_latents, truncate
from distgan.networks.mixture import MixtureSpec, choose_class, join_class, split_class


class Generator:
    """A trained generator, ready to sample.

        generator = distgan.load_generator("runs/digits-0123abcd")
        images = generator.sample(16, seed=1)  # uint8 [16, C, H, W]

    `network` is the module itself, in eval mode, which maps latents [N, Z] to images [N, C, H, W]
    in [-1, 1]; `spec` describes it.
    """

    def __init__(self, network: nn.Module, spec: GeneratorSpec) -> None:
        self.network = network.eval().requires_grad_(False)
        self.spec = spec

    @property
    def classes(self) -> tuple[str, ...]:
        """Names that `sample` takes as `class_name`; empty unless one GAN per class was trained."""
        return self.spec.classes if isinstance(self.spec, MixtureSpec) else ()

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        return (self.spec.channels, self.spec.image_size, self.spec.image_size)

    @property
    def device(self) -> torch.device:
        """Device of the weights and of the images."""
        return next(self.network.parameters()).device

    def to(self, device: str | torch.device) -> Self:
        """Move the network to a device, in place, and return this generator."""
        self.network.to(device)
        return self

    def sample(
        self,
        n: int,
        seed: int = 0,
        *,
        truncation: float | None = None,
        class_name: str | None = None,
    ) -> Tensor:
        """Return `n` images as uint8 [n, C, H, W] on the generator's device.

        Image i of a seed is the same however many are drawn. `truncation` cuts latents off at that
        absolute value: 1.5, say, gives more typical images of fewer kinds. `class_name` restricts a
        generator with classes to one of them; raises UserError for a name that is not in `classes`.
        """
        return self.images(self.latents(n, seed, truncation=truncation, class_name=class_name))

    def latents(
        self,
        n: int,
        seed: int = 0,
        *,
        first: int = 0,
        truncation: float | None = None,
        class_name: str | None = None,
    ) -> Tensor:
        """Return the seed's latents `first`, `first + 1`, ... as [n, Z]; `sample` uses the same."""
        latents = sample_latents(n, self.spec, seed=seed, first=first)
        if class_name is not None:
            latents = choose_class(latents, self.spec, class_name)
        if truncation is not None:
            class_values, others = split_class(latents, self.spec)
            latents = join_class(class_values, truncate(others, truncation))
        return latents

    def images(self, latents: Tensor) -> Tensor:
        """Return uint8 images [N, C, H, W] for latents [N, Z]."""
        return to_uint8(generate(self.network, latents.to(self.device)))
