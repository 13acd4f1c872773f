"""Pages of damaged run folders: what is readable is shown, the rest is named."""

import itertools
import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from distgan.errors import UserError
from distgan.reporting.comparison import group_runs, write_comparison
from distgan.reporting.page import write_report
from distgan.reporting.run_record import read_record
from tests.reports import frames_in, report_text
from tests.test_commands import call


def overwrite_with(content: bytes) -> Callable[[Path], None]:
    """Return a function that replaces a file's content."""
    return lambda path: (path.write_bytes(content), None)[1]


def cut_in_half(path: Path) -> None:
    """Keep the first half of a file."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize(
    "damage",
    [Path.unlink, overwrite_with(b"\x00{]\xff"), overwrite_with(b""), cut_in_half],
    ids=["deleted", "garbage", "empty", "cut"],
)
def test_page_is_written_from_a_damaged_folder(run: Path, damage: Callable[[Path], None]) -> None:
    """One more file is damaged each time, and a page is written each time."""
    needed = ("config.toml", "status.json")
    files = [path for path in run.rglob("*") if path.is_file() and path.suffix != ".png"]
    for path in sorted(files, key=lambda path: path.name in needed):
        if damage is not Path.unlink or path.name not in needed:
            damage(path)
        if path.parent == run and path.suffix != ".html":
            code, output = call("report", run)
            assert (code, "Traceback" in output) == (0, False), output
            assert (run / "report.html").stat().st_size > 1000


def test_pages_are_written_from_values_of_other_types(run: Path) -> None:
    """Each entry of each JSON file is replaced by one of another type; pages leave it out."""
    values = itertools.cycle([None, True, -1.5, "text", [1, "x"], {"a": {"b": []}}, math.inf])

    def entries(tree: object) -> list[tuple[dict, str]]:
        if not isinstance(tree, dict):
            return []
        below = [found for each in tree.values() for found in entries(each)]
        return [(tree, name) for name in tree] + below

    for image in run.rglob("*.png"):
        image.unlink()
    for path in [*run.glob("*.json"), *run.glob("*.jsonl")]:
        original = path.read_text()
        first, *others = original.splitlines() if path.suffix == ".jsonl" else [original]
        tree = json.loads(first)
        for parent, name in entries(tree):
            kept, parent[name] = parent[name], next(values)
            path.write_text("\n".join([json.dumps(tree), *others]) + "\n")
            write_pages(run)
            parent[name] = kept
        path.write_text(original)


def write_pages(run: Path) -> None:
    """Write both pages of a run, without the slow search for real images."""
    record = read_record(run)
    write_report(record, run / "report.html", search_nearest=False)
    page = run.parent / "report.html"
    write_comparison(group_runs([record, record]), page, folder=run.parent)


def test_damaged_lines_are_skipped_and_counted(run: Path) -> None:
    """A damaged line and a cut last line hide no other line; page and console name the file."""
    lines = (run / "events.jsonl").read_text().splitlines()
    late = json.dumps({"kind": "warning", "what": "a late event", "images_seen": 60})
    damaged = [*lines, '{"kind": "warni', "[]", late, '{"kind']
    (run / "events.jsonl").write_text("\n".join(damaged))
    code, output = call("report", run)
    warning = f"events.jsonl: skipped 3 damaged of {len(damaged)} lines"
    assert (code, f"warning: {warning}" in output) == (0, True), output
    text = (run / "report.html").read_text()
    assert "a late event" in text
    assert warning in text


def test_damaged_sample_grid_is_left_out(run: Path) -> None:
    """The timeline has the other grids."""
    grids = read_record(run).sample_grids
    grids[1][1].write_bytes(b"no image")
    assert len(frames_in(report_text(run))) == len(grids) - 1


def test_numbers_that_are_not_finite_are_left_out(run: Path) -> None:
    """A run that diverged has NaN and infinity in its metrics and evaluations."""
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        text = (run / name).read_text()
        names = "loss/d|grad_norm/g|quality/frechet|quality/coverage"
        text = re.sub(rf'("(?:{names})": )[-0-9.e]+', r"\1NaN", text)
        (run / name).write_text(re.sub(r'("loss/g": )[-0-9.e]+', r"\1-Infinity", text))
    text = report_text(run)
    assert "Losses" in text
    assert not any("nan" in svg for svg in re.findall(r"<svg.*?</svg>", text.lower(), re.DOTALL))


def test_unreadable_run_is_named_and_the_others_are_shown(run: Path) -> None:
    """A run whose file cannot be read does not keep the others from being compared."""
    other = Path(shutil.copytree(run, run.with_name("unreadable")))
    (other / "metrics.jsonl").unlink()
    (other / "metrics.jsonl").mkdir()
    code, output = call("report", run.parent)
    assert (code, f"warning: cannot read {other}: Is a directory" in output) == (0, True), output
    assert "first" in output
    assert f"cannot read {other}" in (run.parent / "report.html").read_text()
    code, output = call("report", other)
    assert (code, output.count("\n"), "cannot read" in output) == (2, 1, True), output


@pytest.mark.parametrize(
    "arguments", [["nowhere"], ["."], ["run", "--out", "/proc/none/page.html"]]
)
def test_mistakes_are_one_line(
    arguments: list[str], run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exit code is 2, and nothing is written."""
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    code, output = call("report", *(run if word == "run" else word for word in arguments))
    assert (code, output.count("\n"), "Traceback" in output) == (2, 1, False), output
    assert list(Path().iterdir()) == []
    with pytest.raises(UserError):
        read_record(tmp_path)
