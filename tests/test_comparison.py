"""`distgan report` of several runs: tables on the console and a page, opened in a browser."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from distgan.reporting.comparison import COLUMNS, group_runs, result_cells
from distgan.reporting.run_record import read_record
from distgan.run.files import find_runs
from tests.browser import chromium
from tests.test_commands import call


def test_folder_of_runs_is_compared(run: Path, tmp_path: Path) -> None:
    """The console shows a table; the page's table sorts by numbers, with unknown ones last."""
    for name, kimg in (("second", 9.5), ("third", 120.0)):
        other = Path(shutil.copytree(run, run.with_name(name)))
        status = json.loads((other / "status.json").read_text()) | {"images_seen": int(kimg * 1000)}
        (other / "status.json").write_text(json.dumps(status))
    (run.with_name("third") / "evaluations.jsonl").unlink()
    code, output = call("report", run.parent)
    assert code == 0, output
    heads = [name.format(distance="Fréchet distance") for name in COLUMNS]
    assert all(word in output for word in (*heads, "first", "second", "third", "9.5", "120"))
    with chromium(tmp_path / "profile") as browser:
        browser.get((run.parent / "report.html").as_uri())

        def sort_by(column: str) -> list[str]:
            heads = browser.find_elements("css selector", ".sortable th button")
            next(head for head in heads if head.text == column).click()
            names = browser.find_elements("css selector", ".sortable tbody th")
            return [name.text.strip() for name in names]

        assert sort_by("kimg") == ["first", "second", "third"]
        assert sort_by("kimg") == ["third", "second", "first"]
        assert sort_by("best Fréchet distance")[-1] == "third"
        assert sort_by("best Fréchet distance")[-1] == "third"
        assert browser.get_log("browser") == []
        browser.find_element("link text", "second").click()
        assert browser.current_url.endswith("second/report.html")


def test_runs_are_grouped_by_dataset_and_protocol(run: Path) -> None:
    """Scores that cannot be compared are in tables of their own, on console and page."""

    def copy(name: str, change: Callable[[Path], None]) -> None:
        change(Path(shutil.copytree(run, run.with_name(name))))

    def other_dataset(folder: Path) -> None:
        description = json.loads((folder / "generator.json").read_text()) | {"dataset": "0" * 64}
        (folder / "generator.json").write_text(json.dumps(description))

    def other_extractor(folder: Path) -> None:
        text = (folder / "evaluations.jsonl").read_text()
        (folder / "evaluations.jsonl").write_text(text.replace("random-conv", "inception"))

    copy("dataset", other_dataset)
    copy("extractor", other_extractor)
    copy("unevaluated", lambda folder: (folder / "evaluations.jsonl").unlink())
    copy("seed", lambda folder: None)
    groups = group_runs([read_record(path) for path in find_runs(run.parent)])
    names = [[record.name for record in group.runs] for group in groups]
    assert sorted(names) == [["dataset"], ["extractor"], ["first", "seed", "unevaluated"]]
    code, output = call("report", run.parent)
    assert code == 0
    page = (run.parent / "report.html").read_text()
    for phrase in ("(000000000000)", "features inception", "features random-conv"):
        assert phrase in output
        assert phrase in page


def test_settings_that_differ_come_first(run: Path, tmp_path: Path) -> None:
    """The first table has only the differing settings; one legend serves all charts."""
    other = Path(shutil.copytree(run, run.with_name("second")))
    text = (other / "config.toml").read_text()
    (other / "config.toml").write_text(re.sub(r"(?m)^r1 = .*$", "r1 = 0.25", text))
    assert call("report", run.parent)[0] == 0
    with chromium(tmp_path / "profile", width=390) as browser:
        browser.get((run.parent / "report.html").as_uri())
        (head, *rows) = browser.find_elements("css selector", "table:first-of-type.settings tr")
        assert head.text.split() == ["run", "loss.r1"]
        assert [row.text.split() for row in rows] == [["first", "0.0"], ["second", "0.25"]]
        assert len(browser.find_elements("css selector", ".legend")) == 1
        wide = browser.find_element("css selector", "[aria-label=Results]")
        assert int(wide.get_property("scrollWidth")) > int(wide.get_property("clientWidth"))
        assert "gradient" in wide.value_of_css_property("background-image")


def test_comparison_has_a_cell_for_each_column(run: Path) -> None:
    """Runs one folder deeper are found, too."""
    (run.parent / "nested").mkdir()
    run.rename(run.parent / "nested" / "first")
    (found,) = find_runs(run.parent)
    assert len(result_cells(read_record(found), "quality/frechet")) == len(COLUMNS)
