"""Means of training metrics between two reports, kept on the device, and labels of metrics."""

import torch
from torch import Tensor

from distgan.runtime.distributed import World

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
