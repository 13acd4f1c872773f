"""The trained generator of the Python API and the commands."""

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn

from distgan.errors import UserError
from distgan.images import to_uint8, to_uint16
from distgan.networks.base import ConditionalSpec, GeneratorSpec
from distgan.networks.conditioning import spread_labels
from distgan.networks.latents import generate, sample_latents, truncate, typical_latent
from distgan.networks.mixture import (
    Mixture,
    choose_class,
    class_number,
    classes_of,
    join_class,
    split_class,
)
from distgan.runtime.randomness import normal

NUM_CANDIDATES = 256  # latents among which the most typical one is chosen for truncation


class Generator:
    """A trained generator, ready to sample.

        generator = distgan.load_generator("runs/digits-0123abcd")
        images = generator.sample(16, seed=1)  # uint8 [16, C, H, W]

    `network` is the module itself, in eval mode, which maps latents [N, Z], and labels int64 [N] if
    it is conditional, to images [N, C, H, W] in [-1, 1]; `spec` describes it.
    """

    def __init__(self, network: nn.Module, spec: GeneratorSpec) -> None:
        self.network = network.eval().requires_grad_(False)
        self.spec = spec
        self.centers: dict[str | None, Tensor] = {}  # typical latent of each class; None: of all

    @property
    def classes(self) -> tuple[str, ...]:
        """Names that `sample` takes as `class_name`; empty if there are no classes."""
        return classes_of(self.spec)

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
        labels: Tensor | None = None,
    ) -> Tensor:
        """Return `n` images as uint8 [n, C, H, W] on the generator's device.

        Image i of a seed is the same however many are drawn. `truncation` in [0, 1] moves latents
        toward the most typical one, which all are at 0: 0.5, say, gives more typical, less varied
        images. `class_name` restricts a generator with classes to one of them. A conditional
        generator also takes `labels`, numbers of classes int64 [n], or weights of all classes float
        [n, K], which may lie between two classes; otherwise classes have their shares in the
        training images. Raises UserError for a class that does not exist.
        """
        return self.images(
            *self.inputs(n, seed, truncation=truncation, class_name=class_name, labels=labels)
        )

    def inputs(
        self,
        n: int,
        seed: int = 0,
        *,
        first: int = 0,
        truncation: float | None = None,
        class_name: str | None = None,
        labels: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Return what `images` takes: latents [n, Z], and labels if the generator is conditional.

        They are numbers `first`, `first + 1`, ... of a seed, and those of which `sample` is made.
        """
        latents = sample_latents(n, self.spec, seed=seed, first=first)
        if not isinstance(self.spec, ConditionalSpec):
            if labels is not None:
                raise UserError("this generator takes no labels; it is not conditional")
            if class_name is not None:
                latents = choose_class(latents, self.spec, class_name)
            return (latents if truncation is None else self.truncate(latents, truncation),)
        if labels is not None:
            check_labels(labels, n, self.spec)
        elif class_name is not None:
            labels = torch.full((n,), class_number(self.spec, class_name))
        else:
            labels = spread_labels(torch.arange(first, first + n), self.spec.shares, seed=seed)
        if truncation is not None:
            latents = self.truncate(latents, truncation, labels)
        return latents, labels

    def latents(
        self,
        n: int,
        seed: int = 0,
        *,
        first: int = 0,
        truncation: float | None = None,
        class_name: str | None = None,
    ) -> Tensor:
        """Return the latents [n, Z] that `inputs` returns."""
        return self.inputs(n, seed, first=first, truncation=truncation, class_name=class_name)[0]

    def truncate(self, latents: Tensor, fraction: float, labels: Tensor | None = None) -> Tensor:
        """Move latents [N, Z] toward the most typical one of their class; see `sample`."""
        if not 0 <= fraction <= 1:
            raise UserError(f"truncation {fraction:g}: give 0 (all alike) to 1 (none)")
        class_values, others = split_class(latents, self.spec)
        if isinstance(self.network, Mixture):
            labels = self.network.classes_of(latents.to(self.device))
        if labels is None:
            centers = self.center(None)
        else:
            numbers = labels.argmax(1) if labels.is_floating_point() else labels
            centers = torch.stack([self.center(self.classes[k]) for k in numbers.tolist()])
        return join_class(class_values, truncate(others, centers, fraction))

    def center(self, name: str | None) -> Tensor:
        """Return the most typical latent [Z] of a class, or of a generator without classes."""
        if name not in self.centers:
            numbers = torch.arange(NUM_CANDIDATES)
            inputs = [normal((self.spec.latent_dim,), numbers, seed=0, purpose="truncation")]
            if name is not None and isinstance(self.spec, ConditionalSpec):
                inputs.append(torch.full_like(numbers, class_number(self.spec, name)))
            elif name is not None:
                inputs = [choose_class(inputs[0], self.spec, name)]
            typical = typical_latent(self.network, *(each.to(self.device) for each in inputs)).cpu()
            self.centers[name] = split_class(typical, self.spec)[1]
        return self.centers[name]

    def images(self, latents: Tensor, labels: Tensor | None = None, *, bits: int = 8) -> Tensor:
        """Return images [N, C, H, W] for latents [N, Z], and for labels if it takes them.

        They are uint8, or with 16 bits as `to_uint16` gives them. Without labels a conditional
        generator gets those that the training images have.
        """
        if isinstance(self.spec, ConditionalSpec) and labels is None:
            labels = spread_labels(torch.arange(len(latents)), self.spec.shares)
        inputs = [latents] if labels is None else [latents, labels]
        images = generate(self.network, *(each.to(self.device) for each in inputs))
        return to_uint8(images) if bits == 8 else to_uint16(images)


def check_labels(labels: Tensor, num_images: int, spec: GeneratorSpec) -> None:
    """Raise UserError unless labels are one class, or one row of weights, for each image."""
    classes = classes_of(spec)
    num_classes = len(classes)
    if len(labels) != num_images:
        raise UserError(f"{len(labels)} labels for {num_images} images; give one for each image")
    if labels.is_floating_point():
        if labels.shape != (num_images, num_classes):
            raise UserError(
                f"weights of classes have shape {list(labels.shape)}; "
                f"give [{num_images}, {num_classes}], one weight for each class"
            )
        return
    for label in labels.tolist():
        check_label(label, classes)


def check_label(label: int, classes: Sequence[str]) -> None:
    """Raise UserError unless a label is the number of one of these classes."""
    if not 0 <= label < len(classes):
        raise UserError(
            f"label {label}: this generator has {len(classes)} classes, "
            f"0 ({classes[0]}) to {len(classes) - 1} ({classes[-1]})"
        )
