"""The real door, started the ways people start it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from distgan.run.folder import RunFolder
from distgan.train import train
from tests.worlds import SMALL, free_port, rows, run_world, train_run

ROOT = Path(__file__).parent.parent
DOOR = str(ROOT / "distgan" / "train.py")
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch"]


def start(command: list[str], cwd: Path, **environment: str) -> subprocess.Popen[str]:
    """The command in a clean environment of its own, both outputs in one pipe."""
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("ACCELERATE_", "SLURM_", "WANDB_"))
    }
    clean |= {"PYTHONWARNINGS": "default", "PYTHONUNBUFFERED": "1"} | environment
    return subprocess.Popen(
        command, cwd=cwd, env=clean, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process: subprocess.Popen[str], timeout: float = 120) -> tuple[int, str]:
    """(exit code, everything it said)."""
    said, _ = process.communicate(timeout=timeout)
    return process.returncode, said


def test_one_world_over_gloo_where_gpus_were_asked_for(shards: Path, tmp_path: Path) -> None:
    """By path, from elsewhere, with the shipped configuration: two processes are one world; logs are plain lines."""
    config = [
        "--config_file",
        str(ROOT / "accelerate_config.yaml"),
        "--main_process_port",
        str(free_port()),
    ]
    words = ["--data", str(shards), "--run-dir", "run", *SMALL, "train.kimg=0.024"]
    code, said = finish(start([*LAUNCH, *config, DOOR, *words], tmp_path))
    assert code == 0, said
    assert "2 processes" in said
    assert said.count("run folder: run") == 1
    assert "\x1b[" not in said
    assert json.loads((tmp_path / "run" / "provenance.json").read_text())["world"] == {
        "processes": 2,
        "device": "cpu",
    }
    assert [row["progress/images"] for row in rows(tmp_path / "run")] == [12, 24]


@pytest.mark.slow
def test_signal_is_saved_and_the_same_command_goes_on(shards: Path, tmp_path: Path) -> None:
    """As a module, under torchrun: SIGTERM to the launcher ends in a checkpoint; the same command ends the run."""
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        "--master_port",
        str(free_port()),
    ]
    words = [
        "-m",
        "distgan.train",
        "--data",
        str(shards),
        "--run-dir",
        "run",
        *SMALL,
        "train.kimg=6",
    ]
    process = start([*torchrun, *words], tmp_path)
    metrics = tmp_path / "run" / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.read_text()):
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    finish(process)
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["state"] == "preempted", status
    assert 0 < status["images_seen"] < 6000
    assert (
        finish(
            start(
                [
                    sys.executable,
                    DOOR,
                    *words[2:-1],
                    "train.kimg=" + str(status["images_seen"] / 1000 + 0.024),
                ],
                tmp_path,
            )
        )[0]
        == 0
    )
    seen = [row["progress/images"] for row in rows(tmp_path / "run")]
    assert seen == list(range(12, status["images_seen"] + 25, 12))
    code, said = finish(
        start([sys.executable, DOOR, *words[2:], "loss.label_smoothing=0.1"], tmp_path)
    )
    assert code == 2
    assert "loss.label_smoothing was 0.0, now 0.1" in said
    assert "Traceback" not in said


def test_no_orphan_goes_on_writing(shards: Path, tmp_path: Path) -> None:
    """SIGKILL to the launcher alone: its worker saves, ends and lets go of the folder, so that the run can go on."""
    words = [
        "-m",
        "distgan.train",
        "--data",
        str(shards),
        "--run-dir",
        "run",
        *SMALL,
        "train.kimg=60",
    ]
    process = start([*LAUNCH, *words], tmp_path)
    metrics, status = tmp_path / "run" / "metrics.jsonl", tmp_path / "run" / "status.json"
    while process.poll() is None and not (metrics.exists() and metrics.read_text()):
        time.sleep(0.1)
    process.kill()
    finish(process)  # waits for the pipe, and so for the worker that holds it too
    assert json.loads(status.read_text())["state"] == "preempted"
    RunFolder(tmp_path / "run").close()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["train.bach_size=3"], "did you mean train.batch_size?"),
        (["--data", "SHARDS", "--run-dir", "/proc/nowhere"], "choose another with --run-dir"),
    ],
)
def test_mistakes_end_in_one_line_and_exit_code_two(
    words: list[str], expected: str, shards: Path, tmp_path: Path
) -> None:
    """No traceback, the value and the remedy, nothing written."""
    words = [str(shards) if word == "SHARDS" else word for word in words]
    code, said = finish(start([sys.executable, DOOR, *words], tmp_path))
    assert (code, expected in said, "Traceback" in said) == (2, True, False), said
    assert said.count("error:") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ({"data": "nowhere"}, "nowhere"),
        ({"preset": "cifr10"}, "no preset 'cifr10'"),
        ({"overrides": ["data.classes=['dog']"]}, "dog"),
    ],
)
def test_mistakes_are_found_before_anything_starts(
    words: dict[str, Any],
    expected: str,
    shards: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Wrong data, preset or class: exit code 2 and one line."""
    with pytest.raises(SystemExit) as ended:
        train(**{"data": str(shards), "run_dir": tmp_path / "run"} | words)
    assert ended.value.code == 2
    assert expected in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_batch_that_cannot_be_split_names_one_that_can(shards: Path, tmp_path: Path) -> None:
    """12 images over 2 processes x 5 micro-batches: 10 or 20 would do."""
    with pytest.raises(
        AssertionError,
        match=r"train.batch_size=12 cannot be split over 2 processes x 5 .*; use 10 or 20",
    ):
        run_world(2, train_run, shards, tmp_path / "run", ["train.accumulate=5"])


@pytest.mark.slow
def test_worlds_that_were_not_asked_for_are_refused(shards: Path, tmp_path: Path) -> None:
    """`--cpu --num_processes 2` starts one process: the run says what to type instead."""
    code, said = finish(
        start([*LAUNCH, "--cpu", "--num_processes", "2", DOOR, "--data", str(shards)], tmp_path)
    )
    assert code != 0
    assert "the launcher was asked for several processes, but started one" in said
    assert "accelerate launch --multi_gpu --num_processes N" in said
    code, said = finish(
        start([sys.executable, DOOR, "--data", str(shards)], tmp_path, SLURM_STEP_NUM_TASKS="4")
    )
    assert (code, "srun started 4 tasks" in said) == (2, True)


def test_dry_run_shows_what_differs(tmp_path: Path) -> None:
    """Settings that differ from the defaults, and nothing is written."""
    code, said = finish(
        start([sys.executable, DOOR, "--preset", "cifar10", "--dry-run", "train.seed=7"], tmp_path)
    )
    assert code == 0
    assert "train.seed: 7" in said
    assert "train.epochs: 20" in said
    assert list(tmp_path.iterdir()) == []
