"""Sweeps: from a file to runs, running them whatever befalls one, and a leaderboard that says what the runs measured."""

import json
import os
import signal
import stat
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from distgan.commands import sweep as job
from distgan.errors import UserError
from distgan.reporting.leaderboard import Entry, gather_cells, table, unlike, write_leaderboard
from distgan.runtime.signals import Interrupt
from tests.test_commands import call
from tests.worlds import SMALL

ROOT = Path(__file__).parent.parent
DOOR = """
import json, pathlib, sys
folder = pathlib.Path(sys.argv[sys.argv.index("--run-dir") + 1])
folder.mkdir(parents=True, exist_ok=True)
with (folder.parent / "started").open("a") as started:
    print(folder.name.split("-seed")[0], file=started)
if "train.batch_size=32" in sys.argv:
    sys.exit("crash")
status = {"state": "done", "verdict": "healthy", "images_seen": 1000, "time": ""}
(folder / "status.json").write_text(json.dumps(status))
"""


def write(path: Path, text: str) -> Path:
    """The sweep as a file."""
    path.write_text(text)
    return path


def sweep(tmp_path: Path, text: str) -> job.Sweep:
    """The sweep that a text asks for."""
    return job.read_sweep(write(tmp_path / "some.toml", text))


# ------------------------------------------------------------------------------------------------ from the file to runs


def test_grid_is_every_combination_with_every_seed(tmp_path: Path) -> None:
    """2 variants x 2 x 2 values x 2 seeds, the seeds outermost; each run has its settings and a folder of its own."""
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
    runs = job.plan_runs(
        sweep(tmp_path, text),
        folder=tmp_path,
        words=["networks.latent_dim=7", "train.batch_size=9"],
    )
    assert len({run.entry.folder for run in runs}) == len(runs) == 16
    assert [run.entry.seed for run in runs] == [5] * 8 + [6] * 8
    assert len({json.dumps(run.entry.settings) for run in runs}) == 8
    last = runs[-1]
    assert last.entry.label == "smooth, train.batch_size=32, optim.betas=[0.5, 0.9]"
    assert last.total_images == 3000
    assert last.words[:3] == ("--preset", "digits", "--run-dir")
    words = list(last.words[4:])
    assert {
        "optim.lr_d=0.001",
        "loss.label_smoothing=0.1",
        "optim.betas=[0.5, 0.9]",
        "train.seed=6",
    } < set(words)
    assert words.index("train.batch_size=9") < words.index(
        "train.batch_size=32"
    )  # the cell's own comes last and wins


