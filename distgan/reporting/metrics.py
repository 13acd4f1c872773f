"""Means of training metrics between two reports, kept on the device, and labels of metrics."""

from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor

from distgan.runtime.distributed import World

LABELS = {
    "quality/frechet": "Fréchet distance",
    "quality/kernel": "kernel distance",
    "quality/fid": "FID",
    "quality/kid": "KID",
}
DISTANCES = ("quality/frechet", "quality/fid")


def metric_label(name: str) -> str:
    """Return a metric's name for people, such as `coverage` for `quality/coverage`."""
    return LABELS.get(name, name.rpartition("/")[2].replace("_", " "))


def explain_distance(values: Mapping[str, float], reals: Mapping[str, float]) -> str:
    """Return what the Fréchet distance of an evaluation means; empty if it has none."""
    name = next((name for name in DISTANCES if name in values and name in reals), None)
    if name is None:
        return ""
    return (
        f"{metric_label(name)}: how much generated images as a whole differ from real ones. Lower "
        f"is better; real images score {reals[name]:.2g}. docs/metrics.md says what runs score."
    )


class RunningMeans:
    """Means of scalar tensors over steps. The sums stay on the device, so `add` never waits."""

    def __init__(self) -> None:
        self.sums: dict[tuple[str, ...], Tensor] = {}  # one vector for each set of names
        self.counts: Counter[tuple[str, ...]] = Counter()

    def add(self, metrics: dict[str, Tensor]) -> None:
        """Add the scalars of one step, if there are any."""
        if not metrics:
            return
        names, values = tuple(metrics), torch.stack([value.float() for value in metrics.values()])
        self.sums[names] = self.sums[names] + values if names in self.sums else values
        self.counts[names] += 1

    def reduce(self, world: World) -> dict[str, float]:
        """Return the means over steps and ranks, and reset them. Collective: one reduction."""
        if not self.sums:
            return {}
        sums: dict[str, Tensor] = {}
        counts: Counter[str] = Counter()
        for names, values in self.sums.items():
            for name, value in zip(names, values, strict=True):
                sums[name] = sums[name] + value if name in sums else value
                counts[name] += self.counts[names]
        names = tuple(sorted(sums))
        means = torch.stack([sums[name] / counts[name] for name in names])
        reduced = (world.all_reduce_sum(means) / world.size).tolist()
        self.sums, self.counts = {}, Counter()
        return dict(zip(names, reduced, strict=True))
