"""The batch scripts and launcher configurations, as far as they can be tested without a cluster."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image

from shards.format.index import read_index

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "launch" / "slurm.sbatch"


@pytest.mark.parametrize(
    ("arguments", "where", "array", "expected"),
    [
        ([], ROOT, "", "give the run a folder"),
        (["--run-dir"], ROOT, "", "give the run a folder"),
        (["--run-dir", "runs/x", "train.seed={task}"], ROOT, "3", "--run-dir 'runs/NAME-{task}'"),
        (["--run-dir=~nouser/x"], ROOT, "", "--run-dir ~nouser/x: write the whole path"),
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


def run_job(
    tmp_path: Path,
    *arguments: str,
    script: str = "slurm.sbatch",
    task: int | None = None,
    **tools: str,
) -> subprocess.CompletedProcess[str]:
    """Run a batch script as SLURM would a job, or a task of array 7, with tools in Bash."""
    for name, text in {"scontrol": "echo node1", **tools}.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path), "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "node1", "SLURM_JOB_NUM_NODES": "1",
    }  # fmt: skip
    if task is not None:
        environment |= {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": str(task)}
    command = ["bash", str(SCRIPT.with_name(script)), *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_a_job_of_one_class_ends_as_the_class_did(tmp_path: Path) -> None:
    """Neither the launcher's exit code nor the status of another class counts."""
    run = tmp_path / "a run"
    status = f"{run}/classes/3-cat/status.json"
    srun = f"mkdir -p '{run}/classes/3-cat'; echo ' \"state\": \"done\",' >'{status}'; exit 1"
    (run / "classes" / "13-dog").mkdir(parents=True)
    (run / "classes" / "13-dog" / "status.json").write_text(' "state": "failed",\n')
    arguments = ["--run-dir", str(run), "networks.per_class=true", "networks.only_class={task}"]
    done = run_job(tmp_path, *arguments, task=3, srun=srun)
    output = done.stdout + done.stderr
    assert (done.returncode, ": done, launcher's exit code 0" in output) == (0, True), output


@pytest.mark.parametrize(("saved", "is_requeued"), [(True, True), (False, False)])
def test_a_job_whose_rank_zero_was_killed_is_requeued(
    tmp_path: Path, saved: bool, is_requeued: bool
) -> None:
    """Nobody was left to record the loss; without a new checkpoint it might be lost forever."""
    run = tmp_path / "run"
    new = f"mkdir -p '{run}/checkpoints/00000000.024'; " if saved else ""
    run.mkdir()
    done = run_job(
        tmp_path, "--run-dir", str(run),
        scontrol=f'[ "$1" = requeue ] && touch "{tmp_path}/requeued" && kill $PPID; echo node1',
        srun=f"{new}echo ' \"state\": \"running\",' >'{run}/status.json'; exit 1",
    )  # fmt: skip
    assert (tmp_path / "requeued").exists() == is_requeued, done.stdout + done.stderr


def test_a_run_folder_with_brackets_is_no_pattern(tmp_path: Path) -> None:
    """A run in `faces[v2]` that was saved is requeued, whatever its neighbour `facesv` says."""
    run, neighbour = tmp_path / "faces[v2]", tmp_path / "facesv"
    for folder in (run, neighbour):
        folder.mkdir()
    (neighbour / "status.json").write_text(' "state": "done",\n')
    done = run_job(
        tmp_path, "--run-dir", str(run),
        scontrol=f'[ "$1" = requeue ] && touch "{tmp_path}/requeued" && kill $PPID; echo node1',
        srun=f"echo ' \"state\": \"preempted\",' >'{run}/status.json'",
    )  # fmt: skip
    assert (tmp_path / "requeued").exists(), done.stdout + done.stderr


def test_a_job_finds_its_run_in_the_home_folder(tmp_path: Path) -> None:
    """Like the trainer, which gets `--run-dir=~/run` as it is typed."""
    (tmp_path / "run").mkdir()
    srun = 'echo \' "state": "done",\' >~/run/status.json; exit 1'
    done = run_job(tmp_path, "--run-dir=~/run", srun=srun)
    assert (done.returncode, f"run {tmp_path}/run: done" in done.stdout) == (0, True), done.stderr


