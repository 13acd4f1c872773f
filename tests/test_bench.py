"""`distgan bench` measures what it says it measures."""

from pathlib import Path

import pytest

from distgan.cli import bench as bench_command
from distgan.commands.bench import (
    Bench,
    Spread,
    Trial,
    bench,
    rates,
    run_trial,
    train_trial,
    write_images,
)
from distgan.config.load import with_overrides
from distgan.config.schema import Config
from shards.pack import pack

TINY = (
    "networks.generator_width=4", "networks.discriminator_width=4", "networks.latent_dim=8",
    "train.batch_size=8", "train.cpu_threads=1", "train.precision=launcher",
)  # fmt: skip


def trial(*words: str, **changes: object) -> Trial:
    """Return a trial that takes a moment."""
    config = with_overrides(Config(), [*TINY, *words])
    options = {"precision": "no", "repeats": 2, "seconds": 0.02} | changes
    return Trial(config, (1, 32, 32), **options)


def test_rates_leave_out_the_first_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first call is a warm-up; later ones give images per second."""
    clock, durations = 0.0, iter([30.0, 0.01, 0.02, 0.04])
    monkeypatch.setattr("distgan.commands.bench.time.perf_counter", lambda: clock)

    def work() -> int:
        nonlocal clock
        clock += next(durations)
        return 10

    found = rates(work, repeats=3)
    assert (found.least, found.median, found.most) == pytest.approx((250, 500, 1000))


def test_trial_counts_arithmetic_and_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wider discriminator needs more FLOPs; with a loader a part of the time is spent waiting."""
    monkeypatch.setattr("distgan.commands.bench.MATRIX_SIDE", 128)
    monkeypatch.setattr("distgan.commands.bench.COPY_BYTES", 2**16)
    plain, wide = train_trial(trial()), train_trial(trial("networks.discriminator_width=8"))
    assert plain.images_per_sec is not None
    assert 1.5 * plain.flops_per_image < wide.flops_per_image
    assert plain.matrix_tflops > 0 < plain.copy_gb_per_sec
    assert plain.wait_share == 0.0
    shards = tmp_path / "shards"
    pack(write_images(tmp_path / "source", 20, size=32), shards, size=32, channels=1, workers=1)
    assert 0 < train_trial(trial(shards=shards)).wait_share < 1


def test_table_rows_and_values_agree() -> None:
    """Rows for people and values for programs have the same figures."""
    found = Bench({})
    found.add("pack", "images/s", Spread(2000.0, 1.5, 3000.0), "JPEG")
    assert found.rows == [("pack", "2,000 (1.5 to 3,000) images/s", "JPEG")]
    assert found.values["pack"] == {
        "unit": "images/s",
        "remark": "JPEG",
        "median": 2000.0,
        "least": 1.5,
        "most": 3000.0,
    }


def test_unsupported_image_size_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """It ends in one line and exit code 2."""
    import typer

    with pytest.raises(typer.Exit) as ended:
        bench_command(size=48)
    assert ended.value.exit_code == 2
    assert "--size 48" in capsys.readouterr().err


@pytest.mark.slow
def test_several_processes_are_measured_and_failures_reported() -> None:
    """A trial that fails is an error in its own row; the command goes on."""
    two = run_trial(trial(processes=2))
    assert two.images_per_sec is not None and two.images_per_sec.median > 0
    broken = run_trial(trial(shards=Path("nowhere")))
    assert broken.images_per_sec is None and broken.error
    config = with_overrides(Config(), TINY)
    found = bench(config, size=32, channels=1, quick=True, progress=lambda what: None)
    assert {
        "pack",
        "loader, raw",
        "loader, png",
        "loader, jpeg",
        "training with its loader",
    } <= set(found.values)
