"""How long a run will take and how much disk it needs, from the time of its first steps."""

import time

import torch

from distgan.config.schema import Config
from distgan.gan import GAN
from distgan.run.schedule import Schedule
from distgan.text import format_bytes, format_duration, pluralize

WARM_UP_STEPS = 3  # networks are compiled, and algorithms chosen, in the first steps
MEASURED_STEPS = 8  # at least, and among them one with penalties in most runs
MEASURED_SEC, MOST_SEC = 1.0, 5.0
OTHER_CHECKPOINTS = 2  # besides the newest: the best and the last healthy one


class StepClock:
    """The speed of the steps that a run takes first, measured once."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.num_steps, self.is_done = device, 0, False

    def tick(self, num_images: int, *, pause_sec: float = 0.0) -> float | None:
        """Count a step; return images per second as soon as enough is measured, and only then.

        `pause_sec` is the time of all pauses so far, which does not count.
        """
        self.num_steps += 1
        measured = self.num_steps - WARM_UP_STEPS
        if measured == 0:
            synchronize(self.device)
            self.began = time.monotonic() - pause_sec
        if measured <= 0 or self.is_done:
            return None
        seconds = time.monotonic() - pause_sec - self.began
        if seconds < (MEASURED_SEC if measured >= MEASURED_STEPS else MOST_SEC):
            return None
        self.is_done = True
        synchronize(self.device)
        return measured * num_images / (time.monotonic() - pause_sec - self.began)


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def describe_duration(schedule: Schedule, *, images_seen: int, speed: float) -> str:
    """Return a sentence about the rest of a run whose steps alone have this speed in images/s."""
    left = schedule.total_images - images_seen
    counts = [
        pluralize(schedule.num_due(name, after=images_seen), noun)
        for name, noun in (
            ("evaluation", "evaluation"),
            ("samples", "sample grid"),
            ("checkpoint", "checkpoint"),
        )
    ]
    return (
        f"about {format_duration(left / speed)} for the steps, at {speed:,.0f} images/s; "
        f"besides, {', '.join(counts[:-1])} and {counts[-1]}"
    )


def describe_disk(gan: GAN, config: Config, schedule: Schedule) -> str:
    """Return a sentence about the disk that a run needs. The optimizers must have taken a step."""
    checkpoint = sum(tensor.nbytes for tensor in gan.state()[0].values())
    total = schedule.num_due("checkpoint", after=0)
    kept = min(total, config.checkpoint.keep + OTHER_CHECKPOINTS)
    return (
        f"about {format_bytes(kept * checkpoint)}: up to {pluralize(kept, 'checkpoint')} of "
        f"{format_bytes(checkpoint)}"
    )
