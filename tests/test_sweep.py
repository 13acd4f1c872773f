"""Sweeps: the runs of a file, training them even if one fails, SLURM arrays."""

import json
import os
import re
import signal
import stat
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

from distgan.commands import sweep as command
from distgan.commands.sweep_file import Sweep, cells, plan_runs, read_sweep
from distgan.config.flat import toml_value
from distgan.config.load import load_config
from distgan.errors import UserError
from distgan.runtime.signals import Interrupt
from shards.errors import ShardError
from tests.test_commands import call
from tests.worlds import SMALL

ROOT = Path(__file__).parent.parent
DISTGAN = [sys.executable, "-c", "from distgan.cli import app; app()"]

FAKE_TRAINING = """
import json, os, pathlib, sys
assert "MASTER_ADDR" not in os.environ
folder = pathlib.Path(sys.argv[sys.argv.index("--run-dir") + 1])
folder.mkdir(parents=True, exist_ok=True)
with (folder.parent / "started").open("a") as started:
    print(folder.name.split("-seed")[0], file=started)
if "train.batch_size=32" in sys.argv:
    sys.exit("crash")
status = {"state": "done", "verdict": "healthy", "images_seen": 1000, "time": ""}
(folder / "status.json").write_text(json.dumps(status))
"""


EVALUATE = """
row = {"values": {"quality/frechet": 1.0}, "protocol": {"extractor": "random"}}
(folder / "evaluations.jsonl").write_text(json.dumps(row))
"""


def write(path: Path, text: str) -> Path:
    """Write a file and return its path."""
    path.write_text(text)
    return path


def sweep(tmp_path: Path, text: str) -> Sweep:
    """Return the sweep in a file with this text."""
    return read_sweep(write(tmp_path / "some.toml", text))


def test_a_grid_is_every_combination_with_every_seed(tmp_path: Path) -> None:
    """2 variants x 2 x 2 values x 2 seeds, seed by seed; each run has a folder of its own."""
    text = """
        kimg = 3
        seeds = [5, 6]
        [fixed]
        optim = {lr_d = 1e-3}
        [variants]
        plain = {}
        smooth = {loss.label_smoothing = 0.1}
        [grid]
        "train.batch_size" = [16, 32]
        optim.betas = [[0.0, 0.9], [0.5, 0.9]]
    """
    overrides = ["networks.latent_dim=7", "train.batch_size=9"]
    runs = plan_runs(sweep(tmp_path, text), folder=tmp_path, overrides=overrides)
    assert len({run.entry.folder for run in runs}) == len(runs) == 16
    assert [run.entry.seed for run in runs] == [5] * 8 + [6] * 8
    assert len({json.dumps(run.entry.settings) for run in runs}) == 8
    last = runs[-1]
    assert last.entry.label == "smooth, train.batch_size=32, optim.betas=[0.5, 0.9]"
    assert last.total_images == 3000
    assert last.arguments[:3] == ("--preset", "digits", "--run-dir")
    settings = list(last.arguments[4:])
    assert {
        "optim.lr_d=0.001",
        "loss.label_smoothing=0.1",
        "optim.betas=[0.5, 0.9]",
        "train.seed=6",
    } < set(settings)
    # The cell's own value comes last and wins.
    assert settings.index("train.batch_size=9") < settings.index("train.batch_size=32")


