"""One generator a class, joined into one: the first value of a latent chooses the class, the others are what it is made of.

latent [1 + Z] --first value--> the interval of N(0, 1) it lies in, one a class, of the class's weight --> generator k
               --the others [Z]------------------------------------------------------------------------> generator k -> image

So image i is the same however many are drawn and on however many processes, and a latent's neighbours are of its class.
"""

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from distgan.errors import UserError
from distgan.networks.base import GeneratorSpec
from distgan.networks.build import build_generator

MIXTURE = "mixture"


@dataclass(frozen=True, kw_only=True)
class MixtureSpec(GeneratorSpec):
    """All that is needed to build a mixture again; `latent_dim` is one more than that of its parts."""

    part: GeneratorSpec  # what every class's generator is
    classes: tuple[str, ...]
    weights: tuple[float, ...]  # shares of the images, one a class, 1 together

    @property
    def cuts(self) -> list[float]:
        """Shares of the images before each class, and 1: class k owns what lies between number k and k + 1."""
        return [0.0, *itertools.accumulate(self.weights[:-1]), 1.0]


def mixture_spec(
    part: GeneratorSpec, *, classes: tuple[str, ...], weights: tuple[float, ...]
) -> MixtureSpec:
    """The mixture of as many generators `part` as there are classes."""
    return MixtureSpec(
        MIXTURE, part.image_size, part.channels, part.width, part.latent_dim + 1,
        part=part, classes=classes, weights=weights,
    )  # fmt: skip


class Mixture(nn.Module):
    """latents [B, 1 + Z] -> images [B, C, H, W] in [-1, 1], each from the generator of its class."""

    bounds: Tensor

    def __init__(self, spec: MixtureSpec) -> None:
        super().__init__()
        self.parts = nn.ModuleList(build_generator(spec.part) for _ in spec.classes)
        inner = torch.special.ndtri(torch.tensor(spec.cuts[1:-1], dtype=torch.float64))
        self.register_buffer("bounds", inner.float(), persistent=False)

    def classes_of(self, latents: Tensor) -> Tensor:
        """The number of the class that each latent [B, 1 + Z] chooses, int64 [B]."""
        return (latents[:, :1] >= self.bounds).sum(1)

    def forward(self, latents: Tensor) -> Tensor:
        """latents [B, 1 + Z] -> images [B, C, H, W] in [-1, 1]."""
        chosen, latents = self.classes_of(latents), latents[:, 1:]
        if (
            torch.compiler.is_exporting()
        ):  # no shape may depend on values: every generator makes every image
            images = self.parts[0](latents)
            for number, part in enumerate(self.parts):
                images = torch.where((chosen == number)[:, None, None, None], part(latents), images)
            return images
        places = [(chosen == number).nonzero()[:, 0] for number in range(len(self.parts))]
        images = [
            part(latents[place])
            for part, place in zip(self.parts, places, strict=True)
            if len(place)
        ]
        return torch.cat(images)[torch.cat(places).argsort()]


def of_class(latents: Tensor, spec: GeneratorSpec, name: str) -> Tensor:
    """The same latents [N, 1 + Z], made to choose one class; raises UserError for a name that is none of the classes."""
    if not isinstance(spec, MixtureSpec):
        raise UserError(
            f"class {name!r}: this generator was not trained with networks.per_class=true and knows no classes"
        )
    if name not in spec.classes:
        raise UserError(f"no class {name!r}; choose from {', '.join(spec.classes)}")
    number = spec.classes.index(name)
    middle = torch.tensor((spec.cuts[number] + spec.cuts[number + 1]) / 2, dtype=torch.float64)
    first = torch.special.ndtri(middle).to(latents).expand(len(latents), 1)
    return torch.cat([first, latents[:, 1:]], 1)


def read_spec(plain: dict[str, Any]) -> GeneratorSpec:
    """The spec that `to_dict` gave, also after a trip through JSON; raises TypeError or KeyError for another dict."""
    if plain["architecture"] != MIXTURE:
        return GeneratorSpec(**plain)
    parts = {"part": GeneratorSpec(**plain["part"])}
    return MixtureSpec(
        **plain | parts | {name: tuple(plain[name]) for name in ("classes", "weights")}
    )


def build_from(spec: GeneratorSpec) -> nn.Module:
    """The generator or the mixture that a spec describes, with weights of no meaning yet."""
    return Mixture(spec) if isinstance(spec, MixtureSpec) else build_generator(spec)
