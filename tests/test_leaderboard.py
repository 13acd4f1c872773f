"""The leaderboard of a sweep."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from distgan.reporting.leaderboard import (
    Entry,
    difference_note,
    evaluated_runs,
    gather_cells,
    to_markdown,
    to_table,
    write_leaderboard,
)


def write_run(folder: Path, frechet: float, **status: Any) -> Path:
    """Write a run folder with one row, two evaluations (the last one counts) and samples."""
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


def test_the_leaderboard_has_the_numbers_of_the_runs(tmp_path: Path) -> None:
    """Mean and standard deviation of the last evaluations, best first, without numbers last."""
    entries = [
        Entry("worse", {"optim.lr_g": 1}, 0, write_run(tmp_path / "a", 3.0)),
        Entry(
            "worse",
            {"optim.lr_g": 1},
            1,
            write_run(tmp_path / "b", 5.0, state="collapsed", verdict="complete collapse"),
        ),
        Entry("better", {"optim.lr_g": 2}, 0, write_run(tmp_path / "c", 2.0)),
        Entry("crashed", {"optim.lr_g": 3}, 0, tmp_path / "nothing"),
    ]
    cells = gather_cells(entries, rank_by="quality/frechet")
    assert [cell.label for cell in cells] == ["better", "worse", "crashed"]
    assert cells[1].mean["quality/frechet"] == 4.0
    assert cells[1].spread["quality/frechet"] == pytest.approx(2**0.5)
    head, rows = to_table(cells, rank_by="quality/frechet")
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


def test_the_shape_of_samples_is_kept(tmp_path: Path) -> None:
    """A grid twice as wide as high has white above and below it."""
    run = write_run(tmp_path / "a", 3.0)
    Image.new("RGB", (100, 50), "red").save(run / "samples" / "000002.000.png")
    cells = gather_cells([Entry("wide", {}, 0, run)], rank_by="quality/frechet")
    write_leaderboard(cells, tmp_path / "board", rank_by="quality/frechet")
    with Image.open(tmp_path / "board" / "samples.png") as sheet:
        pixels = [sheet.convert("RGB").getpixel((130, y)) for y in (30, 130, 230)]
    assert pixels == [(255, 255, 255), (255, 0, 0), (255, 255, 255)]


def test_metrics_that_should_be_high_are_sorted_from_high_to_low(tmp_path: Path) -> None:
    """The cell with the larger coverage comes first."""
    entries = [Entry(name, {}, 0, write_run(tmp_path / name, 1.0)) for name in ("low", "high")]
    for entry, coverage in zip(entries, (0.1, 0.9), strict=True):
        row = {"values": {"quality/coverage": coverage}, "protocol": {"num_fakes": 100}}
        (entry.folder / "evaluations.jsonl").write_text(json.dumps(row) + "\n")
    assert [cell.label for cell in gather_cells(entries, rank_by="quality/coverage")] == [
        "high",
        "low",
    ]


def test_a_metric_that_no_run_has_sorts_nothing(tmp_path: Path) -> None:
    """The table says so, in place of a sort that did not happen."""
    cells = gather_cells(
        [Entry("a", {}, 0, write_run(tmp_path / "a", 1.0))], rank_by="diversity/effective_classes"
    )
    text = to_markdown(cells, "", rank_by="diversity/effective_classes")
    assert "Not sorted: no run has measured diversity/effective_classes." in text
    assert "Sorted by quality/frechet" in to_markdown(cells, "", rank_by="quality/frechet")


def test_runs_that_were_evaluated_differently_are_reported(tmp_path: Path) -> None:
    """A note says in what the protocols differ."""
    entries = [Entry(name, {}, 0, write_run(tmp_path / name, 1.0)) for name in ("a", "b")]
    assert difference_note(gather_cells(entries, rank_by="quality/frechet")) == ""
    row = {"values": {"quality/frechet": 1.0}, "protocol": {"extractor": "probe", "num_fakes": 100}}
    (entries[1].folder / "evaluations.jsonl").write_text(json.dumps(row) + "\n")
    assert "differ in extractor" in difference_note(
        gather_cells(entries, rank_by="quality/frechet")
    )


def test_a_folder_has_the_same_runs_however_it_is_spelt() -> None:
    """Runs are compared by the names of their folders."""
    cells = [
        [{"runs": [{"folder": folder, "protocol": {"seed": 0}}]}]
        for folder in ("runs/s/lr-seed0-1", "/abs/runs/s/lr-seed0-1")
    ]
    assert evaluated_runs(cells[0]) == evaluated_runs(cells[1])


def test_labels_have_no_effect_as_markup_in_the_leaderboard(tmp_path: Path) -> None:
    """HTML, column separators and control characters in a label are shown as text."""
    entries = [Entry("<img src=x>|\x1b[2J", {}, 0, write_run(tmp_path / "a", 1.0))]
    cells = gather_cells(entries, rank_by="quality/frechet")
    _, markdown, _ = write_leaderboard(cells, tmp_path / "board", rank_by="quality/frechet")
    assert r"| &lt;img src=x&gt;\|\x1b[2J |" in markdown.read_text()
