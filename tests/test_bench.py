"""`distgan bench` measures rates, arithmetic and waiting, and reports failures in the table."""

import os
import tempfile
import time
from pathlib import Path

import pytest
import torch
import typer
from torch.utils.flop_counter import FlopCounterMode

from distgan.cli.training import bench as bench_command
from distgan.commands import bench_training
from distgan.commands.bench import Results, bench, process_counts, write_images
from distgan.commands.bench_training import (
    TrainingBenchmark,
    make_gan,
    measure_in_processes,
    measure_training,
    noise_batch,
    take_step,
)
from distgan.commands.timing import Rate, measure_rate
from distgan.config.load import load_config, with_overrides
from distgan.config.schema import Config
from distgan.runtime.flops import FlopCounter
from shards.pack import pack

TINY = (
    "networks.generator_width=4", "networks.discriminator_width=4", "networks.latent_dim=8",
    "train.batch_size=8", "train.cpu_threads=1", "train.precision=launcher",
    "train.compile=never",
)  # fmt: skip


@pytest.fixture(autouse=True)
def small_machine_benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Multiply small matrices and copy few bytes."""
    monkeypatch.setattr("distgan.commands.bench_training.MATRIX_SIZE", 128)
    monkeypatch.setattr("distgan.commands.bench_training.COPY_BYTES", 2**16)


def tiny_benchmark(
    *overrides: str, preset: str | None = None, **changes: object
) -> TrainingBenchmark:
    """Return a benchmark that takes a moment."""
    config = load_config(preset, [*TINY, *overrides])
    options = {"precision": "no", "repeats": 2, "seconds": 0.02} | changes
    return TrainingBenchmark(config, (1, 32, 32), **options)


def test_rate_does_not_include_the_first_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first call is a warm-up; the others give items per second."""
    clock, durations = 0.0, iter([30.0, 0.01, 0.02, 0.04])
    monkeypatch.setattr("distgan.commands.timing.time.perf_counter", lambda: clock)

    def work() -> int:
        nonlocal clock
        clock += next(durations)
        return 10

    rate = measure_rate(work, repeats=3)
    assert (rate.least, rate.median, rate.most) == pytest.approx((250, 500, 1000))


def test_wider_discriminator_needs_more_flops() -> None:
    """The count follows the networks, and the machine's own rates are positive."""
    narrow = measure_training(tiny_benchmark())
    wide = measure_training(tiny_benchmark("networks.discriminator_width=8"))
    assert narrow.images_per_sec is not None
    assert 1.5 * narrow.flops_per_image < wide.flops_per_image
    assert narrow.matrix_tflops > 0 < narrow.copy_gb_per_sec


def test_time_spent_waiting_is_measured_only_with_a_loader(tmp_path: Path) -> None:
    """Training on one batch of noise never waits."""
    shards = tmp_path / "shards"
    pack(write_images(tmp_path / "source", 20, size=32), shards, size=32, channels=1, workers=1)
    assert measure_training(tiny_benchmark()).waiting_fraction == 0.0
    assert 0 < measure_training(tiny_benchmark(shards=shards)).waiting_fraction < 1


def test_flop_counter_agrees_with_pytorch_where_both_work() -> None:
    """A step without penalties."""
    config = load_config("cifar10", TINY)
    gan = make_gan(config, (3, 32, 32))
    noise = noise_batch(config, (3, 32, 32), size=8, device=gan.accelerator.device)
    with FlopCounter() as counter:
        take_step(gan, lambda _: [noise], config, number=0)
    with FlopCounterMode(display=False) as reference:
        take_step(gan, lambda _: [noise], config, number=0)
    assert counter.total == reference.get_total_flops() > 0


def test_flop_counter_counts_multiplications_and_additions() -> None:
    """A product of [2, 3] and [3, 5] has 30 of each."""
    with FlopCounter() as counter:
        torch.ones(2, 3) @ torch.ones(3, 5)
    assert counter.total == 60


def test_penalties_are_part_of_rate_and_flops() -> None:
    """Computing R1 and R2 in every step needs more arithmetic than in every eighth."""
    rare = measure_training(tiny_benchmark(preset="cifar10-strong"))
    frequent = measure_training(tiny_benchmark("loss.penalty_interval=1", preset="cifar10-strong"))
    assert rare.images_per_sec is not None and frequent.images_per_sec is not None
    assert 0 < 1.2 * rare.flops_per_image < frequent.flops_per_image


def test_micro_batches_add_at_most_a_second_generator_forward() -> None:
    """The generator's step generates the fakes again, so that FLOPs grow by less than half."""
    whole = measure_training(tiny_benchmark())
    split = measure_training(tiny_benchmark("train.accumulate=2"))
    assert split.images_per_sec is not None
    assert whole.flops_per_image < split.flops_per_image < 1.5 * whole.flops_per_image


def test_more_discriminator_steps_need_fewer_flops_per_image() -> None:
    """A generator step is then shared by more images."""
    one, two = (measure_training(tiny_benchmark(f"train.d_steps={num}")) for num in (1, 2))
    assert two.images_per_sec is not None
    assert 0 < two.flops_per_image < one.flops_per_image


def test_table_rows_and_values_agree() -> None:
    """Rows for the console and values for JSON have the same figures."""
    results = Results({})
    results.add("pack", "images/s", Rate(2000.0, 1.5, 3000.0), "JPEG")
    assert results.rows == [("pack", "2,000 (1.5 to 3,000) images/s", "JPEG")]
    assert results.values["pack"] == {
        "unit": "images/s",
        "remark": "JPEG",
        "median": 2000.0,
        "least": 1.5,
        "most": 3000.0,
    }


def test_process_counts_keep_groups_of_images_whole() -> None:
    """A batch of 16 in groups of 4 runs on at most four processes."""
    config = load_config("cifar10-strong", [])
    assert list(process_counts(config, 16)) == [2, 4]
    assert list(process_counts(with_overrides(config, ["train.accumulate=2"]), 16)) == [2]


def test_unsupported_image_size_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """It ends in one line and exit code 2."""
    with pytest.raises(typer.Exit) as ended:
        bench_command(size=50)
    assert ended.value.exit_code == 2
    assert "--size 50" in capsys.readouterr().err


def rank_one_fails(_: TrainingBenchmark, rank: int, *__: object) -> None:
    """End rank one at once, and let the others wait as in a collective."""
    if rank == 1:
        os._exit(3)
    time.sleep(600)


def test_a_rank_that_dies_ends_the_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank zero would wait for it until a collective gives up."""
    monkeypatch.setattr(bench_training, "_measure_rank", rank_one_fails)
    speed = measure_in_processes(tiny_benchmark(processes=2))
    assert (speed.images_per_sec, speed.error) == (None, "rank 1 ended with exit code 3")


@pytest.mark.slow
def test_several_processes_are_measured_and_failures_reported() -> None:
    """A failed measurement is an error in its own row, and the command continues."""
    two = measure_in_processes(tiny_benchmark(processes=2))
    assert two.images_per_sec is not None and two.images_per_sec.median > 0
    broken = measure_in_processes(tiny_benchmark(shards=Path("nowhere")))
    assert broken.images_per_sec is None and broken.error
    config = with_overrides(Config(), TINY)
    results = bench(config, size=32, channels=1, quick=True, progress=lambda what: None)
    names = {"pack", "loader, raw", "loader, png", "loader, jpeg", "training with its loader"}
    assert names <= set(results.values)
    assert tempfile.gettempdir() not in str(results.rows)
