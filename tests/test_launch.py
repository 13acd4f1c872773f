"""The batch scripts and launcher configurations, as far as they can be tested without a cluster."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "launch" / "slurm.sbatch"


@pytest.mark.parametrize(
    ("arguments", "where", "array", "expected"),
    [
        ([], ROOT, "", "give the run a folder"),
        (["--run-dir"], ROOT, "", "give the run a folder"),
        (["--run-dir", "runs/x", "train.seed={task}"], ROOT, "3", "--run-dir 'runs/NAME-{task}'"),
        (["--run-dir=runs/x"], ROOT / "docs", "", "submit from the repository"),
    ],
)
def test_a_wrong_submission_ends_with_one_line(
    arguments: list[str], where: Path, array: str, expected: str
) -> None:
    """Exit code 2, and the line says what to type."""
    environment = {"PATH": os.environ["PATH"], "SLURM_ARRAY_TASK_ID": array}
    done = subprocess.run(
        ["bash", str(SCRIPT), *arguments],
        cwd=where,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert expected in done.stderr


def test_a_job_of_one_class_ends_as_the_class_did(tmp_path: Path) -> None:
    """Neither the launcher's exit code nor the status of another class counts."""
    run = tmp_path / "a run"
    status = f"{run}/classes/3-cat/status.json"
    tools = {
        "scontrol": "echo node1",
        "srun": f"mkdir -p '{run}/classes/3-cat'; echo ' \"state\": \"done\",' >'{status}'; exit 1",
    }
    for name, text in tools.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    (run / "classes" / "13-dog").mkdir(parents=True)
    (run / "classes" / "13-dog" / "status.json").write_text(' "state": "failed",\n')
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_ARRAY_TASK_ID": "3", "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "node1", "SLURM_JOB_NUM_NODES": "1",
    }  # fmt: skip
    arguments = ["--run-dir", str(run), "networks.per_class=true", "networks.only_class={task}"]
    done = subprocess.run(
        ["bash", str(SCRIPT), *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    output = done.stdout + done.stderr
    assert (done.returncode, ": done, launcher's exit code 0" in output) == (0, True), output


@pytest.mark.skipif(
    shutil.which("shellcheck") is None, reason="no shellcheck: apt-get install shellcheck"
)
@pytest.mark.parametrize(
    "script", [SCRIPT, SCRIPT.with_name("sweep.sbatch")], ids=lambda script: script.name
)
def test_shellcheck_finds_nothing(script: Path) -> None:
    """Lint the batch scripts."""
    done = subprocess.run(
        ["shellcheck", "-x", str(script)], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout


LAUNCHERS = sorted({*(ROOT / "launch").glob("*.yaml")} - {ROOT / "launch" / "wandb-sweep.yaml"})


@pytest.mark.parametrize("path", LAUNCHERS, ids=lambda path: path.stem)
def test_configurations_start_one_world(path: Path) -> None:
    """Several processes need MULTI_GPU, even on CPUs: MULTI_CPU and use_cpu start worlds of one."""
    config = yaml.safe_load(path.read_text())
    assert config["distributed_type"] == ("NO" if config["num_processes"] == 1 else "MULTI_GPU")
    assert config["use_cpu"] is False
