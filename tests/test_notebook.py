"""The notebook: it runs from top to bottom, on a user's own images, with a small budget."""

import os
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from distgan.run.files import read_status
from tests.test_docs import photographs
from tests.worlds import SMALL

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "notebooks" / "distgan.ipynb"


def read_notebook() -> Any:
    """Return the notebook."""
    nbformat = pytest.importorskip("nbformat", reason="pip install 'distgan[dev]'")
    return nbformat.read(NOTEBOOK, as_version=4)


def test_notebook_is_stored_without_outputs() -> None:
    """It is valid, and holds neither outputs nor execution counts."""
    notebook = read_notebook()
    pytest.importorskip("nbformat").validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)
    assert all(len(line) <= 120 for cell in notebook.cells for line in cell.source.splitlines())


def test_badge_and_first_cell_name_the_repository_if_there_is_one() -> None:
    """Colab opens a notebook at github/OWNER/NAME/blob/BRANCH/PATH; without a URL neither can."""
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"].get("urls", {})
    repository = urls.get("Repository", "https://github.com/YOUR-NAME/distgan")
    name = repository.removeprefix("https://github.com/")
    path = "notebooks/distgan.ipynb"
    colab = f"https://colab.research.google.com/github/{name}/blob/main/{path}"
    badge = "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
    assert f"{badge}({colab if urls else path})" in (ROOT / "README.md").read_text()
    cells = [cell.source for cell in read_notebook().cells if cell.cell_type == "code"]
    assert f'REPOSITORY = "{repository}"' in cells[0]


@pytest.mark.slow
def test_notebook_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Own images are packed, trained on, judged, sampled, exported and made into a demo."""
    nbclient = pytest.importorskip("nbclient", reason="pip install 'distgan[dev]'")
    for name in ("ipykernel", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason="pip install 'distgan[dev]'")
    photographs(tmp_path / "photographs", num=30)
    scripts = Path(sys.executable).parent
    monkeypatch.setenv("PATH", f"{scripts}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("DISTGAN_CACHE", str(tmp_path / "cache"))
    notebook = read_notebook()
    (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())]
    settings = [word for word in SMALL if not word.startswith(("log.report", "log.samples"))]
    cell.source = f"""
IMAGES, NAME, SIZE = "photographs", "my pictures", 32
SETTINGS = {" ".join([*settings, "train.kimg=0.12"])!r}
"""
    client = nbclient.NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": tmp_path}}
    )
    client.execute()
    run = tmp_path / "runs" / "my pictures"
    assert read_status(run).state == "done"
    outputs = [
        output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs
    ]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 2  # the figure of the training and the samples
    text = "".join(output.get("text", "") for output in outputs)
    assert read_status(run).verdict in text
    for name in ("shared/README.md", "shared/generator.safetensors", "demo/index.html"):
        assert (tmp_path / name).exists(), text
