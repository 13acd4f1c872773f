"""Reporting of a run: means of metrics, image files, the run folder's rows, and the console."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
import torch
from PIL import Image

from distgan.config.metrics import TRAINING_METRICS
from distgan.errors import UserError
from distgan.images import save_grid, save_losses_plot, tile, to_uint8
from distgan.reporting import console
from distgan.reporting.lines import outcome_line
from distgan.reporting.metrics import RunningMeans
from distgan.run.files import append_row, read_rows
from distgan.run.folder import RunFolder
from distgan.run.forecast import WARM_UP_STEPS, StepClock
from distgan.runtime.distributed import World
from distgan.text import (
    format_clock,
    format_duration,
    format_epochs,
    format_number,
    pluralize,
)
from tests.worlds import REMEDIES, run_world, train_run

# ----------------------------------------------------------------------------------------- metrics


def test_means_are_over_steps_and_start_anew() -> None:
    """Two steps are averaged, one without metrics does not count; then nothing is left."""
    means = RunningMeans()
    for step in ({"loss/d": 1.0, "loss/g": 5.0}, {}, {"loss/d": 3.0}):
        means.add({name: torch.tensor(value) for name, value in step.items()})
    assert means.reduce(World(0, 1)) == {"loss/d": 2.0, "loss/g": 5.0}
    assert means.reduce(World(0, 1)) == {}


def mean_of_ranks() -> dict[str, float]:
    """Return the mean over ranks of a metric that is the rank."""
    from accelerate import Accelerator

    from distgan.runtime.distributed import current_world

    Accelerator(cpu=True)
    means = RunningMeans()
    means.add({"loss/d": torch.tensor(float(current_world().rank))})
    return means.reduce(current_world())


def test_means_are_over_ranks() -> None:
    """Both ranks get the mean of 0 and 1."""
    assert run_world(2, mean_of_ranks) == [{"loss/d": 0.5}] * 2


def test_rows_have_exactly_the_declared_metrics(shards: Path, tmp_path: Path) -> None:
    """A run with every option reports each of TRAINING_METRICS, and nothing else."""
    settings = [*REMEDIES, "loss.gradient_penalty=0.1", "train.kimg=0.064", "log.every_kimg=0.032"]
    run_world(1, train_run, shards, tmp_path / "run", settings)
    for row in read_rows(tmp_path / "run" / "metrics.jsonl"):
        assert set(row) == set(TRAINING_METRICS)


# ------------------------------------------------------------------------------------------ images


def test_grid_shows_the_images(tmp_path: Path) -> None:
    """-1 is black and 1 is white; four images are two by two; small images are enlarged."""
    images = to_uint8(
        torch.stack([torch.full((1, 32, 32), value) for value in (-1.0, 1.0, 0.0, 2.0)])
    )
    assert images[:, 0, 0, 0].tolist() == [0, 255, 128, 255]
    with Image.open(save_grid(images, tmp_path / "grid.png")) as image:
        grid = image.convert("L")
    assert grid.size == (2 * 64 + 3 * 4, 2 * 64 + 3 * 4)
    centers = [(36, 36), (104, 36), (36, 104), (104, 104)]
    assert [grid.getpixel(center) for center in centers] == [0, 255, 128, 255]
    assert [path.name for path in tmp_path.iterdir()] == ["grid.png"]


def test_grid_has_empty_cells_and_no_frame_around_one_image() -> None:
    """Three images in two columns leave the last cell black; colours stay as they are."""
    images = torch.arange(1, 37, dtype=torch.uint8).view(3, 3, 2, 2)
    grid = tile(images, columns=2, gap=1)
    assert grid.shape == (3, 7, 7)
    assert torch.equal(grid[:, 1:3, 4:6], images[1])
    assert torch.equal(grid[:, 4:6, 1:3], images[2])
    assert grid[:, 4:6, 4:6].sum() == 0
    assert grid.sum() == images.sum()
    assert torch.equal(tile(images[:1], columns=1, gap=1), images[0])


@pytest.mark.parametrize(
    ("state", "reason", "line"),
    [
        (
            "done",
            "Verdict: learning",
            "Done: 20 kimg in 92 s. Verdict: learning. Next: distgan sample x",
        ),
        (
            "preempted",
            "interrupted by SIGTERM, saved 0.2 s later",
            "Interrupted and saved at 20 kimg. Repeat the command to continue.",
        ),
        ("collapsed", "diverged", "Collapsed at 20 kimg: diverged."),
        ("failed", "rank 1 is lost", "Failed at 20 kimg: rank 1 is lost. Run folder: x"),
    ],
)
def test_last_line_of_a_run_says_how_it_ended(state: str, reason: str, line: str) -> None:
    """It has the outcome, the number of images, and what to do next."""
    text = outcome_line(state, reason, Path("x"), images_seen=20_000, seconds=92.0)
    assert text == line


def test_losses_are_plotted(tmp_path: Path) -> None:
    """The plot has a readable size; without rows there is no file."""
    first = {
        "progress/kimg": 1.0,
        "loss/d": 1.0,
        "loss/g": 1.0,
        "accuracy/d_real": 0.5,
        "accuracy/d_fake": 0.5,
    }
    for name, rows in (("none.png", []), ("losses.png", [first, first | {"progress/kimg": 2.5}])):
        save_losses_plot(rows, tmp_path / name, images_per_epoch=1000, equilibrium=(1.39, 0.69))
    assert [path.name for path in tmp_path.iterdir()] == ["losses.png"]
    with Image.open(tmp_path / "losses.png") as image:
        assert image.size[0] > 800


# -------------------------------------------------------------------------------------- run folder


def test_folder_of_another_run_is_refused_until_that_run_dies(tmp_path: Path) -> None:
    """The error names process and host; the lock ends with the process, even by SIGKILL."""
    code = (
        "import sys, time; from pathlib import Path; from distgan.run.folder import RunFolder;"
        "folder = RunFolder(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(
        UserError, match=rf"being written by pid {holder.pid} on {os.uname().nodename}.*--run-dir"
    ):
        RunFolder(tmp_path)
    holder.kill()
    holder.communicate()
    folder = RunFolder(tmp_path)
    folder.write_status("running", "training", images_seen=0)
    folder.close()


def test_rows_after_a_checkpoint_are_dropped(tmp_path: Path) -> None:
    """A resumed run trains those steps again; a line cut by a kill goes, too."""
    folder = RunFolder(tmp_path)
    for images in (10, 20, 30):
        folder.add_metrics({"progress/images": images})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"progress/ima')
    folder.truncate_after(20)
    folder.close()
    assert [row["progress/images"] for row in read_rows(tmp_path / "metrics.jsonl")] == [10, 20]


def test_row_after_an_incomplete_line_is_kept(tmp_path: Path) -> None:
    """A row is never appended to a line that a killed process did not finish."""
    path = tmp_path / "events.jsonl"
    warnings: list[str] = []
    append_row(path, {"number": 1})
    path.write_bytes(path.read_bytes() + b'{"numb')
    append_row(path, {"number": 2})
    assert read_rows(path, warn=warnings.append) == [{"number": 1}, {"number": 2}]
    assert warnings == ["events.jsonl: skipped 1 damaged of 3 lines"]


# ----------------------------------------------------------------------------------------- console


def test_output_to_a_file_is_plain(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a terminal, each message is one line without colours; markup has no effect."""
    console.show_table("run [red]x[/red]", [("data", "[bold]weird[/bold] " + "long " * 60)])
    console.say("done [link=http://x]y[/link]")
    output = capsys.readouterr().out
    assert "\x1b" not in output
    assert "[red]x[/red]" in output
    assert "[bold]weird[/bold]" in output
    assert "[link=http://x]y[/link]" in output
    assert len(output.splitlines()) == 3


