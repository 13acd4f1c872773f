"""The batch script and the configurations, as far as they can be tried without a cluster."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "launch" / "slurm.sbatch"


@pytest.mark.parametrize(
    ("words", "where", "array", "expected"),
    [
        ([], ROOT, "", "give the run a folder"),
        (["--run-dir"], ROOT, "", "give the run a folder"),
        (["--run-dir", "runs/x", "train.seed={task}"], ROOT, "3", "--run-dir 'runs/NAME-{task}'"),
        (["--run-dir=runs/x"], ROOT / "docs", "", "submit from the repository"),
    ],
)
def test_mistakes_are_told_before_anything_starts(words: list[str], where: Path, array: str, expected: str) -> None:
    """Exit code 2 and one line with the remedy."""
    environment = {"PATH": os.environ["PATH"], "SLURM_ARRAY_TASK_ID": array}
    done = subprocess.run(["bash", str(SCRIPT), *words], cwd=where, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert expected in done.stderr


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="no shellcheck: apt-get install shellcheck")
def test_shellcheck_finds_nothing() -> None:
    """In the batch script."""
    done = subprocess.run(["shellcheck", str(SCRIPT)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", sorted((ROOT / "launch").glob("*.yaml")), ids=lambda path: path.stem)
def test_configurations_make_one_world(path: Path) -> None:
    """More than one process is MULTI_GPU, on the CPU too: MULTI_CPU and use_cpu start worlds of one."""
    config = yaml.safe_load(path.read_text())
    assert config["distributed_type"] == ("NO" if config["num_processes"] == 1 else "MULTI_GPU")
    assert config["use_cpu"] is False
