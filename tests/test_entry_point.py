"""`distgan train` and distgan/train.py as processes, started in the ways people start it."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest

from distgan.commands.bench import write_images
from distgan.run.folder import RunFolder
from distgan.train import train
from shards.pack import pack
from tests.worlds import ROOT, SMALL, free_port, rows, run_script, run_world, train_run

TRAIN_SCRIPT = str(ROOT / "distgan" / "train.py")
DISTGAN_TRAIN = [sys.executable, "-m", "distgan", "train"]
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch"]


def start(command: list[str], cwd: Path, **environment: str) -> subprocess.Popen[str]:
    """Start a command in a clean environment, with both of its outputs in one pipe."""
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
    """Wait for a process and return its exit code and output."""
    output, _ = process.communicate(timeout=timeout)
    return process.returncode, output


def wait_for_metrics(process: subprocess.Popen[str], run: Path) -> None:
    """Wait until a run has written its first row of metrics."""
    metrics = run / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.read_text()):
        time.sleep(0.02)


def test_two_processes_form_one_world_on_a_machine_without_gpus(
    shards: Path, tmp_path: Path
) -> None:
    """Started by path from another folder, with the shipped configuration; logs are plain lines."""
    config = str(ROOT / "accelerate_config.yaml")
    options = ["--config_file", config, "--main_process_port", str(free_port())]
    arguments = [
        "--preset",
        "classic",
        "--data",
        str(shards),
        "--run-dir",
        "run",
        *SMALL,
        "train.kimg=0.024",
    ]
    code, output = finish(start([*LAUNCH, *options, TRAIN_SCRIPT, *arguments], tmp_path))
    assert code == 0, output
    assert "2 processes" in output
    assert output.count("run folder: run") == 1
    assert "\x1b[" not in output
    world = json.loads((tmp_path / "run" / "provenance.json").read_text())["world"]
    assert world == {"processes": 2, "nodes": 1, "device": "cpu"}
    assert [row["progress/images"] for row in rows(tmp_path / "run")] == [12, 24]


def test_a_folder_with_an_unusual_name_is_data(shards: Path, tmp_path: Path) -> None:
    """Unusual spaces, quotes, a backslash, a line break and an emoji; also after a resume."""
    data = tmp_path / "a\u00a0b\u202fc '\" \\ \n \U0001f98a"
    shutil.copytree(shards, data)
    arguments = [
        "--preset",
        "classic",
        "--data",
        str(data),
        "--run-dir",
        "run",
        *SMALL,
        "log.group=\U0001f98a '\"",
    ]
    for kimg in ("0.012", "0.024"):
        words = ["train", *arguments, f"train.kimg={kimg}"]
        code, output = run_script("distgan", words, tmp_path)
        assert (code, "warning" in output.lower()) == (0, False), output
    config = tomllib.loads((tmp_path / "run" / "config.toml").read_text())
    assert config["data"]["shards"] == str(data)
    assert config["log"]["group"] == "\U0001f98a '\""
    assert [row["progress/images"] for row in rows(tmp_path / "run")] == [12, 24]


def test_ctrl_c_saves_and_says_how_to_continue(shards: Path, tmp_path: Path) -> None:
    """Exit code 75 of a single process, with one last line and no traceback."""
    arguments = ["--data", str(shards), "--run-dir", "run", *SMALL, "train.kimg=60"]
    process = start([*DISTGAN_TRAIN, *arguments], tmp_path)
    wait_for_metrics(process, tmp_path / "run")
    process.send_signal(signal.SIGINT)
    code, output = finish(process)
    assert (code, "Traceback" in output) == (75, False), output
    assert "Repeat the command to continue." in output.splitlines()[-1]


@pytest.mark.slow
def test_a_signal_saves_the_run_and_the_same_command_resumes_it(
    shards: Path, tmp_path: Path
) -> None:
    """As a module, under torchrun: SIGTERM to the launcher leaves a checkpoint."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    module = ["--master_port", str(free_port()), "-m", "distgan.train"]
    arguments = ["--preset", "classic", "--data", str(shards), "--run-dir", "run", *SMALL]
    process = start([*torchrun, *module, *arguments, "train.kimg=6"], tmp_path)
    wait_for_metrics(process, tmp_path / "run")
    process.send_signal(signal.SIGTERM)
    finish(process)
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["state"] == "preempted", status
    assert 0 < status["images_seen"] < 6000
    length = f"train.kimg={status['images_seen'] / 1000 + 0.024}"
    alone = [sys.executable, TRAIN_SCRIPT, *arguments]
    code, output = finish(start([*alone, length], tmp_path))
    assert code == 0, output
    seen = [row["progress/images"] for row in rows(tmp_path / "run")]
    assert seen == list(range(12, status["images_seen"] + 25, 12))
    other = [*alone, "train.kimg=6", "loss.label_smoothing=0.1"]
    code, output = finish(start(other, tmp_path))
    assert code == 2
    assert "loss.label_smoothing was 0.0, now 0.1" in output
    assert "Traceback" not in output


