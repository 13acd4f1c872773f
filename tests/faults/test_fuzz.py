"""A sample of the fuzzing of every reader, and every input that ever failed."""

import random

import pytest

from tests.faults.fuzz import mutate
from tests.faults.fuzz_targets import Target, make_targets

NAMES = (
    "index", "spans", "labels", "tar", "image", "generator", "weights", "manifest", "probe",
    "probe-file", "status", "jsonl", "toml", "sweep",
)  # fmt: skip


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Target]:
    """Write a file that each target accepts."""
    return make_targets(tmp_path_factory.mktemp("fuzz"))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("num_inputs", [20, pytest.param(3000, marks=pytest.mark.slow)])
def test_any_bytes_are_read_or_refused_in_one_line(
    name: str, num_inputs: int, targets: dict[str, Target]
) -> None:
    """What is whole is accepted; anything else raises the error of its reader and nothing else."""
    target, draw = targets[name], random.Random(name)
    target.accept()
    for data in target.originals:
        target.check(data)
    for _ in range(num_inputs):
        target.check(mutate(draw.choice(target.originals), draw))


def test_every_target_is_tested(targets: dict[str, Target]) -> None:
    """The list of names is complete."""
    assert tuple(targets) == NAMES
