"""The training loop of a probe, whose state can be saved after any step and restored."""

import copy
import itertools
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from distgan.evaluation.probe import ProbeCard, ProbeNet
from distgan.evaluation.probe_schedule import ProbeSchedule
from distgan.runtime.randomness import purpose_key

BATCH_SIZE = 128
LEARNING_RATE = 4e-3
EMA_HALFLIFE = 4000.0  # images
EMA_RAMP_UP = 0.05  # the half-life is at most this fraction of the images so far


@dataclass(frozen=True)
class LabelledImages:
    """Square images, uint8 [N, C, S, S], and their classes, int64 [N], on one device."""

    pixels: Tensor
    classes: Tensor

    def __len__(self) -> int:
        return len(self.classes)

    def __getitem__(self, chosen: slice) -> "LabelledImages":
        return LabelledImages(self.pixels[chosen], self.classes[chosen])


@dataclass(frozen=True)
class Recipe:
    """Settings with which a probe is trained."""

    flip: bool
    seed: int
    precision: torch.dtype


class ProbeLoop:
    """A training with AdamW and a moving average of the weights, which becomes the probe.

    Each step's images and augmentation depend on the seed and on the number of the step only. A
    restored training therefore continues like one that was never interrupted.
    """

    def __init__(
        self, images: LabelledImages, card: ProbeCard, recipe: Recipe, schedule: ProbeSchedule
    ) -> None:
        self.images, self.recipe, self.schedule = images, recipe, schedule
        self.device = images.pixels.device
        self.network = build_network(card, seed=recipe.seed).to(self.device)
        self.averaged = copy.deepcopy(self.network).eval().requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=LEARNING_RATE, weight_decay=0.05
        )
        self.batch_size = min(BATCH_SIZE, len(images))
        self.batches = self.batches_from(0)

    def batches_from(self, step: int) -> Iterator[tuple[int, Tensor]]:
        """Yield (step, indices) forever, in shuffled passes; incomplete batches are dropped."""
        steps_per_pass = len(self.images) // self.batch_size
        for number in itertools.count(step // steps_per_pass):
            draw = seeded(self.recipe.seed, f"probe pass {number}")
            chosen = torch.randperm(len(self.images), generator=draw).split(self.batch_size)
            for place in range(step % steps_per_pass, steps_per_pass):
                yield number * steps_per_pass + place, chosen[place]
            step = 0

    def step(self) -> None:
        """Train on one batch, and count its images."""
        step, chosen = next(self.batches)
        chosen = chosen.to(self.device)
        draw = seeded(self.recipe.seed, f"probe step {step}")
        pixels = augment(self.images.pixels[chosen], draw, flip=self.recipe.flip)
        for group in self.optimizer.param_groups:
            group["lr"] = LEARNING_RATE * self.schedule.factor
        logits = self.logits(self.network, pixels)
        loss = nn.functional.cross_entropy(
            logits, self.images.classes[chosen], label_smoothing=0.05
        )
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.schedule.add(self.batch_size)
        self.update_average()

    def logits(self, network: ProbeNet, pixels: Tensor) -> Tensor:
        """Return float32 logits of uint8 pixels, computed in the precision of the recipe."""
        inputs = (pixels.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)
        is_mixed = self.recipe.precision != torch.float32
        with torch.autocast(self.device.type, self.recipe.precision, enabled=is_mixed):
            return network(inputs)[1].float()

    @torch.no_grad()
    def update_average(self) -> None:
        """Move the averaged weights and statistics towards those of the network."""
        halflife = min(EMA_HALFLIFE, EMA_RAMP_UP * self.schedule.images)
        weight = 1 - 0.5 ** (self.batch_size / halflife)
        averages, values = self.averaged.state_dict(), self.network.state_dict()
        names = [name for name, value in values.items() if value.dtype.is_floating_point]
        torch._foreach_lerp_([averages[n] for n in names], [values[n] for n in names], weight)

    @torch.no_grad()
    def check(self, held_out: LabelledImages) -> None:
        """Measure the accuracy of the averaged network on images that it was not trained on."""
        num_correct = 0
        for start in range(0, len(held_out), 500):
            part = held_out[start : start + 500]
            num_correct += int(
                (self.logits(self.averaged, part.pixels).argmax(1) == part.classes).sum()
            )
        self.schedule.add_check(num_correct / len(held_out))

    def state_dict(self) -> dict[str, Any]:
        """Return all that a later process needs to continue."""
        return {
            "schedule": asdict(self.schedule),
            "network": self.network.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state; raises an error of any kind if it does not fit."""
        self.network.load_state_dict(state["network"])
        self.averaged.load_state_dict(state["averaged"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule = ProbeSchedule(**state["schedule"])
        self.batches = self.batches_from(self.schedule.images // self.batch_size)


def build_network(card: ProbeCard, *, seed: int) -> ProbeNet:
    """Return an untrained network without changing the global random state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = ProbeNet(card.channels, card.width, len(card.class_names))
    return network.to(memory_format=torch.channels_last)


def seeded(seed: int, purpose: str) -> torch.Generator:
    """Return a random generator that depends on nothing but its arguments."""
    return torch.Generator().manual_seed(purpose_key(seed, purpose))


def augment(pixels: Tensor, draw: torch.Generator, *, flip: bool) -> Tensor:
    """Shift the batch by up to an eighth of its size, repeating edge pixels.

    With `flip`, also mirror each image with probability 1/2.
    """
    reach = pixels.shape[-1] // 8
    padded = nn.functional.pad(pixels.float(), (reach,) * 4, mode="replicate").to(pixels.dtype)
    down, right = torch.randint(2 * reach + 1, (2,), generator=draw).tolist()
    shifted = padded[:, :, down : down + pixels.shape[2], right : right + pixels.shape[3]]
    if not flip:
        return shifted
    mirrored = (torch.rand(len(pixels), generator=draw) < 0.5).to(pixels.device)
    return torch.where(mirrored[:, None, None, None], shifted.flip(3), shifted)
