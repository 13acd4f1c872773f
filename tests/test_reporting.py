"""What a run tells: means, pictures, run folder, console and Weights & Biases."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from distgan.errors import UserError
from distgan.images import save_grid, save_losses_plot, to_uint8
from distgan.reporting import console
from distgan.reporting.metrics import TRAINING_METRICS, RunningMeans
from distgan.run.files import read_rows
from distgan.run.folder import RunFolder
from distgan.runtime.distributed import World
from tests.worlds import REMEDIES, run_world, train_run


def test_means_are_over_steps_and_start_anew() -> None:
    """Two steps average; after a reduction nothing is left."""
    means = RunningMeans()
    means.add({"loss/d": torch.tensor(1.0), "loss/g": torch.tensor(5.0)})
    means.add({"loss/d": torch.tensor(3.0)})
    assert means.reduce(World(0, 1)) == {"loss/d": 2.0, "loss/g": 5.0}
    assert means.reduce(World(0, 1)) == {}


def reduced_means() -> dict[str, float]:
    """Means over ranks of a value that is the rank."""
    from accelerate import Accelerator

    from distgan.runtime.distributed import current_world

    Accelerator(cpu=True)
    means = RunningMeans()
    means.add({"loss/d": torch.tensor(float(current_world().rank))})
    return means.reduce(current_world())


def test_means_are_over_ranks() -> None:
    """Ranks 0 and 1 average to a half on both."""
    assert run_world(2, reduced_means) == [{"loss/d": 0.5}] * 2


def test_rows_have_only_declared_names(shards: Path, tmp_path: Path) -> None:
    """Every name in metrics.jsonl stands in METRICS, and every one of METRICS is reported."""
    words = [*REMEDIES, "loss.gradient_penalty=0.1", "train.kimg=0.064", "log.every_kimg=0.032"]
    run_world(1, train_run, shards, tmp_path / "run", words)
    for row in read_rows(tmp_path / "run" / "metrics.jsonl"):
        assert set(row) == set(TRAINING_METRICS)


def test_pictures_show_what_they_are_given(tmp_path: Path) -> None:
    """-1 is black and 1 is white; a grid of 4 is two by two; small images are enlarged."""
    images = to_uint8(
        torch.stack([torch.full((1, 32, 32), value) for value in (-1.0, 1.0, 0.0, 2.0)])
    )
    assert images[:, 0, 0, 0].tolist() == [0, 255, 128, 255]
    with Image.open(save_grid(images, tmp_path / "grid.png")) as picture:
        grid = picture.convert("L")
    assert grid.size == (2 * 64 + 3 * 4, 2 * 64 + 3 * 4)
    assert [grid.getpixel(place) for place in ((36, 36), (104, 36), (36, 104), (104, 104))] == [
        0,
        255,
        128,
        255,
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["grid.png"]


def test_losses_are_plotted(tmp_path: Path) -> None:
    """A plot of a readable size; no rows, no file."""
    row = {
        "progress/kimg": 1.0,
        "loss/d": 1.0,
        "loss/g": 1.0,
        "accuracy/d_real": 0.5,
        "accuracy/d_fake": 0.5,
    }
    save_losses_plot([], tmp_path / "none.png", epoch_images=1000, equilibrium=(1.39, 0.69))
    save_losses_plot(
        [row, row | {"progress/kimg": 2.5}],
        tmp_path / "losses.png",
        epoch_images=1000,
        equilibrium=(1.39, 0.69),
    )
    assert [path.name for path in tmp_path.iterdir()] == ["losses.png"]
    with Image.open(tmp_path / "losses.png") as picture:
        assert picture.size[0] > 800


def test_a_held_folder_is_refused_by_pid_and_host(tmp_path: Path) -> None:
    """A second process may not write where the first one does; when the first dies, even by SIGKILL, it may."""
    code = "import sys, time; from pathlib import Path; from distgan.run.folder import RunFolder;"
    code += "folder = RunFolder(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"
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


def test_rows_of_repeated_steps_are_forgotten(tmp_path: Path) -> None:
    """Rows past the checkpoint go, and so does a line torn by a kill."""
    folder = RunFolder(tmp_path)
    for images in (10, 20, 30):
        folder.add_metrics({"progress/images": images})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"progress/ima')
    folder.truncate_after(20)
    folder.close()
    assert [row["progress/images"] for row in read_rows(tmp_path / "metrics.jsonl")] == [10, 20]


def test_console_is_plain_and_escaped_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One event a line, no colour codes, markup in names shown as it is."""
    console.show_table("run [red]x[/red]", [("data", "[bold]weird[/bold] " + "long " * 60)])
    console.say("done [link=http://x]y[/link]")
    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert (
        "[red]x[/red]" in said
        and "[bold]weird[/bold]" in said
        and "[link=http://x]y[/link]" in said
    )
    assert len(said.splitlines()) == 3
