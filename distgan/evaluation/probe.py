"""The probe: a small classifier of a dataset's own labels, whose features score generators without the internet.

images, labels --train_probe--> Probe --save--> one safetensors file, its description in the header
"""

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from distgan.errors import UserError
from distgan.evaluation.extractors import Extracted, Extractor, fit_images, weights_hash
from shards.files import cache_folder, write_atomic

FEATURE_DIM = 128
ROUNDS_KIMG = (60.0, 300.0)  # the second only where the first does not reach
GOOD_ACCURACY = 0.98
WEAK = 0.3  # of the way from a guess to always right


def probe_path(dataset_fingerprint: str) -> Path:
    """The cached probe of a dataset."""
    return cache_folder() / "probes" / f"{dataset_fingerprint[:16]}.safetensors"


@dataclass(frozen=True)
class ProbeCard:
    """What is known of a probe; `accuracy` is the share of held-out images named rightly, in [0, 1]."""

    dataset_fingerprint: str
    class_names: tuple[str, ...]
    accuracy: float
    channels: int
    size: int  # pixels; images of another size are resized to it
    width: int  # channels of the first block
    num_train: int
    num_held_out: int

    @property
    def is_weak(self) -> bool:
        """Whether it tells the classes apart hardly better than a guess would, so that its features say little."""
        guess = 1 / len(self.class_names)
        return self.accuracy - guess < WEAK * (1 - guess)


class ProbeNet(nn.Module):
    """Three blocks of two convolutions, each halving the image; features are the mean over what is left."""

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
        """float [B, C, S, S] in [-1, 1] -> features [B, 128], logits [B, classes]."""
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
        """Write weights and card as one safetensors file, all or nothing."""
        weights = {
            name: tensor.cpu().contiguous() for name, tensor in self.network.state_dict().items()
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, save(weights, {"probe": json.dumps(asdict(self.card))}), shared=True)

    @classmethod
    def load(cls, path: Path) -> "Probe":
        """Read what `save` wrote; raises UserError for anything else."""
        try:
            with safe_open(path, framework="pt") as file:
                fields = json.loads((file.metadata() or {})["probe"])
                weights = {name: file.get_tensor(name) for name in sorted(file.keys())}
            card = ProbeCard(**fields | {"class_names": tuple(fields["class_names"])})
            network = ProbeNet(card.channels, card.width, len(card.class_names))
            network.load_state_dict(weights)
        except FileNotFoundError:
            raise UserError(f"no probe at {path}; train one with: distgan probe SHARDS") from None
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(
                f"{path} is not a probe ({error}); train one with: distgan probe SHARDS"
            ) from None
        return cls(network, card)