def test_draws_are_reproducible_and_in_their_ranges(tmp_path: Path) -> None:
    """The same file draws the same; more draws keep the first ones; another seed draws others."""
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
        [settings for _, settings in job.cells(sweep(tmp_path, text.format(num=num, seed=seed)))]
        for num, seed in ((5, 0), (40, 0), (5, 1))
    )
    assert few == many[:5] != other
    assert all(
        1e-5 <= each["optim.lr_g"] <= 1e-3 and each["networks.generator_width"] in (8, 16)
        for each in many
    )
    assert (
        0.2 < sum(each["optim.lr_g"] < 1e-4 for each in many) / 40 < 0.8
    )  # half of them, were there many more


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("grid = 3", "grid"),
        ("sedes = [1]", "sedes: .* a sweep has preset, data, kimg, seeds"),
        ("[grid]\ntrain.bach_size = [1]", "did you mean train.batch_size"),
        (
            "[grid]\ntrain.batch_size = [16, 0]",
            "cell train.batch_size=0: .*greater than or equal to 1",
        ),
        ("[grid]\ntrain.batch_size = 16", "no list of values"),
        ("[grid]\ntrain.seed = [1]", "train.seed is set for every run with seeds"),
        (
            "[grid]\ntrain.batch_size = [16]\n[variants]\na = {train.batch_size = 8}",
            "more than one of variants, grid",
        ),
        ("[random]\nnum = 2\n[random.settings]\noptim.lr_g = {log_uniform = [0, 1]}", "above 0"),
        ("seeds = [1, 1]", "two runs are the same"),
        ("rank_by = 'beauty'", "'beauty' is no metric"),
        ("data = 'nowhere'", "nowhere"),
        ("[grid", "not valid TOML"),
    ],
)
def test_mistakes_are_told_before_the_first_run(text: str, expected: str, tmp_path: Path) -> None:
    """Of any cell, with what is wrong."""
    with pytest.raises(ValueError, match=expected):
        job.plan_runs(sweep(tmp_path, text), folder=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


# ------------------------------------------------------------------------------------------------ running


def test_a_crash_ends_nothing_else_and_what_is_finished_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three cells, the second crashes: the others are done, and the same again starts that one alone."""
    monkeypatch.setattr(job, "DOOR", write(tmp_path / "door.py", DOOR))
    runs = job.plan_runs(
        sweep(tmp_path, "kimg = 1\n[grid]\ntrain.batch_size = [16, 32, 64]"),
        folder=tmp_path / "runs",
    )
    for _ in range(2):
        job.run_all(runs, group="some", launcher="", interrupt=Interrupt())
    assert [run.is_finished for run in runs] == [True, False, True]
    started = (tmp_path / "runs" / "started").read_text().split()
    assert started == ["batch_size=16", "batch_size=32", "batch_size=64", "batch_size=32"]
    said = capsys.readouterr().out
    assert said.count("failed with exit code 1; the others go on") == 2
    assert said.count("finished already") == 2
    longer = job.plan_runs(
        sweep(tmp_path, "kimg = 2\n[grid]\ntrain.batch_size = [16]"), folder=tmp_path / "runs"
    )
    assert (longer[0].entry.folder, longer[0].is_finished) == (runs[0].entry.folder, False)


@pytest.mark.slow
def test_a_signal_is_handed_on_and_the_run_goes_on(shards: Path, tmp_path: Path) -> None:
    """SIGTERM to the command: its run is saved, it exits 75 without starting the next; the index takes one run alone."""
    text = f"data = {str(shards)!r}\n[grid]\noptim.lr_g = [1e-4, 2e-4]"
    file, folder = write(tmp_path / "long.toml", text), tmp_path / "runs"
    command = [
        sys.executable,
        "-c",
        "from distgan.cli import app; app()",
        "sweep",
        str(file),
        "--folder",
        str(folder),
    ]
    with subprocess.Popen(
        [*command, *SMALL, "train.kimg=60"], stdout=subprocess.DEVNULL, cwd=tmp_path
    ) as process:
        while process.poll() is None and not any(folder.glob("*/metrics.jsonl")):
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
    assert process.returncode == 75
    [status] = [json.loads(path.read_text()) for path in folder.glob("*/status.json")]
    assert status["state"] == "preempted"
    done = subprocess.run(
        [*command, *SMALL, "train.kimg=0.012", "--index", "1"],
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
    """The shipped sweep, made small: eight runs on the digits, a leaderboard of four cells that has the runs' own numbers."""
    file, folder = ROOT / "launch" / "sweep.toml", tmp_path / "runs"
    small = [
        *(word for word in SMALL if "every_kimg" not in word),
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
    command = [
        sys.executable,
        "-c",
        "from distgan.cli import app; app()",
        "sweep",
        str(file),
        *small,
        "--folder",
        str(folder),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
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


# ------------------------------------------------------------------------------------------------ leaderboard


def a_run(folder: Path, frechet: float, **status: Any) -> Path:
    """A run folder with one row, two evaluations, the last of which counts, and a grid of samples."""
    (folder / "samples").mkdir(parents=True)
    state = {
        "state": "done",
        "verdict": "healthy (coverage 0.9)",
        "images_seen": 2000,
        "time": "",
    } | status
    (folder / "status.json").write_text(json.dumps(state))
    row = {"progress/images": 2000, "time/train_sec": 4.0}
    (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    protocol = {"extractor": "random", "num_fakes": 100}
    rows = [
        {"values": {"quality/frechet": value}, "protocol": protocol} for value in (0.001, frechet)
    ]
    (folder / "evaluations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Image.new("RGB", (50, 50), "red").save(folder / "samples" / "000002.000.png")
    return folder


def test_leaderboard_has_the_numbers_of_the_runs(tmp_path: Path) -> None:
    """Mean and sample standard deviation of the last evaluations, best first; a run without numbers stands last."""
    entries = [
        Entry("worse", {"optim.lr_g": 1}, 0, a_run(tmp_path / "a", 3.0)),
        Entry(
            "worse",
            {"optim.lr_g": 1},
            1,
            a_run(tmp_path / "b", 5.0, state="collapsed", verdict="complete collapse"),
        ),
        Entry("better", {"optim.lr_g": 2}, 0, a_run(tmp_path / "c", 2.0)),
        Entry("crashed", {"optim.lr_g": 3}, 0, tmp_path / "nothing"),
    ]
    cells = gather_cells(entries, rank_by="quality/frechet")
    assert [cell.label for cell in cells] == ["better", "worse", "crashed"]
    assert cells[1].mean["quality/frechet"] == 4.0
    assert cells[1].spread["quality/frechet"] == pytest.approx(2**0.5)
    head, rows = table(cells, rank_by="quality/frechet")
    assert head == ["cell", "runs", "quality/frechet", "verdict", "images/s", "time (s)"]
    assert rows[0] == ["better", "1/1", "2", "healthy", "500", "4"]
    assert rows[1] == ["worse", "2/2", "4 ± 1.41", "1 healthy, 1 collapsed", "500 ± 0", "4 ± 0"]
    assert rows[2] == ["crashed", "0/1", "–", "not started", "–", "–"]
    files = write_leaderboard(cells, tmp_path / "board", rank_by="quality/frechet")
    assert [path.name for path in files] == ["leaderboard.json", "leaderboard.md", "samples.png"]
    assert "| worse | 2/2 | 4 ± 1.41 |" in files[1].read_text()
    with Image.open(files[2]) as sheet:
        assert sheet.convert("RGB").getpixel((100, 100)) == (255, 0, 0)
        assert sheet.width > 2 * 264  # two cells have samples


def test_higher_is_better_where_it_is(tmp_path: Path) -> None:
    """A metric that wants to be high is sorted the other way round."""
    entries = [Entry(name, {}, 0, a_run(tmp_path / name, 1.0)) for name in ("low", "high")]
    for entry, coverage in zip(entries, (0.1, 0.9), strict=True):
        row = {"values": {"quality/coverage": coverage}, "protocol": {"num_fakes": 100}}
        (entry.folder / "evaluations.jsonl").write_text(json.dumps(row) + "\n")
    assert [cell.label for cell in gather_cells(entries, rank_by="quality/coverage")] == [
        "high",
        "low",
    ]


def test_unlike_protocols_are_told(tmp_path: Path) -> None:
    """Numbers from other features or other counts cannot be compared; other seeds of the latents can."""
    entries = [Entry(name, {}, 0, a_run(tmp_path / name, 1.0)) for name in ("a", "b")]
    assert unlike(gather_cells(entries, rank_by="quality/frechet")) == ""
    row = {"values": {"quality/frechet": 1.0}, "protocol": {"extractor": "probe", "num_fakes": 100}}
    (entries[1].folder / "evaluations.jsonl").write_text(json.dumps(row) + "\n")
    assert "differ in extractor" in unlike(gather_cells(entries, rank_by="quality/frechet"))


# ------------------------------------------------------------------------------------------------ as an array


def test_a_task_of_an_array_trains_its_run(shards: Path, tmp_path: Path) -> None:
    """The batch script hands slurm.sbatch the words of run 1; without its file it says what to type."""
    file = write(
        tmp_path / "some.toml",
        f"data = {str(shards)!r}\nkimg = 1\n[grid]\ntrain.batch_size = [5, 10]",
    )
    tools = {
        "scontrol": "echo node1",
        "srun": f'printf "%s\\n" "$@" >{tmp_path}/words; echo "$WANDB_RUN_GROUP" >{tmp_path}/group',
        "distgan": f'exec {sys.executable} -c "from distgan.cli import app; app()" "$@"',
    }
    for name, text in tools.items():
        tool = write(tmp_path / name, f"#!/bin/bash\n{text}\n")
        tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")} | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_ARRAY_TASK_ID": "1", "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "node1", "SLURM_JOB_NUM_NODES": "1",
    }  # fmt: skip
    script = ["bash", str(ROOT / "launch" / "sweep.sbatch")]
    done = subprocess.run(
        [*script, str(file)], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert (done.returncode, "not started" in done.stdout) == (0, True), done.stderr
    words = (tmp_path / "words").read_text().splitlines()
    assert "train.batch_size=10" in words
    assert words[words.index("--run-dir") + 1].startswith("runs/some/batch_size=10-seed0-")
    assert (tmp_path / "group").read_text() == "some\n"
    done = subprocess.run(script, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode, "name the sweep" in done.stderr) == (2, True)


def test_a_number_that_is_none_is_told(tmp_path: Path) -> None:
    """With how many there are."""
    code, said = call("sweep", write(tmp_path / "some.toml", "kimg = 1"), "--index", 1)
    assert (code, "there are 1 runs, numbers 0 to 0" in said) == (2, True)
    with pytest.raises(UserError, match="cannot read the sweep"):
        job.read_sweep(tmp_path / "nothing.toml")
