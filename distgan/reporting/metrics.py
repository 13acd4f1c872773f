"""Metrics of the training loop: what each one is, and their means on the device between two reports."""

import torch
from torch import Tensor

from distgan.evaluation.metrics import Metric
from distgan.runtime.distributed import World

TRAINING_METRICS = {
    "progress/kimg": Metric(
        "Real images consumed, in thousands: the x-axis of all charts.", "thousand images"
    ),
    "progress/images": Metric("Real images consumed.", "images"),
    "progress/epoch": Metric("Passes over the dataset.", "epochs"),
    "loss/d": Metric(
        "Discriminator loss: the sum of its parts on real and generated images.", "nats"
    ),
    "loss/d_real": Metric("Discriminator loss on real images.", "nats"),
    "loss/d_fake": Metric("Discriminator loss on generated images.", "nats"),
    "loss/g": Metric("Generator loss.", "nats"),
    "loss/d_relative": Metric(
        "Discriminator loss over its value when real and generated images look the same to it.",
        "ratio",
    ),
    "loss/g_relative": Metric(
        "Generator loss over its value when real and generated images look the same to the "
        "discriminator.",
        "ratio",
    ),
    "logits/real_mean": Metric("Mean logit of real images; above 0 is correct.", "logit"),
    "logits/fake_mean": Metric("Mean logit of generated images; below 0 is correct.", "logit"),
    "accuracy/d_real": Metric("Real images that the discriminator classifies as real.", "fraction"),
    "accuracy/d_fake": Metric(
        "Generated images that the discriminator classifies as generated.", "fraction"
    ),
    "grad_norm/d": Metric(
        "Gradient of all discriminator parameters before the optimizer step.", "L2 norm"
    ),
    "grad_norm/g": Metric(
        "Gradient of all generator parameters before the optimizer step.", "L2 norm"
    ),
    "penalty/r1": Metric(
        "Weighted penalty on the discriminator's gradient at real images, in steps that have it.",
        "nats",
    ),
    "penalty/r2": Metric(
        "Weighted penalty on the discriminator's gradient at generated images, in steps that have "
        "it.",
        "nats",
    ),
    "penalty/gradient_penalty": Metric(
        "Weighted penalty on gradient norms other than 1, in steps that have it.", "nats"
    ),
    "progress/augment": Metric(
        "Probability of each augmentation, as adapted so far.", "probability"
    ),
    "diversity/mode_seeking": Metric(
        "Weighted loss term against images that do not change with their latents.", "nats"
    ),
    "diversity/feature_distance": Metric(
        "Weighted loss term against generated images that are more alike than real ones.", "nats"
    ),
    "diversity/batch_ratio": Metric(
        "Mean pixel distance between the generated images of a batch, over that of real images.",
        "ratio",
    ),
    "diversity/batch_duplicates": Metric(
        "Generated images of a batch that are closer to another one than 99 % of real images are.",
        "fraction",
    ),
    "time/images_per_sec": Metric(
        "Real images consumed per second by all processes, pauses for samples and evaluations "
        "included.",
        "images/s",
    ),
    "time/data_wait_frac": Metric("Part of the time that training waited for images.", "fraction"),
    "time/train_sec": Metric("Time in the training loop, over all starts of the run.", "s"),
    "memory/peak_gb": Metric("Peak memory: of the GPU if there is one, else of the process.", "GB"),
}
"""The columns of metrics.jsonl. In W&B, the part of the name before the slash is a panel."""

LABELS = {
    "quality/frechet": "Fréchet distance",
    "quality/kernel": "kernel distance",
    "quality/fid": "FID",
    "quality/kid": "KID",
}


def metric_label(name: str) -> str:
    """Return a metric's name for people, such as `coverage` for `quality/coverage`."""
    return LABELS.get(name, name.rpartition("/")[2].replace("_", " "))


class RunningMeans:
    """Means of scalar tensors over steps. The sums stay on the device, so `add` never waits."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, metrics: dict[str, Tensor]) -> None:
        """Add the scalars of one step."""
        for name, value in metrics.items():
            if name in self.sums:
                self.sums[name] = self.sums[name] + value
            else:
                self.sums[name] = value.detach().clone()
            self.counts[name] = self.counts.get(name, 0) + 1

    def reduce(self, world: World) -> dict[str, float]:
        """Return the means over steps and ranks, and start anew. Collective: one reduction."""
        if not self.sums:
            return {}
        names = sorted(self.sums)
        means = torch.stack([self.sums[name].float() / self.counts[name] for name in names])
        reduced = (world.all_reduce_sum(means) / world.size).tolist()
        self.sums, self.counts = {}, {}
        return dict(zip(names, reduced, strict=True))