def test_draws_are_reproducible_and_within_their_ranges(tmp_path: Path) -> None:
    """More draws keep the first ones, and another seed gives other draws."""
    text = """
        [random]
        num = {num}
        seed = {seed}
        [random.settings]
        optim.lr_g = {{log_uniform = [1e-5, 1e-3]}}
        loss.label_smoothing = {{uniform = [0.0, 0.3]}}
        networks.generator_width = [8, 16]
    """
    few, many, other = (
        [settings for _, settings in cells(sweep(tmp_path, text.format(num=num, seed=seed)))]
        for num, seed in ((5, 0), (40, 0), (5, 1))
    )
    assert few == many[:5] != other
    assert all(
        1e-5 <= each["optim.lr_g"] <= 1e-3 and each["networks.generator_width"] in (8, 16)
        for each in many
    )
    # About half of them, since the logarithm is uniform.
    assert 0.2 < sum(each["optim.lr_g"] < 1e-4 for each in many) / 40 < 0.8


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("grid = 3", "grid"),
        (
            "sedes = [1]",
            r"unknown name 'sedes' \(did you mean seeds\?\); a sweep has preset, data, kimg, seeds",
        ),
        ("[grid]\ntrain.bach_size = [1]", "did you mean train.batch_size"),
        (
            "[grid]\ntrain.batch_size = [16, 0]",
            "cell train.batch_size=0: .*greater than or equal to 1",
        ),
        ("[grid]\ntrain.batch_size = 16", "not a list of values"),
        ("[grid]\ntrain.seed = [1]", "set train.seed for all runs, with seeds"),
        (
            "[grid]\ntrain.batch_size = [16]\n[variants]\na = {train.batch_size = 8}",
            "more than one of variants, grid",
        ),
        ("[random]\nnum = 2\n[random.settings]\noptim.lr_g = {log_uniform = [0, 1]}", "above 0"),
        ("seeds = [1, 1]", "two runs are the same"),
        ("rank_by = 'beauty'", "'beauty' is not a metric"),
        ("rank_by = 'quality/detail'", "neither way is better; choose from quality/frechet"),
        ("data = 'nowhere'", "nowhere"),
        ("[grid", "not valid TOML"),
    ],
)
def test_mistakes_are_found_before_the_first_run(text: str, expected: str, tmp_path: Path) -> None:
    """The error about any cell says what is wrong, and nothing is written."""
    with pytest.raises((UserError, ShardError), match=expected):
        plan_runs(sweep(tmp_path, text), folder=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_any_text_of_the_file_reaches_the_settings(tmp_path: Path) -> None:
    """Emoji, quotes, backslashes and dates arrive in the arguments of the runs as they were."""
    text = """
        [fixed]
        log.project = "\U0001f98a \\u0022a\\u0022 'b' c:\\\\d \u202f"
        log.group = 2026-11-28
    """
    [run] = plan_runs(sweep(tmp_path, text), folder=tmp_path)
    log = load_config(None, run.arguments[4:]).log
    assert (log.project, log.group) == ("\U0001f98a \"a\" 'b' c:\\d \u202f", "2026-11-28")


def test_a_crash_does_not_end_the_sweep_and_finished_runs_are_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three cells, the second crashes: the others are done, and a repeat trains only that one."""
    monkeypatch.setattr(command, "TRAIN_SCRIPT", write(tmp_path / "train.py", FAKE_TRAINING))
    monkeypatch.setenv("MASTER_ADDR", "node1")  # of a job in which the sweep runs
    three = sweep(tmp_path, "kimg = 1\n[grid]\ntrain.batch_size = [16, 32, 64]")
    runs = plan_runs(three, folder=tmp_path / "runs")
    for _ in range(2):
        command.run_all(runs, group="some", launcher="", interrupt=Interrupt())
    assert [run.is_finished for run in runs] == [True, False, True]
    started = (tmp_path / "runs" / "started").read_text().split()
    assert started == ["batch_size=16", "batch_size=32", "batch_size=64", "batch_size=32"]
    said = capsys.readouterr().out
    assert said.count("failed with exit code 1; continuing with the others") == 2
    assert said.count("already finished") == 2
    # After the first run there is an estimate for the other two.
    assert re.search(r"run 1 of 3: .*seed 0\n", said)
    assert re.search(r"run 2 of 3: .*seed 0, about \d+ s left\n", said)
    longer = sweep(tmp_path, "kimg = 2\n[grid]\ntrain.batch_size = [16]")
    [run] = plan_runs(longer, folder=tmp_path / "runs")
    assert (run.entry.folder, run.is_finished) == (runs[0].entry.folder, False)


@pytest.mark.slow
def test_a_signal_saves_the_run_and_ends_the_sweep(shards: Path, tmp_path: Path) -> None:
    """SIGTERM: exit code 75, and no next run. Then `--index` trains one run alone."""
    text = f"data = {toml_value(str(shards))}\n[grid]\noptim.lr_g = [1e-4, 2e-4]"
    file, folder = write(tmp_path / "long.toml", text), tmp_path / "runs"
    arguments = [*DISTGAN, "sweep", str(file), "--folder", str(folder)]
    with subprocess.Popen(
        [*arguments, *SMALL, "train.kimg=60"], stdout=subprocess.DEVNULL, cwd=tmp_path
    ) as process:
        while process.poll() is None and not any(folder.glob("*/metrics.jsonl")):
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
    assert process.returncode == 75
    [status] = [json.loads(path.read_text()) for path in folder.glob("*/status.json")]
    assert status["state"] == "preempted"
    done = subprocess.run(
        [*arguments, *SMALL, "train.kimg=0.012", "--index", "1"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    states = [
        json.loads(path.read_text())["state"] for path in sorted(folder.glob("*/status.json"))
    ]
    assert states == ["preempted", "done"]
    assert not (folder / "leaderboard.json").exists()


@pytest.mark.slow
def test_the_example_runs(tmp_path: Path) -> None:
    """The shipped sweep, made small: eight runs of four cells, and a leaderboard of them."""
    file, folder = ROOT / "launch" / "sweep.toml", tmp_path / "runs"
    small = [
        *(override for override in SMALL if "every_kimg" not in override),
        "train.kimg=0.064",
        "train.batch_size=32",
        "log.wandb=offline",
    ]
    code, said = call("sweep", file, *small, "--folder", folder, "--list")
    assert (code, said.count("not started"), "--array=0-7 launch/sweep.sbatch" in said) == (
        0,
        8,
        True,
    )
    arguments = [*DISTGAN, "sweep", str(file), *small, "--folder", str(folder)]
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    board = json.loads((folder / "leaderboard.json").read_text())
    assert [len(cell["runs"]) for cell in board["cells"]] == [2] * 4
    means = [cell["mean"]["quality/frechet"] for cell in board["cells"]]
    assert means == sorted(means)
    for cell in board["cells"]:
        last = [
            json.loads(Path(run["folder"], "evaluations.jsonl").read_text().splitlines()[-1])
            for run in cell["runs"]
        ]
        for name in ("quality/frechet", "quality/coverage"):
            assert cell["mean"][name] == pytest.approx(
                statistics.fmean(row["values"][name] for row in last)
            )
            assert cell["spread"][name] == pytest.approx(
                statistics.stdev(row["values"][name] for row in last)
            )
    groups = [
        b"sweep" in path.read_bytes() for path in folder.glob("*/wandb/offline-run-*/*.wandb")
    ]
    assert groups == [True] * 8
    assert call("sweep", file, *small, "--folder", folder, "--board")[0] == 0


def test_the_leaderboard_finds_runs_that_were_trained_with_overrides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--board` uses the settings of the last training; other runs do not replace its results."""
    training = FAKE_TRAINING + EVALUATE
    monkeypatch.setattr(command, "TRAIN_SCRIPT", write(tmp_path / "train.py", training))
    file, folder = write(tmp_path / "some.toml", "kimg = 1"), tmp_path / "runs"
    arguments = ["sweep", file, "--folder", folder]
    code, said = call(*arguments, "train.batch_size=16")
    assert code == 0, said
    board = (folder / "leaderboard.json").read_text()
    assert "healthy" in board
    code, said = call(*arguments, "--board")
    assert (code, "train.batch_size=16" in said) == (0, True), said
    assert (folder / "leaderboard.json").read_text() == board
    code, said = call(*arguments, "--board", "train.batch_size=8")
    assert (code, "results of 1 more run" in said, "is kept" in said) == (2, True, True), said
    assert (folder / "leaderboard.json").read_text() == board
    code, said = call(*arguments, "train.batch_size=8")
    assert (code, "results of 1 more run" in said) == (0, True), said
    assert len(json.loads((folder / "leaderboard.json").read_text())["cells"]) == 1


def test_a_task_of_an_array_trains_its_run(shards: Path, tmp_path: Path) -> None:
    """The batch script passes the arguments of run 1 on; without a file it says what to type."""
    file = write(
        tmp_path / "some.toml",
        f"data = {toml_value(str(shards))}\nkimg = 1\n[grid]\ntrain.batch_size = [5, 10]",
    )
    tools = {
        "scontrol": "echo node1",
        "srun": f'printf "%s\\n" "$@" >{tmp_path}/arguments; '
        f"echo $WANDB_RUN_GROUP >{tmp_path}/group",
        "distgan": f'exec {sys.executable} -c "from distgan.cli import app; app()" "$@"',
    }
    for name, text in tools.items():
        tool = write(tmp_path / name, f"#!/bin/bash\n{text}\n")
        tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    outer = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    environment = outer | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURM_ARRAY_JOB_ID": "7",
        "SLURM_ARRAY_TASK_ID": "1", "SLURM_JOB_NODELIST": "node1", "SLURM_JOB_NUM_NODES": "1",
    }  # fmt: skip
    script = ["bash", str(ROOT / "launch" / "sweep.sbatch")]
    done = subprocess.run(
        [*script, str(file), "--folder", str(tmp_path / "runs")],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, "not started" in done.stdout) == (0, True), done.stderr
    arguments = (tmp_path / "arguments").read_text().splitlines()
    assert "train.batch_size=10" in arguments
    run_dir = Path(arguments[arguments.index("--run-dir") + 1])
    assert run_dir.parent == tmp_path / "runs"
    assert run_dir.name.startswith("batch_size=10-seed0-")
    assert (tmp_path / "group").read_text() == "some\n"
    done = subprocess.run(script, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode, "name the sweep" in done.stderr) == (2, True)