def test_control_characters_are_spelled_out(capsys: pytest.CaptureFixture[str]) -> None:
    """A hostile name can neither clear the screen nor reverse the direction of writing."""
    hostile = "a\x1b[2Jb\x07\u202ec"
    console.say(hostile)
    console.show_columns([hostile], [[hostile]])
    console.show_table(hostile, [(hostile, hostile)])
    console.show_error(hostile)
    output = "".join(capsys.readouterr())
    assert not set("\x1b\x07\u202e") & set(output)
    assert output.count(r"a\x1b[2Jb\x07\u202ec") == 7


def in_terminal(code: str, *, width: int) -> list[str]:
    """Return the lines that Python code prints in a terminal of so many columns."""
    main, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 50, width, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), terminal)
    command = [sys.executable, "-c", f"from distgan.reporting.console import *; {code}"]
    process = subprocess.Popen(command, env=environment | {"TERM": "xterm"}, **streams)
    os.close(terminal)
    output = b""
    try:
        while chunk := os.read(main, 65536):
            output += chunk
    except OSError:  # the terminal is closed
        pass
    os.close(main)
    assert process.wait() == 0
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output.decode()).splitlines()


@pytest.mark.parametrize("width", [40, 80, 160])
def test_table_fits_a_terminal_without_broken_words(width: int) -> None:
    """A table that is too wide becomes a block of lines per row."""
    head = ["cell", "runs", "quality/frechet", "quality/coverage", "verdict", "time (s)"]
    row = ["optim.lr_g=0.0002", "3/3", "11.23 ± 1.2", "0.5 ± 0.1", "slow-discriminator", "1,203"]
    lines = in_terminal(f"show_columns({head}, [{row}])", width=width)
    assert all(len(line) <= width for line in lines)
    words = [word for line in lines for word in line.split()]
    assert set(words) >= {word for cell in [*head[1:], *row] for word in cell.split()}
    is_table = any("─" in line for line in lines)
    assert is_table == (width == 160)


