"""The trained generator of the Python API and the commands."""

from typing import Self

import torch
from torch import Tensor, nn

from distgan.errors import UserError
from distgan.images import to_uint8
from distgan.networks.base import GeneratorSpec
from distgan.networks.latents import generate, sample_latents, truncate, typical_latent
from distgan.networks.mixture import (
    Mixture,
    MixtureSpec,
    choose_class,
    join_class,
    split_class,
)
from distgan.runtime.randomness import normal

NUM_CANDIDATES = 256  # latents among which the most typical one is chosen for truncation


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
        self.centers: dict[str | None, Tensor] = {}  # typical latent of each class; None: of all

    @property
    def classes(self) -> tuple[str, ...]:
        """Names that `sample` takes as `class_name`; empty unless one GAN per class was trained."""
        return self.spec.classes if isinstance(self.spec, MixtureSpec) else ()

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        return self.spec.image_shape

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

        Image i of a seed is the same however many are drawn. `truncation` in [0, 1] moves latents
        toward the most typical one, which all are at 0: 0.5, say, gives more typical, less varied
        images. `class_name` restricts a generator with classes to one of them. Raises UserError
        for a name that is not in `classes`.
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
            latents = self.truncate(latents, truncation)
        return latents

    def truncate(self, latents: Tensor, fraction: float) -> Tensor:
        """Move latents [N, Z] toward the most typical one of their class; see `sample`."""
        if not 0 <= fraction <= 1:
            raise UserError(f"truncation {fraction:g}: give 0 (all alike) to 1 (none)")
        class_values, others = split_class(latents, self.spec)
        if isinstance(self.network, Mixture):
            numbers = self.network.classes_of(latents.to(self.device)).tolist()
            centers = torch.stack([self.center(self.classes[number]) for number in numbers])
        else:
            centers = self.center(None)
        return join_class(class_values, truncate(others, centers, fraction))

    def center(self, name: str | None) -> Tensor:
        """Return the most typical latent [Z] of a class, or of a generator without classes."""
        if name not in self.centers:
            numbers = torch.arange(NUM_CANDIDATES)
            latents = normal((self.spec.latent_dim,), numbers, seed=0, purpose="truncation")
            if name is not None:
                latents = choose_class(latents, self.spec, name)
            typical = typical_latent(self.network, latents.to(self.device)).cpu()
            self.centers[name] = split_class(typical, self.spec)[1]
        return self.centers[name]

    def images(self, latents: Tensor) -> Tensor:
        """Return uint8 images [N, C, H, W] for latents [N, Z]."""
        return to_uint8(generate(self.network, latents.to(self.device)))
