"""`distgan report`: pages of run folders, also of damaged ones, opened in a real browser."""

import base64
import io
import itertools
import json
import math
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from distgan.errors import UserError
from distgan.reporting.comparison import COLUMNS, group_runs, result_cells, write_comparison
from distgan.reporting.curves import Chart, Curve, Mark, draw, moving_mean
from distgan.reporting.nearest import nearest_ids
from distgan.reporting.page import NOT_SEARCHED, write_report
from distgan.reporting.rendering import image_uri, make_environment
from distgan.reporting.run_record import read_record
from distgan.run.files import find_runs, read_rows
from shards.reader import ShardReader
from tests.browser import chromium
from tests.test_commands import call
from tests.worlds import run_world, train_run

HOSTILE = (
    "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>\"'&$x$"
)
SETTINGS = [
    "log.report=true",
    "train.kimg=0.06",
    "log.samples_every_kimg=0.02",
    "evaluation.every_kimg=0.02",
]


@pytest.fixture(scope="module")
def finished(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with samples and evaluations."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    run_world(1, train_run, shards, folder, SETTINGS)
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run that a test may change."""
    return Path(shutil.copytree(finished, tmp_path / "runs" / "first"))


def report_text(run: Path) -> str:
    """Write the page of a run and return its text."""
    return write_report(read_record(run), run / "report.html").read_text()


def frames_in(text: str) -> list[tuple[str, str]]:
    """Return the timeline of samples in a page."""
    return json.loads(re.findall(r'id="frames">(.*?)</script>', text)[0])


class Links(HTMLParser):
    """The tags of a page, and everything that makes a browser fetch something."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.found: list[str] = []
        self.tags: list[str] = []
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        fetching = ("src", "href", "srcset", "action", "data")
        self.found += [value or "" for name, value in attrs if name in fetching]


# ------------------------------------------------------------------------------- written by a run


def test_training_writes_a_complete_page(finished: Path) -> None:
    """The page has all sections, and takes nothing from outside the file."""
    page = finished / "report.html"
    assert not [row for row in read_rows(finished / "events.jsonl") if row["kind"] == "warning"]
    text, links = page.read_text(), Links(page)
    assert all(link.startswith(("data:", "#")) for link in links.found)
    assert "url(http" not in text
    assert "@import" not in text
    assert links.tags.count("svg") >= 7
    for phrase in (
        "Losses",
        "nearest of all 30 real images",
        "quality/frechet",
        "train.batch_size",
        "epoch 1",
        "Real images",
    ):
        assert phrase in text, phrase
    assert len(frames_in(text)) == len(read_record(finished).sample_grids) > 3


def test_interrupted_run_writes_its_page_without_the_search(shards: Path, tmp_path: Path) -> None:
    """An interrupted run has little time; rank zero alone writes the page."""
    results = run_world(2, train_run, shards, tmp_path / "run", SETTINGS, 24)
    assert [result["state"] for result in results] == ["preempted", "preempted"]
    assert results[1]["writes"] == []
    assert NOT_SEARCHED in (tmp_path / "run" / "report.html").read_text()


def test_page_that_cannot_be_written_does_not_fail_the_run(shards: Path, tmp_path: Path) -> None:
    """The run is done, with one warning and no temporary file."""
    (tmp_path / "run" / "report.html").mkdir(parents=True)
    assert run_world(1, train_run, shards, tmp_path / "run", SETTINGS)[0]["state"] == "done"
    events = read_rows(tmp_path / "run" / "events.jsonl")
    (warning,) = [event["what"] for event in events if event["kind"] == "warning"]
    assert warning.startswith("could not write report.html: ")
    assert not list((tmp_path / "run").glob(".report*"))


# ------------------------------------------------------------------------------------ in a browser


def test_page_works_in_a_browser(run: Path, tmp_path: Path) -> None:
    """The slider changes image and caption, dark mode changes colours, nothing overflows."""
    page = write_report(read_record(run), run / "report.html")
    backgrounds = []
    for dark, width in ((False, 1280), (True, 390)):
        with chromium(tmp_path / f"profile-{width}", width=width, dark=dark) as browser:
            browser.get(page.as_uri())

            def shown_frame(browser=browser) -> tuple[str, str]:
                frame, caption = (browser.find_element("id", name) for name in ("frame", "caption"))
                return frame.get_attribute("src"), caption.text

            last = shown_frame()
            browser.execute_script(
                "const slider = document.getElementById('slider'); slider.value = 0;"
                "slider.dispatchEvent(new Event('input', {bubbles: true}))"
            )
            first = shown_frame()
            assert first[0] != last[0]
            assert first[1].startswith("0 kimg")
            assert last[1].startswith("0.06 kimg")
            browser.find_element("id", "play").click()
            assert browser.find_element("id", "play").text == "Stop"
            root = "document.documentElement"
            assert browser.execute_script(f"return {root}.scrollWidth <= {root}.clientWidth")
            loaded = "return [...document.images].every(image => image.naturalWidth > 0)"
            assert browser.execute_script(loaded)
            assert browser.get_log("browser") == []
            body = browser.find_element("tag name", "body")
            backgrounds.append(body.value_of_css_property("background-color"))
    assert backgrounds[0] != backgrounds[1]


def test_text_from_outside_is_escaped(run: Path, tmp_path: Path) -> None:
    """Markup in names, settings, events, commands and hardware has no effect in either page."""
    hostile = run.with_name(HOSTILE.replace("/", ""))
    run.rename(hostile)
    (hostile / "config.toml").write_text(
        f"[data]\nshards = {json.dumps(HOSTILE)}\n{json.dumps(HOSTILE)} = 1\n"
    )
    status = dict.fromkeys(("state", "reason", "verdict", "time"), HOSTILE)
    provenance = {"command": [HOSTILE, HOSTILE], "versions": {HOSTILE: HOSTILE}}
    provenance |= {"hardware": HOSTILE, "git_commit": HOSTILE}
    (hostile / "status.json").write_text(json.dumps(status))
    (hostile / "provenance.json").write_text(json.dumps(provenance))
    event = {"kind": HOSTILE, "what": HOSTILE, "verdict": HOSTILE, "images_seen": 30}
    with (hostile / "events.jsonl").open("a") as file:
        file.write(json.dumps(event) + "\n")
    rows = read_rows(hostile / "evaluations.jsonl")
    rows[-1]["values"][HOSTILE] = 1.0
    rows[-1]["protocol"]["extractor"] = HOSTILE
    (hostile / "evaluations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shutil.copytree(hostile, hostile.with_name("second"))
    assert call("report", hostile)[0] == 0
    assert call("report", hostile.parent)[0] == 0
    with chromium(tmp_path / "profile") as browser:
        for page in (hostile / "report.html", hostile.parent / "report.html"):
            assert "<script>window" not in page.read_text()
            assert "<img src=x" not in page.read_text()
            browser.get(page.as_uri())
            assert browser.execute_script("return window.hacked === undefined")
            assert browser.get_log("browser") == []


# ------------------------------------------------------------------------------------ damaged runs


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
    write_comparison(group_runs([record, record]), run.parent / "report.html")


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


# -------------------------------------------------------------------------------------- many runs


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


# --------------------------------------------------------------------------------- parts of a page


def test_image_of_noise_is_encoded() -> None:
    """Noise is larger as a JPEG than the buffer that an encoder expects to need."""
    noise = np.random.default_rng(0).integers(0, 2, (548, 548, 3), np.uint8) * 255
    encoded = image_uri(Image.fromarray(noise)).partition(",")[2]
    with Image.open(io.BytesIO(base64.b64decode(encoded))) as image:
        assert (image.format, image.size) == ("JPEG", (548, 548))


def test_copies_are_their_own_nearest(shards: Path) -> None:
    """A generated image that equals a real one finds it first."""
    reader = ShardReader(shards)
    copies = torch.from_numpy(reader.gather(np.array([3, 17, 29])))
    ids, num_searched = nearest_ids(copies, reader, max_searched=1000)
    assert num_searched == 30
    assert ids[:, 0].tolist() == [3, 17, 29]
    assert nearest_ids(copies, reader, max_searched=10)[1] == 10


def test_other_images_are_not_searched(run: Path, tmp_path: Path) -> None:
    """If the shards are missing, remote or changed, the page says so."""
    config = (run / "config.toml").read_text()
    for place, reason in ((str(tmp_path / "gone"), "Not available"), ("s3://bucket/x", "remote")):
        shards = f"shards = {json.dumps(place)}"
        (run / "config.toml").write_text(re.sub(r"(?m)^shards = .*$", shards, config))
        assert reason in report_text(run)
    (run / "config.toml").write_text(config)
    description = json.loads((run / "generator.json").read_text()) | {"dataset": "0" * 64}
    (run / "generator.json").write_text(json.dumps(description))
    assert "other images than those of this run" in report_text(run)


def draw_svg(chart: Chart, **marks: list[Mark]) -> str:
    """Return a chart as the page shows it."""
    template = '{% import "chart.html.j2" as chart %}{{ chart.svg(drawing) }}'
    return make_environment().from_string(template).render(drawing=draw(chart, **marks))


def test_curves_have_the_colors_of_the_page() -> None:
    """A chart has no fixed colour, no NaN, and a bounded size."""
    many = Curve("many", 0, range(2000), list(np.sin(np.arange(2000)) + 2), level=1.0)
    odd = Curve("odd", 1, [1, 2, 3], [float("nan"), 2.0, float("inf")])
    chart = Chart("title", "unit", "caption", (many, odd), is_log=True)
    bad = Mark(2, "1", "<b>", is_bad=True)
    svg = draw_svg(chart, epochs=[Mark(1, "epoch 1")], events=[bad])
    assert "#" not in svg
    assert all(name in svg for name in ("var(--c0)", "var(--c1)", 'class="event bad"', "&lt;b&gt;"))
    assert "nan" not in svg.lower()
    assert ">unit<" in svg  # the values are too near to one another for a logarithmic axis
    assert len(svg) < 60_000
    assert Chart("", "", "", (Curve("", 0, (), ()),)).is_empty


@pytest.mark.parametrize("values", [[0.0], [5.0, 5.0], [-1.0, 2.0], [1e-9, 1e9], [float("nan")]])
@pytest.mark.parametrize("is_log", [False, True])
def test_axis_includes_all_values(values: list[float], is_log: bool) -> None:
    """Any finite values get coordinates within the frame, and ticks."""
    chart = Chart("", "unit", "", (Curve("", 0, range(len(values)), values),), is_log=is_log)
    drawing = draw(chart)
    finite = [height for height in drawing.y.place(values) if np.isfinite(height)]
    assert len(finite) == np.isfinite(values).sum()
    assert all(drawing.y.last <= height <= drawing.y.first for height in finite)
    assert drawing.y.ticks
    assert (drawing.y_label == "unit, log scale") == drawing.y.is_log


def test_moving_mean_reaches_both_ends() -> None:
    """A constant stays constant at the ends and around a NaN."""
    values = np.full(20, 3.0)
    values[7] = np.nan
    np.testing.assert_allclose(moving_mean(values, 5), 3.0)
