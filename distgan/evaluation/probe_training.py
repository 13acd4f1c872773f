"""Training of a probe on labelled images."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from distgan.errors import UserError
from distgan.evaluation.extractors import fit_images
from distgan.evaluation.probe import Probe, ProbeCard, ProbeNet
from distgan.images import to_uint8

ROUNDS_KIMG = (60.0, 300.0)  # the second only if the first does not reach GOOD_ACCURACY
GOOD_ACCURACY = 0.98
FEWEST_IMAGES = 20
MOST_HELD_OUT = 5000
MOST_PIXELS = 32  # larger images are shrunk to this height and width

Progress = Callable[[float, float], None]


@dataclass(frozen=True)
class Recipe:
    """How a probe is trained."""

    flip: bool
    seed: int
    precision: torch.dtype
    progress: Progress | None


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
    progress: Progress | None = None,
) -> Probe:
    """Train a classifier of `images(indices [n]) -> uint8 [n, C, H, W]` with `labels` int64 [N].

    A tenth of the images, at most 5,000, is held out to measure the accuracy. Training takes `kimg`
    thousand images; None means 60, and again 300 from the start if the accuracy is below 0.98.
    `flip` mirrors images at random, which suits photographs but not digits. `progress(fraction of
    the training done, accuracy on the last batch)` is called every few steps. Raises UserError for
    fewer than two classes or 20 images.
    """
    check_labels(labels, class_names)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))[:max_images]
    device = device or torch.device("cpu")
    pixels, classes = load_pixels(images, order).to(device), labels[order].to(device)
    num_held_out = min(len(order) // 10, MOST_HELD_OUT)
    held_out, train = slice(num_held_out), slice(num_held_out, None)
    card = ProbeCard(
        dataset_fingerprint,
        class_names,
        accuracy=0.0,
        channels=pixels.shape[1],
        size=pixels.shape[2],
        width=width,
        num_train=len(order) - num_held_out,
        num_held_out=num_held_out,
    )
    recipe = Recipe(flip, seed, precision, progress)
    for round_kimg in ROUNDS_KIMG if kimg is None else (kimg,):
        network = fit_probe(pixels[train], classes[train], card, recipe, kimg=round_kimg)
        accuracy = accuracy_of(Probe(network, card), pixels[held_out], classes[held_out])
        if accuracy >= GOOD_ACCURACY:
            break
    return Probe(network, replace(card, accuracy=accuracy))


def check_labels(labels: Tensor, class_names: tuple[str, ...]) -> None:
    """Raise UserError if there is too little to learn from."""
    num_present = len(torch.unique(labels))
    if min(len(class_names), num_present) < 2:
        raise UserError(
            f"a probe needs images of at least two classes, these have {num_present}; "
            "pack class folders to label them"
        )
    if len(labels) < FEWEST_IMAGES:
        raise UserError(f"a probe needs at least {FEWEST_IMAGES} images, there are {len(labels)}")


def load_pixels(images: Callable[[Tensor], Tensor], order: Tensor) -> Tensor:
    """Return the images with these indices as square uint8 [n, C, S, S] of at most 32 pixels."""
    first = images(order[:1])
    channels, size = first.shape[1], min(*first.shape[2:], MOST_PIXELS)
    parts = (fit_images(images(part), channels=channels, size=size) for part in order.split(512))
    return torch.cat([to_uint8(part) for part in parts])


def fit_probe(
    pixels: Tensor, classes: Tensor, card: ProbeCard, recipe: Recipe, *, kimg: float
) -> ProbeNet:
    """Train with AdamW and a one-cycle learning rate on uint8 `pixels` [n, C, S, S]."""
    device, draw = pixels.device, torch.Generator().manual_seed(recipe.seed)
    network = build_network(card, seed=recipe.seed).to(device)
    batch = min(128, len(pixels))
    num_steps = max(10, round(1000 * kimg / batch))
    optimizer = torch.optim.AdamW(network.parameters(), lr=4e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 4e-3, total_steps=num_steps, pct_start=0.25
    )
    batches = endless_batches(len(pixels), batch, draw)
    for step, chosen in zip(range(num_steps), batches, strict=False):
        chosen = chosen.to(device)
        inputs = augment(pixels[chosen], draw, flip=recipe.flip).float() / 127.5 - 1
        is_mixed = recipe.precision != torch.float32
        with torch.autocast(device.type, recipe.precision, enabled=is_mixed):
            _, logits = network(inputs.contiguous(memory_format=torch.channels_last))
        loss = nn.functional.cross_entropy(logits.float(), classes[chosen], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if recipe.progress is not None and (step % 20 == 0 or step == num_steps - 1):
            accuracy = (logits.argmax(1) == classes[chosen]).float().mean()
            recipe.progress((step + 1) / num_steps, float(accuracy))
    return network


def build_network(card: ProbeCard, *, seed: int) -> ProbeNet:
    """Return an untrained network without changing the global random state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = ProbeNet(card.channels, card.width, len(card.class_names))
    return network.to(memory_format=torch.channels_last)


def accuracy_of(probe: Probe, images: Tensor, labels: Tensor) -> float:
    """Return the fraction of uint8 images [n, C, H, W] that are classified as labelled."""
    num_correct = 0
    for part, truth in zip(images.split(500), labels.split(500), strict=True):
        logits = probe(part).logits
        assert logits is not None
        num_correct += int((logits.argmax(1) == truth).sum())
    return num_correct / len(labels)


def endless_batches(num: int, batch: int, draw: torch.Generator) -> Iterator[Tensor]:
    """Yield batches of indices in shuffled passes, forever; incomplete batches are dropped."""
    while True:
        yield from torch.randperm(num, generator=draw).split(batch)[: num // batch]


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