def test_a_worker_saves_and_ends_if_its_launcher_is_killed(shards: Path, tmp_path: Path) -> None:
    """After SIGKILL to the launcher alone the run folder is unlocked, and the run can resume."""
    arguments = [
        "--preset",
        "classic",
        "--data",
        str(shards),
        "--run-dir",
        "run",
        *SMALL,
        "train.kimg=60",
    ]
    process = start([*LAUNCH, "-m", "distgan.train", *arguments], tmp_path)
    wait_for_metrics(process, tmp_path / "run")
    process.kill()
    finish(process)  # waits for the pipe, and so for the worker that holds it too
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["state"] == "preempted"
    RunFolder(tmp_path / "run").close()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train.bach_size=3"], "did you mean train.batch_size?"),
        (["--data", "SHARDS", "--run-dir", "/proc/nowhere"], "choose another with --run-dir"),
        (["--data", "SHARDS", "--run-dir", "run", "evaluation.extractor=nowhere"], "nowhere"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_two(
    arguments: list[str], expected: str, shards: Path, tmp_path: Path
) -> None:
    """The line has the value and the remedy; there is no traceback, and nothing is written."""
    arguments = [str(shards) if each == "SHARDS" else each for each in arguments]
    code, output = run_script(TRAIN_SCRIPT, arguments, tmp_path)
    assert (code, expected in output, "Traceback" in output) == (2, True, False), output
    assert output.count("error:") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"data": "nowhere"}, "nowhere"),
        ({"preset": "cifr10"}, "no preset 'cifr10'"),
        ({"overrides": ["data.classes=['dog']"]}, "dog"),
    ],
)
def test_mistakes_are_found_before_anything_starts(
    changed: dict[str, Any],
    expected: str,
    shards: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Wrong data, preset or class: exit code 2, one line, nothing written."""
    with pytest.raises(SystemExit) as ended:
        train(**{"data": str(shards), "run_dir": tmp_path / "run"} | changed)
    assert ended.value.code == 2
    assert expected in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["photographs", "photographs.zip"])
def test_images_that_are_not_packed_are_recognised(
    place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The error says how to pack them, for a folder and for an archive."""
    (tmp_path / "photographs" / "cats").mkdir(parents=True)
    (tmp_path / "photographs" / "cats" / "1.JPG").touch()
    (tmp_path / "photographs.zip").touch()
    with pytest.raises(SystemExit) as ended:
        train(data=str(tmp_path / place))
    assert ended.value.code == 2
    assert f"distgan pack {tmp_path / place} SHARDS" in capsys.readouterr().err


def test_a_dry_run_refuses_a_size_that_no_networks_make(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As packing and training do; shards of such a size can be made in Python only."""
    source, shards = write_images(tmp_path / "images", 32, size=50), tmp_path / "shards"
    pack(source, shards, size=50)
    with pytest.raises(SystemExit) as ended:
        train(data=str(shards), run_dir=tmp_path / "run", dry_run=True)
    assert ended.value.code == 2
    assert "50" in (said := capsys.readouterr().err), said
    assert "48x48 and 56x56" in said
    assert not (tmp_path / "run").exists()


def test_a_batch_that_cannot_be_split_names_one_that_can(shards: Path, tmp_path: Path) -> None:
    """12 images over 2 processes x 5 micro-batches: 10 or 20 would do."""
    with pytest.raises(
        AssertionError,
        match=r"train.batch_size=12 cannot be split over 2 processes x 5 .*; use 10 or 20",
    ):
        run_world(2, train_run, shards, tmp_path / "run", ["train.accumulate=5"])


@pytest.mark.slow
def test_launchers_that_start_other_worlds_than_asked_for_are_refused(
    shards: Path, tmp_path: Path
) -> None:
    """`--cpu --num_processes 2` starts one process: the error says what to type instead."""
    options = ["--cpu", "--num_processes", "2"]
    arguments = [TRAIN_SCRIPT, "--data", str(shards)]
    code, output = finish(start([*LAUNCH, *options, *arguments], tmp_path))
    assert code != 0
    assert "the launcher was asked for several processes, but started one" in output
    assert "--multi_gpu" in output
    code, output = finish(start([sys.executable, *arguments], tmp_path, SLURM_STEP_NUM_TASKS="4"))
    assert (code, "srun started 4 tasks" in output) == (2, True)


def test_a_dry_run_says_what_the_run_will_take_and_writes_nothing(tmp_path: Path) -> None:
    """It lists the settings that differ from the defaults, and measures its first steps."""
    small = ["networks.generator_width=8", "networks.discriminator_width=8", "train.batch_size=16"]
    arguments = ["train", "--preset", "cifar10", "--dry-run", "train.seed=7", *small]
    code, output = run_script("distgan", arguments, tmp_path)
    assert code == 0
    assert "train.seed: 7" in output
    assert "disk: about" in output
    assert re.search(r"time: about .* for the steps, at [\d,]+ images/s; besides, 4 eval", output)
    assert "train.epochs: 20" in output
    assert list(tmp_path.iterdir()) == []
