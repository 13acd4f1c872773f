"""Pages of docs/: generated ones are up to date, links resolve, the guide's commands work."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distgan.cli import app
from distgan.run.files import read_rows
from tests.docs import PAGES, ROOT
from tests.faults import ledger
from tests.hub_server import HubServer
from tests.test_commands import call
from tests.worlds import SMALL, run_code

DOCS = ROOT / "docs"
TEXTS = sorted([*DOCS.rglob("*.md"), ROOT / "README.md", ROOT / "launch" / "README.md"])
PROSE = [*TEXTS, ROOT / "CONTRIBUTING.md"]
NEEDS_NETWORK = ("pip ", "hf ")


@pytest.mark.parametrize("name", PAGES)
def test_generated_page_is_up_to_date(name: str) -> None:
    """It equals what `python -m tests.docs` writes."""
    assert (ROOT / name).read_text() == PAGES[name]()


def test_reliability_page_is_made_from_the_recorded_faults() -> None:
    """It equals what `python -m tests.faults.campaign --report` writes."""
    assert ledger.PAGE.read_text() == ledger.page(read_rows(ledger.ROWS))


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_resolve(page: Path) -> None:
    """Every relative link and picture names an existing file."""
    links = re.findall(r"\]\(([^)#]+)\)", page.read_text())
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PROSE, ids=lambda page: str(page.relative_to(ROOT)))
def test_prose_is_wrapped(page: Path) -> None:
    """No line of Markdown is longer than 120 characters; tables, commands and pictures may be."""
    lines = page.read_text().splitlines()
    long = [line for line in lines if len(line) > 120 and not line.startswith(("|", "    ", "!["))]
    assert long == []


def test_ci_types_the_commands_of_the_readme() -> None:
    """Installing and training, and installing what the tests need."""
    readme, ci = (ROOT / "README.md").read_text(), (ROOT / ".ci" / "run").read_text()
    start = "pip install -e . && distgan train"
    assert f"    {start}\n" in readme
    assert start.replace("install", "install --quiet") in ci
    assert "    pip install -e '.[dev]' && pytest\n" in readme
    assert "pip install --quiet -e '.[dev]'\n" in ci


def commands_of(page: Path) -> list[str]:
    """Return the indented lines of a page that are commands."""
    lines = [line.strip() for line in page.read_text().splitlines() if line.startswith("    ")]
    return [line for line in lines if line.startswith(("distgan ", "accelerate ", *NEEDS_NETWORK))]


def test_every_command_has_an_example_in_the_docs() -> None:
    """Each `distgan` command is typed out on some page."""
    lines = [line for page in TEXTS for line in commands_of(page)]
    names = {
        command.callback.__name__.replace("_", "-")
        for command in app.registered_commands
        if command.callback
    }
    assert names == {line.split()[1] for line in lines if line.startswith("distgan ")}


def photographs(folder: Path, *, num: int) -> None:
    """Write small pictures of two classes that differ from one another."""
    noise = np.random.default_rng(0)
    for number in range(num):
        (folder / f"{number % 2}").mkdir(parents=True, exist_ok=True)
        pixels = np.full((20, 30, 3), number * 5 % 200, np.uint8) + noise.integers(
            0, 40, (20, 30, 3), dtype=np.uint8
        )
        Image.fromarray(pixels).save(folder / f"{number % 2}" / f"{number}.png")


@pytest.mark.slow
def test_commands_of_the_guide_work_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: HubServer
) -> None:
    """With a small training, every command succeeds and the promised files exist at the end."""
    pytest.importorskip("imageio_ffmpeg", reason="pip install 'distgan[video,onnx]'")
    pytest.importorskip("onnxscript", reason="pip install 'distgan[video,onnx]'")
    photographs(tmp_path / "photographs", num=30)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DISTGAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("distgan.evaluation.probe_schedule.MOST_IMAGES", 1000)
    done = []
    for line in commands_of(DOCS / "guide.md"):
        words = shlex.split(line, comments=True)
        if line.startswith(NEEDS_NETWORK):
            continue
        if words[1] == "train":
            command = [sys.executable, "-m", "distgan", *words[1:], *SMALL, "train.epochs=2"]
            run = subprocess.run(
                command, capture_output=True, text=True, timeout=120, env=os.environ
            )
            assert run.returncode == 0, run.stderr
        else:
            code, said = call(*words[1:])
            assert code == 0, f"{line}\n{said}"
        done.append(words[1])
    assert {
        "pack",
        "info",
        "verify",
        "train",
        "probe",
        "evaluate",
        "report",
        "sample",
        "export",
        "demo",
    } == set(done)
    for name in (
        "scores.json", "runs/photographs/report.html", "runs/report.html", "grid.png",
        "typical.png", "between.png", "walk.gif", "walk.mp4", "progress.png", "samples/000099.png",
        "shared/README.md", "shared/generator.onnx",
        "demo/index.html",
    ):  # fmt: skip
        assert (tmp_path / name).exists(), name
    assert set(hub.files) == {"models/YOUR-NAME/photographs", "spaces/YOUR-NAME/photographs"}


def test_python_examples_of_the_format_page_read_the_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each example gives the first image as it was packed."""
    photographs(tmp_path / "photographs", num=3)
    monkeypatch.chdir(tmp_path)
    assert call("pack", "photographs", "data/photographs", "--size", 32, "--workers", 1)[0] == 0
    assert (
        call(
            "pack", "photographs", "data/small", "--size", 32, "--workers", 1, "--encoding", "png"
        )[0]
        == 0
    )
    snippets = re.findall(r"```python\n(.*?)```", (DOCS / "shard-format.md").read_text(), re.DOTALL)
    found = []
    for number, code in enumerate(snippets):
        # In a process of its own, because WebDataset leaves files open.
        code += f"\nimport numpy; numpy.save('{number}.npy', image)"
        run_code(code, tmp_path)
        found.append(np.load(f"{number}.npy"))
    assert len(found) == 3
    assert found[0].shape == (3, 32, 32)
    assert all(np.array_equal(found[0], image) for image in found[1:])
