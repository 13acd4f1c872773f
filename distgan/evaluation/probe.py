"""The probe: a small classifier of a dataset's own classes, whose features evaluate generators.

A probe is one safetensors file with a card in its header; probe_training.py makes them.
"""

import itertools
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field, TypeAdapter
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from distgan.errors import UserError
from distgan.evaluation.extractors import Extracted, Extractor, fit_images, weights_hash
from distgan.text import first_line
from shards.files import cache_folder, write_atomic

FEATURE_DIM = 128
WEAK = 0.3  # accuracy of a weak probe, on a scale from guessing (0) to always correct (1)


def probe_path(dataset_fingerprint: str) -> Path:
    """Return the file of a dataset's probe in the cache."""
    return cache_folder() / "probes" / f"{dataset_fingerprint[:16]}.safetensors"


@dataclass(frozen=True)
class ProbeCard:
    """The description of a probe."""

    dataset_fingerprint: str
    class_names: Annotated[tuple[str, ...], Field(min_length=1)]
    accuracy: float  # on held-out images, in [0, 1]
    channels: Annotated[int, Field(ge=1, le=16)]
    size: Annotated[int, Field(ge=1, le=8192)]  # pixels; other images are resized to it
    width: Annotated[int, Field(ge=1, le=1024)]  # channels of the first block
    num_train: int
    num_held_out: int

    @property
    def is_weak(self) -> bool:
        """Return whether it is little better than guessing, so that its features mean little."""
        guess = 1 / len(self.class_names)
        return self.accuracy - guess < WEAK * (1 - guess)


class ProbeNet(nn.Module):
    """Three blocks of two convolutions, with pooling between; features are means over positions."""

    def __init__(self, channels: int, width: int, num_classes: int) -> None:
        super().__init__()
        widths = (channels, width, 2 * width, FEATURE_DIM)
        layers: list[nn.Module] = []
        for wide_in, wide_out in itertools.pairwise(widths):
            for conv_in in (wide_in, wide_out):
                layers += [
                    nn.Conv2d(conv_in, wide_out, 3, padding=1, bias=False),
                    nn.BatchNorm2d(wide_out),
                    nn.ReLU(),
                ]
            layers.append(nn.MaxPool2d(2))
        self.body = nn.Sequential(*layers[:-1])
        self.head = nn.Linear(FEATURE_DIM, num_classes)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return features [B, 128] and logits [B, classes] of float [B, C, S, S] in [-1, 1]."""
        features = self.body(pixels).mean((2, 3))
        return features, self.head(features)


class Probe(Extractor):
    """A trained ProbeNet as a feature extractor."""

    name = "probe"
    dim = FEATURE_DIM

    def __init__(self, network: ProbeNet, card: ProbeCard) -> None:
        super().__init__()
        self.network = network.float().requires_grad_(False).eval()
        self.card = card
        self.class_names = card.class_names
        self.resize = f"to {card.size}x{card.size} (area or bilinear)"
        self.version = weights_hash(network, card.size)
        self.network.to(memory_format=torch.channels_last)  # a third faster on a CPU

    def extract(self, images: Tensor) -> Extracted:
        return Extracted(
            *self.network(fit_images(images, channels=self.card.channels, size=self.card.size))
        )

    def save(self, path: Path) -> None:
        """Write weights and card as one safetensors file, atomically."""
        weights = {
            name: tensor.cpu().contiguous() for name, tensor in self.network.state_dict().items()
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, save(weights, {"probe": json.dumps(asdict(self.card))}), shared=True)

    @classmethod
    def load(cls, path: Path) -> "Probe":
        """Return the probe in a file that `save` wrote; raises UserError for anything else."""
        try:
            with safe_open(path, framework="pt") as file:
                fields = json.loads((file.metadata() or {})["probe"])
                weights = {name: file.get_tensor(name) for name in sorted(file.keys())}
            card = TypeAdapter(ProbeCard).validate_python(fields)
            with torch.device("meta"):  # a wrong card might ask for any amount of memory
                network = ProbeNet(card.channels, card.width, len(card.class_names))
            network.load_state_dict(weights, assign=True)
        except FileNotFoundError:
            raise UserError(f"no probe at {path}; train one with: distgan probe SHARDS") from None
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(
                f"{path} is not a probe ({first_line(error)}); train one with: distgan probe SHARDS"
            ) from None
        return cls(network, card)


class StackedProbe(Extractor):
    """A probe of grey digits applied to each channel of stacked digits, which have 1,000 modes.

    The logit of mode abc is log p(a) + log p(b) + log p(c). Features are those of the three
    channels, concatenated.
    """

    name = "stacked-probe"

    def __init__(self, probe: Probe) -> None:
        super().__init__()
        assert probe.card.channels == 1, (
            f"a probe of {probe.card.channels}-channel images cannot classify one channel"
        )
        self.probe = probe
        self.dim = 3 * probe.dim
        names = probe.class_names
        self.class_names = tuple(a + b + c for a in names for b in names for c in names)
        self.resize = probe.resize
        self.version = weights_hash(self, "stacked", probe.card.size)

    def extract(self, images: Tensor) -> Extracted:
        if images.shape[1] != 3:
            raise UserError(f"stacked digits have 3 channels, these images have {images.shape[1]}")
        features, logits = self.probe.extract(images.reshape(-1, 1, *images.shape[2:]))
        assert logits is not None
        a, b, c = logits.log_softmax(1).view(len(images), 3, -1).unbind(1)
        modes = a[:, :, None, None] + b[:, None, :, None] + c[:, None, None, :]
        return Extracted(features.view(len(images), -1), modes.flatten(1))
