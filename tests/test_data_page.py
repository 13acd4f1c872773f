"""The commands of docs/data.md work in order, on a source of each kind."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from shards.format.index import read_index
from tests.shards.test_tables import table, write_parquet
from tests.test_commands import call
from tests.test_docs import DOCS, commands_of, photographs


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write what the page calls its sources, and go to their folder."""
    monkeypatch.chdir(tmp_path)
    photographs(tmp_path / "photographs", num=8)
    (tmp_path / "labels.csv").write_text(
        "".join(
            f"{number % 2}/{number}.png,{'odd' if number % 3 else 'even'}\n" for number in range(8)
        )
    )
    rows = table(range(4))
    for split in ("train", "test"):
        write_parquet(tmp_path / "dataset" / f"{split}-00000-of-00001.parquet", rows)
    noise = np.random.default_rng(0)
    for name in ("scans", "logos", "satellite"):
        (tmp_path / name).mkdir()
    for number in range(3):
        Image.fromarray(noise.integers(0, 256, (30, 60), dtype=np.uint8)).save(
            tmp_path / "scans" / f"{number}.jpg"
        )
        pixels = noise.integers(0, 256, (20, 20, 4), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "logos" / f"{number}.png")
        bands = noise.integers(0, 2**16, (6, 20, 20), dtype=np.uint16)
        tifffile.imwrite(tmp_path / "satellite" / f"{number}.tif", bands, photometric="minisblack")
    return tmp_path


def test_commands_of_the_data_page_work_in_order(sources: Path) -> None:
    """Every command succeeds, and what is joined is what the parts hold."""
    lines = commands_of(DOCS / "data.md")
    assert lines
    for line in lines:
        if line.startswith("distgan train"):
            continue  # needs a trained run: tests/test_initial_weights.py
        code, said = call(*line.split()[1:])
        assert code == 0, f"{line}\n{said}"
    assert read_index("data/photographs").num_samples == 8
    shapes = {
        path.parent.name: (read_index(path.parent).image_shape, read_index(path.parent).bits)
        for path in sources.glob("data/*/index.json")
    }
    assert read_index("data/labelled").class_names == ("even", "odd")
    assert read_index("data/one-file").class_names == ("cat", "dog")
    assert shapes["grey"] == ((1, 64, 96), 8)
    assert [shapes[name][0] for name in ("square", "wide")] == [(3, 96, 96), (3, 64, 96)]
    assert "not-packed" not in shapes and Path("crops.png").is_file()
    assert [shapes[name][0][0] for name in ("logos", "logos-on-black")] == [4, 3]
    assert [shapes[name] for name in ("satellite", "infrared")] == [
        ((6, 64, 64), 16), ((3, 64, 64), 16),
    ]  # fmt: skip


def test_parts_and_joins_are_not_mixed(sources: Path) -> None:
    """One line says what to type."""
    code, said = call("pack", "photographs", "out", "--part", "1/2", "--join")
    assert (code, said.count("\n")) == (2, 1) and "do not go together" in said
    code, said = call("verify", "photographs", "--part", "3/2")
    assert (code, said.count("\n")) == (2, 1) and "--part 3/2 is not possible" in said
