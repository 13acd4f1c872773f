"""`distgan bench --estimate` computes least times from the work of a step, and says that it does.

The work itself is tested in test_fake_device.py.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from distgan.cli.training import bench
from distgan.commands.estimate import LAUNCH_US, Estimate, Gpu, StepCost, gpu_rows, step_rows
from distgan.commands.fake_device import Kernel

GPU = Gpu("slow", low_tflops=2.0, float32_tflops=1.0, gb_per_sec=1.0, memory_gb=1, source="")


def cost(*, launches: int, roofline_ms: float) -> StepCost:
    """Return the cost of a step of 10 images."""
    names = ("H100 SXM", "A100 SXM", "RTX 4090", "T4")
    times = dict.fromkeys(names, roofline_ms)
    return StepCost(launches, 1e9, 1e6, 1e6, times, (4, 4), batch_size=10)


def test_each_kernel_is_bound_by_arithmetic_or_by_memory() -> None:
    """In lower precision arithmetic takes half the time."""
    small = Kernel(num_bytes=1000, flops=0, is_float32=True)
    large = Kernel(num_bytes=1000, flops=4 * 10**9, is_float32=False)
    exact = Kernel(num_bytes=1000, flops=4 * 10**9, is_float32=True)
    assert GPU.roofline_ms([small]) == pytest.approx(0.001)
    assert GPU.roofline_ms([small, large, exact]) == pytest.approx(0.001 + 2 + 4)


def test_rates_are_those_of_the_slower_of_launching_and_executing() -> None:
    """A step of many small kernels waits for the host."""
    launched = cost(launches=1000, roofline_ms=LAUNCH_US / 2)
    executed = cost(launches=1000, roofline_ms=LAUNCH_US * 2)
    (row, *_), (other, *_) = (gpu_rows(Estimate(c, c, c)) for c in (launched, executed))
    assert row[3] == "launches" and row[4] == "1,667"
    assert other[3] == "the GPU" and other[4] == "833.3"


def test_a_step_that_does_not_fit_has_no_rate() -> None:
    """Each GPU has memory of its own."""
    large = replace(cost(launches=1000, roofline_ms=1.0), peak_bytes=20e9)
    found = Estimate(large, large, large)
    ends = {row[0]: row[4] for row in gpu_rows(found)}
    assert ends["T4"] == "does not fit in 16 GB"
    assert ends["RTX 4090"] == "1,667"
    assert "T4" not in found.to_dict()["images_per_sec"]


def test_steps_with_penalties_have_a_row_of_their_own() -> None:
    """If the work of all steps is the same, one row is enough."""
    plain, dear = cost(launches=10, roofline_ms=1.0), cost(launches=30, roofline_ms=1.0)
    assert [row[0] for row in step_rows(Estimate(plain, plain, plain))] == ["mean of all steps"]
    rows = step_rows(Estimate(cost(launches=15, roofline_ms=1.0), plain, dear))
    assert [row[1] for row in rows] == ["15", "10", "30"]


@pytest.mark.slow
def test_the_command_estimates_a_preset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The mean lies between the steps without and with penalties; the output says what it is."""
    file = tmp_path / "estimate.json"
    overrides = ["loss.penalty_interval=2"]
    bench(overrides, preset="cifar10-strong", size=32, estimate=True, json=file)
    output = capsys.readouterr().out
    assert "Estimates, not measurements: no GPU took part." in output
    assert all(name in output for name in ("H100", "A100", "4090", "T4", "with penalties"))
    found = json.loads(file.read_text())
    assert found["kind"] == "estimate, not measured"
    step = found["step"]
    launches = [step[name]["launches"] for name in ("least", "average", "most")]
    assert launches[1] == (launches[0] + launches[2]) / 2 and launches[0] < launches[2]
