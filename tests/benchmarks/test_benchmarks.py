"""The benchmarks run, at a small size. Their figures are not tested."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from distgan.commands.bench import write_images
from distgan.commands.estimate import LAUNCH_US, StepCost
from distgan.commands.sweep_file import plan_runs, read_sweep
from distgan.evaluation.verdict import assess
from shards.pack import pack
from tests.benchmarks import alarms, mixtures, scaling, textbook, time_to_quality, verdicts
from tests.benchmarks.time_to_quality import Point


@pytest.mark.parametrize("file", sorted(Path(__file__).parent.glob("*.toml")))
def test_settings_of_every_sweep_are_valid(file: Path, shards: Path, tmp_path: Path) -> None:
    """They are loaded as those of the runs, each of which has its own; the data are others."""
    sweep = read_sweep(file).model_copy(update={"data": str(shards)})
    runs = plan_runs(sweep, folder=tmp_path)
    assert len(runs) == len({run.entry.folder for run in runs}) > 1


@pytest.mark.parametrize("remedy", mixtures.REMEDIES)
def test_every_remedy_trains_on_a_mixture(remedy: str) -> None:
    """Two generator steps give a score within its bounds."""
    score = mixtures.run("ring", mixtures.REMEDIES[remedy], seed=0, num_steps=2)
    assert 0 <= score.num_modes <= 8
    assert 0 <= score.high_quality <= 1
    assert score.reverse_kl >= 0


def test_modelled_efficiency_falls_with_the_number_of_gpus() -> None:
    """Reductions cost nothing on one GPU, and more on more GPUs."""
    times = [scaling.reduction_ms(1e7, gpus) for gpus in scaling.WORLDS]
    assert times[0] == 0
    assert times == sorted(times)
    cost = StepCost(200, 1e9, 1e6, 1e6, {scaling.GPU: 0.2}, (4_000_000, 3_000_000), batch_size=128)
    scaled = [scaling.scale(cost, gpus) for gpus in scaling.WORLDS]
    assert scaled[0].step_ms == cost.launch_ms() and scaled[0].efficiency == 1
    efficiencies = [each.efficiency for each in scaled]
    assert efficiencies == sorted(efficiencies, reverse=True)
    # One of 1,024 GPUs waits for its reductions, launches four kernels more, and agrees on a stop.
    extra = scaled[-1].reductions_ms + 4 * LAUNCH_US / 1e3 + scaling.STOP_MS
    assert scaled[-1].step_ms == pytest.approx(cost.launch_ms() + extra)


def test_textbook_loop_resumes_with_its_state() -> None:
    """A copy that loads the state makes the same step."""
    first, second = textbook.TextbookGAN(32, width=4), textbook.TextbookGAN(32, width=4)
    reals = torch.rand(8, 3, 32, 32) * 2 - 1
    first.step(reals)
    second.load_state(copy.deepcopy(first.state()))
    losses = []
    for gan in (first, second):
        torch.manual_seed(0)
        losses.append(gan.step(reals))
    assert losses[0] == losses[1]


def test_report_names_the_first_point_as_good_as_the_textbooks_end() -> None:
    """Not the best, not the last; if there is none, the report says so."""
    usual = [Point(1, 100, 10.0, 5.0), Point(2, 200, 20.0, 3.0)]
    ours = [Point(1, 50, 10.0, 4.0), Point(2, 100, 15.0, 2.9), Point(2, 150, 20.0, 1.0)]
    line = time_to_quality.report(usual, ours)[1]
    assert "2.90 after 100 images and 15 s" in line
    assert "2.0 times fewer images, each takes 1.50 times as long (median of 2 turns)" in line
    assert "1.3 times as fast" in line
    assert "not reached; 4.00" in time_to_quality.report(usual, ours[:1])[1]


def test_distgan_trains_only_until_it_is_as_good() -> None:
    """A turn without need is skipped; after the textbook's end the turns go on."""
    usual, ours = Trained([9.0, 5.0, 3.0]), Trained([8.0, 4.0, 3.5, 2.0, 1.0])
    seen = []
    for _ in range(3):
        arguments: Any = (usual, ours)
        time_to_quality.take_turn(*arguments, epochs=3, images_per_epoch=2)
        seen.append([point.frechet for point in ours.points])
    assert seen == [[8.0], [8.0, 4.0], [8.0, 4.0, 3.5, 2.0]]


