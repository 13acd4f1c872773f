"""Pages of docs/: generated ones are up to date, links resolve, examples work."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distgan.cli import app
from distgan.run.files import read_rows
from tests.docs import PAGES, ROOT
from tests.faults import ledger
from tests.test_commands import call
from tests.worlds import run_code

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
