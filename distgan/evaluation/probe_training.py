"""Training of a probe on labelled images, which can be interrupted and resumed."""

import io
import logging
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distgan.errors import UserError
from distgan.evaluation.extractors import fit_images
from distgan.evaluation.probe import Probe, ProbeCard
from distgan.evaluation.probe_loop import LabelledImages, ProbeLoop, Recipe
from distgan.evaluation.probe_schedule import ProbeSchedule
from distgan.images import to_uint8
from distgan.text import first_line
from shards.files import write_atomic

FEWEST_IMAGES = 20
MOST_HELD_OUT = 5000
MOST_CHECKED = 2000  # held-out images that measure the accuracy during the training
MOST_PIXELS = 32  # larger images are shrunk to this height and width
SECONDS_BETWEEN_SAVES = 5.0
TRIAL = 0.1  # fraction of the time after which the rate is taken to be known

Progress = Callable[[float, float | None, float], None]


def train_probe(
    images: Callable[[Tensor], Tensor],
    labels: Tensor,
    *,
    class_names: tuple[str, ...],
    dataset_fingerprint: str,
    flip: bool = False,
    kimg: float | None = None,
    minutes: float | None = None,
    max_images: int = 60_000,
    width: int = 32,
    seed: int = 0,
    device: torch.device | None = None,
    precision: torch.dtype = torch.float32,
    state_file: Path | None = None,
    progress: Progress | None = None,
) -> Probe:
    """Train a classifier of `images(indices [n]) -> uint8 [n, C, H, W]` with `labels` int64 [N].

    A tenth of the images, at most 5,000, is held out to measure the accuracy. Training ends when
    that accuracy is 0.98 or no longer improves, at the latest after `kimg` thousand images (210 if
    it is None) or after `minutes` of this call. `flip` mirrors images at random, which suits
    photographs but not digits.

    Every few seconds the training is saved to `state_file`, from which an equal call resumes it.
    Only with `minutes` does an interruption change the result. `progress(fraction done, held-out
    accuracy so far or None, most seconds left)` is called after each step.

    Raises UserError for fewer than two classes or 20 images.
    """
    check_labels(labels, class_names)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))[:max_images]
    device = device or torch.device("cpu")
    loaded = LabelledImages(load_pixels(images, order).to(device), labels[order].to(device))
    num_held_out = min(len(order) // 10, MOST_HELD_OUT)
    held_out, train = loaded[:num_held_out], loaded[num_held_out:]
    card = ProbeCard(
        dataset_fingerprint,
        class_names,
        accuracy=0.0,
        channels=loaded.pixels.shape[1],
        size=loaded.pixels.shape[2],
        width=width,
        num_train=len(train),
        num_held_out=num_held_out,
    )
    schedule = ProbeSchedule.of_length(kimg)
    loop = ProbeLoop(train, card, Recipe(flip, seed, precision), schedule)
    identity = {"card": repr(card), "flip": flip, "seed": seed, "longest": schedule.longest}
    state = TrainingState(state_file, identity)
    state.restore(loop)
    seconds = math.inf if minutes is None else 60 * minutes
    run_loop(loop, held_out[:MOST_CHECKED], seconds=seconds, state=state, progress=progress)
    probe = Probe(loop.averaged, card)
    return Probe(loop.averaged, replace(card, accuracy=accuracy_of(probe, held_out)))


class TrainingState:
    """The file in which an unfinished training is saved."""

    def __init__(self, path: Path | None, identity: dict[str, Any]) -> None:
        self.path, self.identity = path, identity
        self.last_save = time.monotonic()

    def restore(self, loop: ProbeLoop) -> None:
        """Continue a saved training of equal settings, if there is one.

        A file that cannot be read, or of other settings, will be replaced.
        """
        if self.path is None or not self.path.exists():
            return
        try:
            state = torch.load(self.path, map_location=loop.device, weights_only=True)
            if state["identity"] != self.identity:
                raise ValueError("it has other settings")
            loop.load_state_dict(state["loop"])
        except Exception as error:  # a damaged file raises errors of many kinds
            logging.getLogger(__name__).warning(
                "the interrupted training in %s cannot be resumed (%s); training starts again",
                self.path,
                first_line(error),
            )

    def save_sometimes(self, loop: ProbeLoop) -> None:
        """Save the training, unless it was saved a few seconds ago."""
        if self.path is None or time.monotonic() - self.last_save < SECONDS_BETWEEN_SAVES:
            return
        state = {"identity": self.identity, "loop": loop.state_dict()}
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_atomic(self.path, buffer.getvalue())
        self.last_save = time.monotonic()


def run_loop(
    loop: ProbeLoop,
    held_out: LabelledImages,
    *,
    seconds: float,
    state: TrainingState,
    progress: Progress | None,
) -> None:
    """Train until the schedule ends, which is fitted into so many seconds."""
    fraction, start, first = 0.0, time.monotonic(), loop.schedule.images
    while not loop.schedule.is_complete and time.monotonic() - start < seconds:
        loop.step()
        schedule = loop.schedule
        if schedule.needs_check:
            loop.check(held_out)
        passed = time.monotonic() - start
        rate = (schedule.images - first) / max(passed, 1e-9)
        if passed > TRIAL * seconds:
            schedule.fit_into(int(rate * (seconds - passed)))
        state.save_sometimes(loop)
        if progress is not None:
            left = min((schedule.end - schedule.images) / rate, seconds - passed)
            of_images, of_time = schedule.images / schedule.end, passed / seconds
            fraction = min(1.0, max(fraction, of_images, of_time))
            progress(fraction, schedule.accuracy, max(0.0, left))


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


def accuracy_of(probe: Probe, held_out: LabelledImages) -> float:
    """Return the fraction of images that are classified as labelled."""
    num_correct = 0
    for start in range(0, len(held_out), 500):
        part = held_out[start : start + 500]
        logits = probe(part.pixels).logits
        assert logits is not None
        num_correct += int((logits.argmax(1) == part.classes).sum())
    return num_correct / len(held_out)