class StackedProbe(Extractor):
    """A probe of single-channel digits, read on each of three channels: the 1,000 modes of stacked digits.

    Mode abc of a stack has the logit log p(a) + log p(b) + log p(c); features are the three channels' side by side.
    """

    name = "stacked-probe"

    def __init__(self, probe: Probe) -> None:
        super().__init__()
        assert probe.card.channels == 1, (
            f"a probe of {probe.card.channels} channels cannot read one"
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


def train_probe(
    images: Callable[[Tensor], Tensor],
    labels: Tensor,
    *,
    class_names: tuple[str, ...],
    dataset_fingerprint: str,
    flip: bool = False,
    kimg: float | None = None,
    max_images: int = 60_000,
    width: int = 32,
    seed: int = 0,
    device: torch.device | None = None,
    precision: torch.dtype = torch.float32,
    progress: Callable[[float, float], None] | None = None,
) -> Probe:
    """Train a classifier of `images(indices [n]) -> uint8 [n, C, H, W]`; `labels` is int64 [N].

    Holds out a tenth (at most 5,000) for the accuracy on the card. Shows `kimg` thousand images in all; None tries
    60 and, where that leaves the accuracy below 0.98, starts again with 300. `precision` torch.bfloat16 is faster where
    the hardware is. `flip` mirrors at random: right for photographs, wrong for digits. `progress(share of the round
    done, accuracy on the last batch)` is called every few steps. Raises UserError where there is nothing to tell apart.
    """
    present = len(torch.unique(labels))
    if min(len(class_names), present) < 2:
        raise UserError(
            f"a probe needs images of at least two classes, these have {present}; pack class folders to label them"
        )
    if len(labels) < 20:
        raise UserError(f"a probe needs at least 20 images, there are {len(labels)}")
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))[:max_images]
    num_held_out = min(len(order) // 10, 5000)
    first = images(order[:1])
    channels, size = first.shape[1], min(*first.shape[2:], 32)
    shrunk = [
        to_uint8(fit_images(images(part), channels=channels, size=size))
        for part in order.split(512)
    ]
    device = device or torch.device("cpu")
    pixels, classes = torch.cat(shrunk).to(device), labels[order].to(device)
    card = ProbeCard(
        dataset_fingerprint,
        class_names,
        accuracy=0.0,
        channels=channels,
        size=size,
        width=width,
        num_train=len(order) - num_held_out,
        num_held_out=num_held_out,
    )
    for round_kimg in ROUNDS_KIMG if kimg is None else (kimg,):
        network = fit_probe(
            pixels[num_held_out:],
            classes[num_held_out:],
            card,
            kimg=round_kimg,
            flip=flip,
            seed=seed,
            precision=precision,
            progress=progress,
        )
        accuracy = accuracy_of(Probe(network, card), pixels[:num_held_out], classes[:num_held_out])
        if accuracy >= GOOD_ACCURACY:
            break
    return Probe(network, replace(card, accuracy=accuracy))


def fit_probe(
    pixels: Tensor,
    classes: Tensor,
    card: ProbeCard,
    *,
    kimg: float,
    flip: bool,
    seed: int,
    precision: torch.dtype,
    progress: Callable[[float, float], None] | None,
) -> ProbeNet:
    """One round of AdamW with a one-cycle learning rate on uint8 `pixels` [n, C, S, S] and int64 `classes` [n]."""
    device, draw = pixels.device, torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = (
            ProbeNet(card.channels, card.width, len(card.class_names))
            .to(device)
            .to(memory_format=torch.channels_last)
        )
    batch = min(128, len(pixels))
    num_steps = max(10, round(1000 * kimg / batch))
    optimizer = torch.optim.AdamW(network.parameters(), lr=4e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 4e-3, total_steps=num_steps, pct_start=0.25
    )
    for step, chosen in zip(
        range(num_steps), endless_batches(len(pixels), batch, draw), strict=False
    ):
        chosen = chosen.to(device)
        inputs = augment(pixels[chosen], draw, flip=flip).float() / 127.5 - 1
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            _, logits = network(inputs.contiguous(memory_format=torch.channels_last))
        loss = nn.functional.cross_entropy(logits.float(), classes[chosen], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if progress is not None and (step % 20 == 0 or step == num_steps - 1):
            progress(
                (step + 1) / num_steps, float((logits.argmax(1) == classes[chosen]).float().mean())
            )
    return network


def accuracy_of(probe: Probe, images: Tensor, labels: Tensor) -> float:
    """The share of uint8 images [n, C, H, W] that the probe names as labelled, in [0, 1]."""
    right = 0
    for part, truth in zip(images.split(500), labels.split(500), strict=True):
        logits = probe(part).logits
        assert logits is not None
        right += int((logits.argmax(1) == truth).sum())
    return right / len(labels)


def endless_batches(num: int, batch: int, draw: torch.Generator) -> Iterator[Tensor]:
    """Index batches of shuffled passes, forever; what is left over at a pass's end is dropped."""
    while True:
        yield from torch.randperm(num, generator=draw).split(batch)[: num // batch]


def augment(pixels: Tensor, draw: torch.Generator, *, flip: bool) -> Tensor:
    """Shift by up to an eighth in both directions (edges fill up), and mirror half of the images where `flip`."""
    reach = pixels.shape[-1] // 8
    padded = nn.functional.pad(pixels.float(), (reach,) * 4, mode="replicate").to(pixels.dtype)
    down, right = torch.randint(2 * reach + 1, (2,), generator=draw).tolist()
    shifted = padded[:, :, down : down + pixels.shape[2], right : right + pixels.shape[3]]
    if not flip:
        return shifted
    mirrored = (torch.rand(len(pixels), generator=draw) < 0.5).to(pixels.device)
    return torch.where(mirrored[:, None, None, None], shifted.flip(3), shifted)


def to_uint8(pixels: Tensor) -> Tensor:
    """float [-1, 1] -> uint8, rounded."""
    return ((pixels + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