@pytest.mark.parametrize("width", [40, 80, 160])
def test_table_of_values_keeps_words_whole_where_it_can(width: int) -> None:
    """A fingerprint of 64 digits stays on one line of 80 columns, and no digit is ever left out.

    The frame is omitted only where that makes the line fit.
    """
    fingerprint = "0123456789abcdef" * 4
    rows = [("samples", "2,000"), ("fingerprint", fingerprint)]
    lines = in_terminal(f"show_table('data', {rows})", width=width)
    assert all(len(line) <= width for line in lines)
    assert any(fingerprint in line for line in lines) == (width >= 80)
    assert fingerprint in "".join(re.findall("[0-9a-f]{8,}", "".join(lines)))
    assert any("│" in line for line in lines) == (width != 80)


def test_a_message_for_people_who_wait_is_not_in_logs(capsys: pytest.CaptureFixture[str]) -> None:
    """It is printed in a terminal only."""
    assert in_terminal("say_in_terminal('starting ...')", width=80) == ["starting ..."]
    console.say_in_terminal("starting ...")
    assert capsys.readouterr().out == ""


def test_bar_without_progress_disappears() -> None:
    """Nothing is left of a bar if there was nothing to do."""
    code = "context = counting_progress('packing'); context.__enter__()"
    lines = in_terminal(f"{code}; context.__exit__(None, None, None); say('packed')", width=80)
    assert lines[-1] == "packed"
    assert "%" not in "".join(lines)
    code = "bar = TrainingConsole(total_images=10); bar.say('joined'); bar.close()"
    lines = in_terminal(code, width=80)
    assert lines[-1] == "joined"
    assert "%" not in "".join(lines)


@pytest.mark.parametrize(("seconds", "measured"), [(0.25, 8), (0.01, 100), (2.0, 3)])
def test_forecast_measures_steps_without_their_pauses(
    seconds: float, measured: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several steps, unless they are slow; an evaluation of 100 s between two does not count."""
    now, pause_sec, speeds = 0.0, 0.0, []
    monkeypatch.setattr("distgan.run.forecast.time.monotonic", lambda: now)
    clock = StepClock(torch.device("cpu"))
    for number in range(WARM_UP_STEPS + 150):
        now += seconds
        if number == WARM_UP_STEPS + 1:
            now, pause_sec = now + 100, 100.0
        speeds.append(clock.tick(64, pause_sec=pause_sec))
    (number,) = (number for number, speed in enumerate(speeds, start=1) if speed is not None)
    assert number - WARM_UP_STEPS == pytest.approx(measured, abs=1)
    assert speeds[number - 1] == pytest.approx(64 / seconds)


def test_bar_says_what_a_run_does_between_steps() -> None:
    """The words are replaced by the progress again afterwards."""
    row = {"progress/images": 5, "progress/kimg": 0.005, "progress/epoch": 1.0}
    row |= {"loss/d": 1.0, "loss/g": 1.0, "time/images_per_sec": 1.0, "time/data_wait_frac": 0.0}
    code = (
        f"bar = TrainingConsole(total_images=10); bar.show({row}); "
        "context = bar.doing('evaluating'); context.__enter__(); "
        "context.__exit__(None, None, None); bar.close()"
    )
    *shown, last = [line for line in in_terminal(code, width=80) if "%" in line]
    assert any(line.rstrip().endswith("evaluating ...") for line in shown)
    assert ("0.0 kimg" in last, "evaluating" in last) == (True, False)


@pytest.mark.parametrize("width", [80, 160])
def test_training_progress_fits_one_line(width: int) -> None:
    """The bar and its text are as wide as the terminal at most."""
    row = {
        "progress/images": 1_234_567,
        "progress/kimg": 1234.567,
        "progress/epoch": 123.4,
        "loss/d": 10.25,
        "loss/g": 11.75,
        "time/images_per_sec": 12_345.6,
        "time/data_wait_frac": 0.25,
    }
    code = f"bar = TrainingConsole(total_images=10**8); bar.show({row}); bar.close()"
    lines = [line for line in in_terminal(code, width=width) if "kimg" in line]
    assert lines
    assert all(len(line) <= width for line in lines)
    assert all("1,234.6 kimg" in line and line.rstrip().endswith("left") for line in lines)


def test_numbers_and_durations_as_text() -> None:
    """Significant digits, full integers, a dash for no number; seconds, minutes and hours."""
    numbers = [0.123456, 11.23456, 1234.5, 7.0, 2_000_000, float("nan"), None, "7", True]
    texts = ["0.1235", "11.23", "1,234", "7", "2,000,000", "–", "–", "–", "–"]
    assert [format_number(number) for number in numbers] == texts
    assert [format_duration(seconds) for seconds in (92, 870, 11520)] == [
        "92 s",
        "14.5 min",
        "3.2 h",
    ]
    assert [format_clock(seconds) for seconds in (7, 187, 3727)] == ["0:07", "3:07", "1:02:07"]
    assert [format_epochs(number) for number in (1.0, 0.99996, 2.5)] == [
        "1 epoch",
        "1 epoch",
        "2.5 epochs",
    ]
    assert [pluralize(1, "image"), pluralize(2000, "class")] == ["1 image", "2,000 classes"]
