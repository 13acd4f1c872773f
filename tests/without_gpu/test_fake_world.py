"""What a run communicates in a world of 8 and of 1,024 ranks, seen from rank zero."""

import math
from functools import cache
from typing import Any

import pytest

from tests.without_gpu.fake_world import NUM_SAMPLES, NUM_STEPS, run
from tests.without_gpu.processes import run_recipe

SIZES = (8, 1024)


@cache
def collectives(size: int, words: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return what a run of a world of this size communicates."""
    return run_recipe(run, size, "cifar10", list(words))


@pytest.mark.parametrize("words", [(), ("loss.augment_target=0.6", 'loss.augment=["color"]')])
def test_a_step_reduces_the_gradients_of_each_network_once(words: tuple[str, ...]) -> None:
    """In one piece, whatever the size of the world; adapting the augmentation adds one number."""
    found = collectives(1024, words)
    step = {k: v for k, v in found["collectives"].items() if k.startswith("step")}
    for network, num_bytes in found["bytes"].items():
        expected = [NUM_STEPS, NUM_STEPS * num_bytes]
        assert step.pop(f"step: gradients of the {network}") == expected
    if words:
        assert step.pop("step: allreduce") == [NUM_STEPS, NUM_STEPS * 4]
    assert step == {}  # DDP has shared the order of the gradients before


def test_nothing_grows_with_the_world_but_one_row_per_rank() -> None:
    """Reports, checkpoints, evaluations and samples: as many calls, and as many bytes."""
    small, large = (collectives(size)["collectives"] for size in SIZES)
    assert small.keys() == large.keys()
    grown = {
        name: (small[name], large[name]) for name in small if not grows_right(name, small, large)
    }
    assert grown == {}


def grows_right(name: str, small: dict[str, Any], large: dict[str, Any]) -> bool:
    """Return whether a collective has no more calls in the larger world, nor too many bytes."""
    (calls, num_bytes), (large_calls, large_bytes) = small[name], large[name]
    phase, _, operation = name.partition(": ")
    factor = 1.0
    if operation == "allgather":
        # An evaluation gathers what was measured at each image, other phases a number per rank.
        numbers = [NUM_SAMPLES if phase == "evaluation" else size for size in SIZES]
        few, many = map(gathered_rows, numbers, SIZES)
        factor = many / few
    digits = 100  # the size of the world is part of some broadcast texts
    return large_calls <= calls and large_bytes <= factor * num_bytes + digits


def gathered_rows(num_rows: int, world_size: int) -> int:
    """Return the rows of a gather in equal parts: everybody's, and this rank's own."""
    return (world_size + 1) * math.ceil(num_rows / world_size)
