"""Names, units and meanings of all metrics of the training loop, and their means on the device between two ticks."""

from dataclasses import dataclass

import torch
from torch import Tensor

from distgan.runtime.distributed import World


@dataclass(frozen=True)
class Metric:
    """Unit and meaning of one metric; the prefix of its name makes the W&B panel."""

    unit: str
    sentence: str


METRICS = {
    "progress/kimg": Metric("thousand images", "Real images consumed; the x-axis of everything."),
    "progress/images": Metric("images", "Real images consumed."),
    "progress/epoch": Metric("epochs", "Passes over the dataset."),
    "loss/d": Metric("nats", "Discriminator's loss, the sum of its two parts."),
    "loss/d_real": Metric("nats", "Discriminator's loss on reals."),
    "loss/d_fake": Metric("nats", "Discriminator's loss on fakes."),
    "loss/g": Metric("nats", "Generator's loss."),
    "loss/d_relative": Metric(
        "ratio", "Discriminator's loss over its value where reals and fakes cannot be told apart."
    ),
    "loss/g_relative": Metric(
        "ratio", "Generator's loss over its value where reals and fakes cannot be told apart."
    ),
    "logits/real_mean": Metric("logit", "Mean verdict on reals; above zero is right."),
    "logits/fake_mean": Metric("logit", "Mean verdict on fakes; below zero is right."),
    "accuracy/d_real": Metric("share", "Reals that the discriminator holds to be real."),
    "accuracy/d_fake": Metric("share", "Fakes that the discriminator sees through."),
    "grad_norm/d": Metric("norm", "Gradient of the discriminator before its step."),
    "grad_norm/g": Metric("norm", "Gradient of the generator before its step."),
    "penalty/r1": Metric(
        "nats", "Penalty on the discriminator's gradient at reals, weighted; steps that have it."
    ),
    "penalty/r2": Metric(
        "nats", "Penalty on the discriminator's gradient at fakes, weighted; steps that have it."
    ),
    "penalty/gradient_penalty": Metric(
        "nats", "Penalty on gradient norms other than 1, weighted; steps that have it."
    ),
    "progress/augment": Metric("probability", "Adapted probability of each augmentation."),
    "diversity/mode_seeking": Metric(
        "nats", "Term for images that do not change with their latents, weighted."
    ),
    "diversity/feature_distance": Metric(
        "nats", "Term for fakes nearer to one another than reals, weighted."
    ),
    "diversity/batch_ratio": Metric(
        "ratio", "Mean distance of the fakes of a batch, in pixels, over that of reals."
    ),
    "diversity/batch_duplicates": Metric(
        "share", "Fakes of a batch nearer to another than 99 % of reals are."
    ),
    "time/images_per_sec": Metric(
        "images/s", "Real images consumed a second, all processes together."
    ),
    "time/data_wait_frac": Metric("share", "Part of the time that the step waited for images."),
    "time/train_sec": Metric("s", "Time in the training loop over all starts of this run."),
    "memory/peak_gb": Metric(
        "GB", "Most memory held: on the GPU where there is one, else of the process."
    ),
}


class RunningMeans:
    """Means of tensors over the steps of a tick, kept on the device: adding never waits for it."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, statistics: dict[str, Tensor]) -> None:
        """Note one step's scalars."""
        for name, value in statistics.items():
            self.sums[name] = (
                self.sums[name] + value if name in self.sums else value.detach().clone()
            )
            self.counts[name] = self.counts.get(name, 0) + 1

    def reduce(self, world: World) -> dict[str, float]:
        """Means over steps and ranks, then start anew. Collective: one reduction, one wait."""
        if not self.sums:
            return {}
        names = sorted(self.sums)
        means = torch.stack([self.sums[name].float() / self.counts[name] for name in names])
        reduced = (world.all_reduce_sum(means) / world.size).tolist()
        self.sums, self.counts = {}, {}
        return dict(zip(names, reduced, strict=True))
