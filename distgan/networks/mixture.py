"""One generator per class, combined into one.

The first value of a latent chooses the class, the rest is the latent of that class's generator:

latent [1 + Z] -- first value --> class k, if the value is in the k-th interval of N(0, 1)
               -- rest [Z] -----> generator k -> image

The intervals have the probabilities of the classes. So a latent alone determines its image, as for
any other generator, however many images are drawn together and on however many processes.
"""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from distgan.errors import UserError
from distgan.networks.base import ConditionalSpec, GeneratorSpec

MIXTURE = "mixture"


@dataclass(frozen=True, kw_only=True)
class MixtureSpec(GeneratorSpec):
    """Everything needed to rebuild a mixture; its `latent_dim` is one more than that of a part."""

    part: GeneratorSpec  # the generator of every class
    classes: tuple[str, ...]
    weights: tuple[float, ...]  # probabilities of the classes

    @property
    def boundaries(self) -> list[float]:
        """Cumulative probabilities; class k is between boundaries k and k + 1."""
        return [0.0, *itertools.accumulate(self.weights[:-1]), 1.0]


def mixture_spec(
    part: GeneratorSpec, *, classes: tuple[str, ...], weights: tuple[float, ...]
) -> MixtureSpec:
    """Return the mixture of one generator `part` per class."""
    return MixtureSpec(
        architecture=MIXTURE,
        image_size=part.image_size,
        channels=part.channels,
        width=part.width,
        latent_dim=part.latent_dim + 1,
        max_width=part.max_width,
        bits=part.bits,
        part=part,
        classes=classes,
        weights=weights,
    )


def spec_from_dict(plain: dict[str, Any]) -> GeneratorSpec:
    """Return the spec whose `to_dict` was written to JSON; raises TypeError or KeyError."""
    if isinstance(plain["image_size"], list):
        height, width = plain["image_size"]
        plain = plain | {"image_size": (height, width)}
    if plain["architecture"] != MIXTURE:
        return plain_or_conditional_spec(plain)
    return MixtureSpec(
        **plain
        | {
            "part": spec_from_dict(plain["part"]),
            "classes": tuple(plain["classes"]),
            "weights": tuple(plain["weights"]),
        }
    )


def plain_or_conditional_spec(plain: dict[str, Any]) -> GeneratorSpec:
    """Return the spec of a single generator; raises TypeError, KeyError or ValueError."""
    if "classes" not in plain:
        return GeneratorSpec(**plain)
    classes, shares = tuple(plain["classes"]), tuple(float(share) for share in plain["shares"])
    if not classes or len(classes) != len(shares):
        raise ValueError(f"{len(classes)} classes and {len(shares)} shares are described")
    return ConditionalSpec(**plain | {"classes": classes, "shares": shares})


class Mixture(nn.Module):
    """A mixture of all generators: latents [B, 1 + Z] to images [B, C, H, W] in [-1, 1]."""

    bounds: Tensor

    def __init__(self, spec: MixtureSpec, parts: Iterable[nn.Module]) -> None:
        super().__init__()
        self.spec = spec
        self.parts = nn.ModuleList(parts)
        inner = torch.special.ndtri(torch.tensor(spec.boundaries[1:-1], dtype=torch.float64))
        self.register_buffer("bounds", inner.float(), persistent=False)

    def classes_of(self, latents: Tensor) -> Tensor:
        """Return the number of the class that each latent [B, 1 + Z] chooses, int64 [B]."""
        return (latents[:, :1] >= self.bounds).sum(1)

    def forward(self, latents: Tensor) -> Tensor:
        """Return images [B, C, H, W] in [-1, 1] for latents [B, 1 + Z]."""
        chosen, latents = self.classes_of(latents), latents[:, 1:]
        if torch.compiler.is_exporting():
            # Shapes in an exported graph cannot depend on values, so each part makes every image.
            images = self.parts[0](latents)
            for number, part in enumerate(self.parts):
                images = torch.where((chosen == number)[:, None, None, None], part(latents), images)
            return images
        rows = [(chosen == number).nonzero()[:, 0] for number in range(len(self.parts))]
        images = [
            part(latents[of_part])
            for part, of_part in zip(self.parts, rows, strict=True)
            if len(of_part)
        ]
        return torch.cat(images)[torch.cat(rows).argsort()]


def classes_of(spec: GeneratorSpec) -> tuple[str, ...]:
    """Return the names of a generator's classes; none if it has none."""
    return spec.classes if isinstance(spec, MixtureSpec | ConditionalSpec) else ()


def class_number(spec: GeneratorSpec, name: str) -> int:
    """Return the number of the class with this name; raises UserError."""
    classes = classes_of(spec)
    if not classes:
        raise UserError(
            f"class {name!r}: this generator has no classes; "
            "it was trained with neither networks.per_class nor networks.condition"
        )
    if name not in classes:
        raise UserError(f"no class {name!r}; choose from {', '.join(classes)}")
    return classes.index(name)


def choose_class(latents: Tensor, spec: GeneratorSpec, name: str) -> Tensor:
    """Return latents [N, 1 + Z] that choose one class, otherwise unchanged; raises UserError."""
    number = class_number(spec, name)
    assert isinstance(spec, MixtureSpec), "only a mixture's latents choose a class"
    lower, upper = spec.boundaries[number : number + 2]
    middle = torch.tensor((lower + upper) / 2, dtype=torch.float64)
    first = torch.special.ndtri(middle).to(latents).expand(len(latents), 1)
    return torch.cat([first, latents[:, 1:]], 1)


def split_class(latents: Tensor, spec: GeneratorSpec) -> tuple[Tensor, Tensor]:
    """Return the values that choose a class, [..., 0 or 1], and the others, [..., Z]."""
    num_values = int(isinstance(spec, MixtureSpec))
    return latents[..., :num_values], latents[..., num_values:]


def join_class(class_values: Tensor, others: Tensor) -> Tensor:
    """Undo `split_class`; `class_values` are expanded to the shape of the other values."""
    return torch.cat([class_values.expand(*others.shape[:-1], -1), others], -1)
