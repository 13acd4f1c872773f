"""The training of a probe survives an interruption, ends by itself, and shows how far it is."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

import distgan.evaluation.probe_training as training
from distgan.evaluation.probe import Probe
from distgan.evaluation.probe_schedule import COOL_DOWN, ProbeSchedule
from tests.evaluation.sets import digits
from tests.worlds import CONTEXT

NAMES = tuple("0123456789")


def train(**arguments: Any) -> Probe:
    """Train a small probe of the digits."""
    torch.set_num_threads(1)
    images, labels = digits()
    fixed = {"class_names": NAMES, "dataset_fingerprint": "digits", "width": 4, "kimg": 2.0}
    return training.train_probe(images.__getitem__, labels, **fixed | arguments)


def train_until_signal(state_file: Path, number: int) -> None:
    """Train in this process, which gets a signal when half is done; save after each step."""
    training.SECONDS_BETWEEN_SAVES = 0.0
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells ignore it in background jobs

    def progress(fraction: float, _accuracy: float | None, _left: float) -> None:
        if fraction > 0.5:
            os.kill(os.getpid(), number)

    train(state_file=state_file, progress=progress)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_training_resumes_to_the_same_probe(number: int, tmp_path: Path) -> None:
    """A killed process leaves half of the work, and the next one ends as if nothing had been."""
    process = CONTEXT.Process(target=train_until_signal, args=(tmp_path / "state", number))
    process.start()
    process.join(60)
    assert process.exitcode not in (None, 0)
    fractions: list[float] = []
    resumed = train(
        state_file=tmp_path / "state", progress=lambda fraction, *_: fractions.append(fraction)
    )
    assert fractions[0] > 0.5
    whole = train()
    assert (resumed.version, resumed.card) == (whole.version, whole.card)


def test_a_state_that_does_not_fit_is_named_and_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither a damaged file nor that of other settings changes the result."""
    monkeypatch.setattr(training, "SECONDS_BETWEEN_SAVES", 0.0)
    state = tmp_path / "state"
    state.write_bytes(b"damaged")
    first = train(state_file=state, kimg=1.0)
    assert "cannot be resumed" in caplog.text
    assert train(state_file=state, kimg=1.0, seed=1).version == train(kimg=1.0, seed=1).version
    assert "it has other settings" in caplog.text
    assert first.version == train(kimg=1.0).version


def test_progress_goes_forward_and_shows_the_held_out_accuracy() -> None:
    """The fraction never falls, and the accuracy is one that the held-out images can have."""
    shown: list[tuple[float, float | None, float]] = []
    train(kimg=12.0, progress=lambda *values: shown.append(values))
    fractions = [fraction for fraction, _, _ in shown]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert shown[-1][2] == 0.0
    assert shown[0][1] is None
    accuracy = shown[-1][1]
    assert accuracy is not None
    assert round(accuracy * 179, 6).is_integer()


def test_training_ends_after_the_minutes_that_it_was_given() -> None:
    """A training of hours ends, however slow the machine is, and its weights are finite."""
    left: list[float] = []
    probe = train(minutes=0.03, kimg=1e6, progress=lambda *values: left.append(values[2]))
    assert max(left) <= 0.03 * 60
    assert all(weight.isfinite().all() for weight in probe.parameters())


def test_a_resumed_training_cools_down_in_the_minutes_of_its_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long it trained before, its learning rate falls to nearly zero at the end."""
    monkeypatch.setattr(training, "SECONDS_BETWEEN_SAVES", 0.0)
    factors: list[float] = []

    def interrupt(*_: Any) -> None:
        factors.append(1.0)
        if len(factors) == 40:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(kimg=1e6, state_file=tmp_path / "state", progress=interrupt)
    step = training.ProbeLoop.step

    def recorded(loop: training.ProbeLoop) -> None:
        factors.append(loop.schedule.factor)
        step(loop)

    monkeypatch.setattr(training.ProbeLoop, "step", recorded)
    train(kimg=1e6, minutes=0.05, state_file=tmp_path / "state")
    assert factors[-1] < 0.2


def checked(*accuracies: float) -> ProbeSchedule:
    """Return a schedule after checks at equal distances."""
    schedule = ProbeSchedule.of_length(1e6)
    for accuracy in accuracies:
        schedule.add(10_000)
        schedule.add_check(accuracy)
    return schedule


def test_training_ends_when_more_does_not_help() -> None:
    """A rising accuracy goes on; one that is high, or has not risen for long, begins the end."""
    assert checked(0.3, 0.4, 0.5, 0.6, 0.65, 0.7, 0.72, 0.74).cooling_from is None
    assert checked(0.5, 0.7, 0.7, 0.7, 0.7).cooling_from == 40_000
    assert checked(0.5, 0.99).cooling_from == 20_000
    schedule = checked(0.5, 0.99)
    assert schedule.end == round(20_000 * (1 + COOL_DOWN))
    assert not schedule.is_complete
    factors = []
    while not schedule.is_complete:
        factors.append(schedule.factor)
        schedule.add(100)
    assert factors == sorted(factors, reverse=True)
    assert factors[0] == 1.0
    assert factors[-1] < 0.05


def test_a_cool_down_fits_into_the_time_that_is_left() -> None:
    """It begins when it must, and is shortened, even to nothing, when there is less time."""
    schedule = ProbeSchedule.of_length(1e6)
    schedule.add(10_000)
    schedule.fit_into(round(10_000 * COOL_DOWN))
    assert schedule.cooling_from is None
    schedule.fit_into(1000)
    assert (schedule.cooling_from, schedule.end, schedule.factor) == (10_000, 11_000, 1.0)
    schedule.add(500)
    assert schedule.factor == 0.5
    schedule.fit_into(100)
    assert (schedule.end, schedule.is_complete) == (10_600, False)
    schedule.fit_into(0)
    assert schedule.is_complete


def test_the_card_has_the_fields_of_earlier_versions(tmp_path: Path) -> None:
    """Earlier versions read new probes, and this one reads theirs."""
    train(kimg=1.0).save(tmp_path / "probe.safetensors")
    with safe_open(tmp_path / "probe.safetensors", framework="pt") as file:
        card = json.loads(file.metadata()["probe"])
    assert list(card) == [
        "dataset_fingerprint", "class_names", "accuracy", "channels", "size", "width",
        "num_train", "num_held_out",
    ]  # fmt: skip