@pytest.mark.parametrize("script", ["slurm.sbatch", "sweep.sbatch"])
def test_a_task_of_an_array_requeues_only_itself(script: str, tmp_path: Path) -> None:
    """The task's own job id would not do: that of one task stands for the whole array."""
    run = tmp_path / "run-3"
    run.mkdir()
    done = run_job(
        tmp_path, "--run-dir", str(tmp_path / "run-{task}"), script=script, task=3,
        scontrol=f'echo "$*" >>"{tmp_path}/asked"; [ "$1" != requeue ] && echo node1',
        srun=f"echo ' \"state\": \"preempted\",' >'{run}/status.json'",
        distgan=f'printf "%s\\n" --run-dir "{run}"',
    )  # fmt: skip
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked[-1] == "requeue 7_3", done.stdout + done.stderr


@pytest.mark.skipif(
    shutil.which("shellcheck") is None, reason="no shellcheck: apt-get install shellcheck"
)
@pytest.mark.parametrize(
    "script", sorted(SCRIPT.parent.glob("*.sbatch")), ids=lambda script: script.name
)
def test_shellcheck_finds_nothing(script: Path) -> None:
    """Lint the batch scripts."""
    done = subprocess.run(
        ["shellcheck", "-x", str(script)], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout


def pack_task(
    tmp_path: Path, *words: str, task: int | None = None, count: int = 2, warn: bool = False
) -> tuple[int, str]:
    """Run launch/pack.sbatch as SLURM would a task; return its exit code and output."""
    (tmp_path / "scontrol").write_text('#!/bin/bash\necho "scontrol $*"; exit 1\n')
    (tmp_path / "scontrol").chmod(0o755)
    tools = f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": tools, "SLURM_JOB_ID": "7"}
    if task is not None:
        numbers = {
            "JOB_ID": 7,
            "TASK_ID": task,
            "TASK_MIN": 1,
            "TASK_MAX": count,
            "TASK_COUNT": count,
        }
        environment |= {f"SLURM_ARRAY_{name}": str(value) for name, value in numbers.items()}
    job = subprocess.Popen(
        ["bash", str(ROOT / "launch" / "pack.sbatch"), *words],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert job.stdout is not None
    said = ""
    if warn:
        while "packing" not in said:
            said += job.stdout.readline()
        job.send_signal(signal.SIGUSR1)
    said += job.communicate()[0]
    return job.returncode, said


def test_an_array_of_pack_jobs_writes_a_dataset(tmp_path: Path) -> None:
    """Each task packs its part, one job joins them, and a wrong submission is one line."""
    out, images = tmp_path / "shards", tmp_path / "images"
    images.mkdir()
    for number in range(3):
        Image.new("L", (32, 32), number).save(images / f"{number}.png")
    for task in (2, 1):
        code, said = pack_task(tmp_path, str(images), str(out), task=task)
        assert code == 0 and f"packed part {task}/2" in said, said
    code, said = pack_task(tmp_path, str(images), str(out), "--join")
    assert code == 0, said
    assert read_index(out).num_samples == 3
    code, said = pack_task(tmp_path, "--size", "64", "digits", str(out))
    assert code == 2 and "error: name source and folder first" in said


@pytest.mark.parametrize(("task", "name"), [(2, "7_2"), (None, "7")])
@pytest.mark.parametrize("progress", [True, False])
def test_a_pack_job_that_runs_out_of_time_is_requeued_if_it_got_further(
    tmp_path: Path, progress: bool, task: int | None, name: str
) -> None:
    """SLURM's warning ends the pack; without a shard more, a requeue would loop."""
    out = tmp_path / "shards"
    record = f"touch {out}/.packing/000001.json" if progress else ""
    (tmp_path / "distgan").write_text(
        f"#!/bin/bash\nmkdir -p {out}/.packing; {record}\necho packing\nexec sleep 60\n"
    )
    (tmp_path / "distgan").chmod(0o755)
    code, said = pack_task(tmp_path, "digits", str(out), task=task, warn=True)
    assert code == 143
    assert (f"scontrol requeue {name}\n" in said) == progress, said


LAUNCHERS = sorted({*(ROOT / "launch").glob("*.yaml")} - {ROOT / "launch" / "wandb-sweep.yaml"})


@pytest.mark.parametrize("path", LAUNCHERS, ids=lambda path: path.stem)
def test_configurations_start_one_world(path: Path) -> None:
    """Several processes need MULTI_GPU, even on CPUs: MULTI_CPU and use_cpu start worlds of one."""
    config = yaml.safe_load(path.read_text())
    assert config["distributed_type"] == ("NO" if config["num_processes"] == 1 else "MULTI_GPU")
    assert config["use_cpu"] is False
