"""When evaluations of a run are due."""

import pytest

from distgan.config.load import load_config
from distgan.run.schedule import Schedule


@pytest.mark.parametrize(
    ("kimg", "settings", "expected"),
    [
        (200, [], [20, 40, 60, 80, 100, 120, 140, 160, 180, 200]),
        (24, [], [10, 20, 24]),
        (2, [], [2]),
        (10, ["evaluation.every_kimg=5"], [5, 10]),
    ],
)
def test_short_runs_are_evaluated_less_often(
    kimg: int, settings: list[str], expected: list[int]
) -> None:
    """Ten times, but not more often than every 10 kimg, and at the end."""
    schedule = Schedule(load_config(None, settings), total_images=kimg * 1000, images_per_epoch=500)
    step = 100
    found = [
        now // 1000
        for now in range(0, kimg * 1000 + 1, step)
        if schedule.due(now - step, now, stopping=False).evaluation
    ]
    assert found == expected
    assert schedule.num_due("evaluation", after=0) == len(expected)


def test_short_runs_save_less_often() -> None:
    """Grids and checkpoints of a run of 8 kimg would take a fifth of its time if it had twenty."""
    schedule = Schedule(load_config(None, []), total_images=8000, images_per_epoch=500)
    assert [schedule.intervals[name] for name in ("samples", "checkpoint")] == [1000, 1000]
