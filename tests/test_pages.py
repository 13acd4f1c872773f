"""The commands of the guide and of other pages work as they are typed, in order."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from shards.pack import pack
from tests.hub_server import HubServer
from tests.test_commands import call
from tests.test_docs import DOCS, NEEDS_NETWORK, commands_of, photographs
from tests.worlds import ROOT, SMALL

CLASSES = ("cat", "dog", "fox")
pytestmark = pytest.mark.slow


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Go to an empty folder with a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DISTGAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("distgan.evaluation.probe_schedule.MOST_IMAGES", 1000)
    return tmp_path


def type_in(line: str, *overrides: str) -> str:
    """Run a command of a page, in a process of its own if it trains; return what it said."""
    words = shlex.split(line, comments=True)[1:]
    if words[0] not in ("train", "sweep"):
        code, said = call(*words)
        assert code == 0, f"{line}\n{said}"
        return said
    command = [sys.executable, "-m", "distgan", *words, *overrides]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ)
    assert run.returncode == 0, f"{line}\n{run.stderr}"
    return run.stdout


def test_commands_of_the_guide_work_in_order(folder: Path, hub: HubServer) -> None:
    """With a small training, every command succeeds and the promised files exist at the end."""
    pytest.importorskip("imageio_ffmpeg", reason="pip install 'distgan[video,onnx]'")
    pytest.importorskip("onnxscript", reason="pip install 'distgan[video,onnx]'")
    photographs(folder / "photographs", num=30)
    lines = [line for line in commands_of(DOCS / "guide.md") if not line.startswith(NEEDS_NETWORK)]
    for line in lines:
        type_in(line, *SMALL, "train.epochs=2")
    assert {line.split()[1] for line in lines} == {
        "pack", "info", "verify", "train", "probe", "evaluate", "report", "sample", "export",
        "demo",
    }  # fmt: skip
    for name in (
        "scores.json", "runs/photographs/report.html", "runs/report.html", "grid.png",
        "typical.png", "between.png", "walk.gif", "walk.mp4", "progress.png", "samples/000099.png",
        "shared/README.md", "shared/generator.onnx",
        "demo/index.html",
    ):  # fmt: skip
        assert (folder / name).exists(), name
    assert set(hub.files) == {"models/YOUR-NAME/photographs", "spaces/YOUR-NAME/photographs"}


def test_commands_of_the_conditional_page_work_in_order(folder: Path) -> None:
    """From a folder per class to images of one class, and the same with clusters."""
    for number, name in enumerate(CLASSES):
        photographs(folder / "photographs", num=30)
        (folder / "pets").mkdir(exist_ok=True)
        (folder / "photographs" / str(number % 2)).rename(folder / "pets" / name)
    photographs(folder / "photographs", num=3000)
    pack(folder / "photographs" / "0", folder / "data" / "anime", size=64)
    page = DOCS / "conditional.md"
    in_table = re.findall(r"^\| `(distgan [^`]*)`", page.read_text(), re.MULTILINE)
    assert len(in_table) == 5
    for line in commands_of(page):
        type_in(line, *SMALL, "train.kimg=0.024", "data.flip=false")
    for line in in_table:
        type_in(line.replace("RUN", "runs/pets"))
    assert (folder / "cats.png").is_file()
    assert (folder / "runs" / "anime" / "samples" / "clusters.png").is_file()


def test_commands_of_the_sweep_page_work_in_order(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The eight runs are trained, with the settings of the page, and the leaderboard shows them."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (folder / "launch").symlink_to(ROOT / "launch")
    for line in commands_of(DOCS / "sweep.md"):
        is_look = line.endswith(("--board", "--list"))
        type_in(line, *(() if is_look else (*SMALL, "train.kimg=0.024")))
    cells = json.loads((folder / "runs" / "sweep" / "leaderboard.json").read_text())["cells"]
    assert [len(cell["runs"]) for cell in cells] == [2] * 4