class Trained:
    """Both loops at once: every training gives the next of the given qualities."""

    def __init__(self, qualities: list[float]) -> None:
        self.qualities, self.points = iter(qualities), list[Point]()

    def train_epoch(self) -> None:
        turn = len(self.points) + 1
        self.points.append(Point(turn, turn, float(turn), next(self.qualities)))

    def images_seen(self) -> int:
        return len(self.points)

    def train_until(self, num_images: int) -> None:
        self.train_epoch()
        assert num_images == self.images_seen()

    def score(self, turn: int) -> None:
        """The points are scored already."""


def test_verdicts_of_arranged_sets_are_counted() -> None:
    """Wrong verdicts are bold; one of several right verdicts counts as right."""
    right = {"copies": ("memorising",), "grey": ("learning", "complete collapse")}
    lines = verdicts.show({"a": dict.fromkeys(right, "complete collapse")}, right)
    assert lines[2] == "| copies | memorising | **complete collapse** |"
    assert lines[3] == "| grey | learning or complete collapse | complete collapse |"
    assert lines[-1] == "1 of 2 are right."


def test_false_alarms_and_missed_troubles_are_counted() -> None:
    """A trouble is missed if the alarm names another one; runs without it do not count."""
    quiet, wrong = alarms.Outcome(False, "none", math.nan), alarms.Outcome(False, "unbalanced", 9)
    caught, missed = (alarms.Outcome(True, name, 20) for name in ("unbalanced", "diverged"))
    lines = alarms.table(
        {
            ("healthy", "labelled"): [quiet, wrong],
            ("winning", "labelled"): [caught, missed, quiet],
        }
    )
    assert "1 of 2 false" in lines[2] and "1 of 2 missed" in lines[3]
    assert "9.0 to 9.0" in lines[2]


def test_every_arranged_set_has_a_right_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table is complete, and the clearest sets are recognised."""
    monkeypatch.setenv("DISTGAN_CACHE", str(tmp_path / "cache"))
    pack("digits", tmp_path / "digits", workers=1)
    found = verdicts.judge_dataset(tmp_path / "digits", num=60)
    assert list(found) == list(verdicts.RIGHT)
    assert assess(found["copies"]).name == "memorising"
    assert assess(found["one image with noise"]).name == "complete collapse"


@pytest.mark.slow
def test_time_to_quality_is_measured_and_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two short epochs by turns; after an interruption only what is missing is trained."""
    monkeypatch.setenv("DISTGAN_CACHE", str(tmp_path / "cache"))
    source = write_images(tmp_path / "source", 256, size=32)
    pack(str(source), tmp_path / "shards", size=32, channels=3, workers=1)
    small = [
        "networks.generator_width=8",
        "networks.discriminator_width=8",
        "networks.latent_dim=8",
    ]
    command = [
        "--data", str(tmp_path / "shards"), "--folder", str(tmp_path / "runs"), "--threads", "1",
        "--num", "100", "--extractor", "random", "--epochs", "2",
    ]  # fmt: skip
    monkeypatch.setattr(time_to_quality.Distgan, "train_until", interrupted)
    with pytest.raises(KeyboardInterrupt):
        time_to_quality.main([*command, *small])
    monkeypatch.undo()
    monkeypatch.setenv("DISTGAN_CACHE", str(tmp_path / "cache"))
    first, second = time_to_quality.main([*command, *small])
    assert "after 512 images" in first
    assert second.startswith("distgan: ")
    saved = (tmp_path / "runs" / "textbook.pt").stat().st_mtime_ns
    assert time_to_quality.main([*command, *small]) == [first, second]
    assert (tmp_path / "runs" / "textbook.pt").stat().st_mtime_ns == saved


def interrupted(*_: object) -> None:
    """Stand for Ctrl-C after the first epoch of the textbook loop."""
    raise KeyboardInterrupt
