"""Rates measured over several repeats."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from distgan.text import format_number


@dataclass(frozen=True)
class Rate:
    """Median, least and most of a rate over several repeats."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, rates: Sequence[float]) -> "Rate":
        """Summarize the rates of the repeats, of which there is at least one."""
        return cls(statistics.median(rates), min(rates), max(rates))

    def __str__(self) -> str:
        median, least, most = (
            format_number(number, digits=3) for number in (self.median, self.least, self.most)
        )
        return f"{median} ({least} to {most})"


def measure_rate(work: Callable[[], int], *, repeats: int) -> Rate:
    """Return how many items per second `work` processes; it returns the number of each call.

    A first call, which is not measured, warms up.
    """
    work()
    rates = []
    for _ in range(repeats):
        began = time.perf_counter()
        num_items = work()
        rates.append(num_items / (time.perf_counter() - began))
    return Rate.of(rates)