def test_folders_have_readable_names_and_are_found_again_under_others(tmp_path: Path) -> None:
    """Lists are values with `_`; a run whose folder has the same hash is that run."""
    three = sweep(tmp_path, "grid.optim.betas = [[0.0, 0.99], [0.5, 0.999]]")
    first, second = (run.entry.folder for run in plan_runs(three, folder=tmp_path / "runs"))
    assert first.name.startswith("betas=0.0_0.99-seed0-")
    renamed = second.with_name(second.name.replace("betas=0.5_0.999", "betas=-0.5-0.999"))
    renamed.mkdir(parents=True)
    again = [run.entry.folder for run in plan_runs(three, folder=tmp_path / "runs")]
    assert again == [first, renamed]
    code, said = call("sweep", tmp_path / "some.toml", "--folder", tmp_path / "runs", "--list")
    assert (code, first.name in said) == (0, True), said


@pytest.mark.parametrize(("folder", "option"), [("a b", " --folder 'a b'"), ("runs/some", "")])
def test_the_command_for_an_array_names_the_folder(
    folder: str, option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless it is the default, the tasks would train in another one than --list shows."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "some.toml", "kimg = 1")
    _, said = call("sweep", "some.toml", "--folder", folder, "--list")
    assert f"--array=0-0 launch/sweep.sbatch some.toml{option}\n" in said


def test_an_index_beyond_the_last_run_is_refused(tmp_path: Path) -> None:
    """The error says how many runs there are; a file that cannot be read is named."""
    code, said = call("sweep", write(tmp_path / "some.toml", "kimg = 1"), "--index", 1)
    assert (code, "the sweep has 1 run, numbered 0 to 0" in said) == (2, True)
    with pytest.raises(UserError, match="cannot read the sweep"):
        read_sweep(tmp_path / "nothing.toml")
