"""`distgan report`: pages that tell a run from its folder alone, in a real browser, whatever lies in the folder."""

import base64
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from distgan.errors import UserError
from distgan.evaluation.verdict import NAMES
from distgan.reporting.comparison import COMPARED, comparison_row
from distgan.reporting.curves import Chart, Curve, Mark, draw, moving_mean
from distgan.reporting.nearest import nearest_ids
from distgan.reporting.page import NO_TIME, write_report
from distgan.reporting.rendering import data_uri
from distgan.reporting.run_record import VERDICTS, figures, find_runs, read_story
from distgan.run.files import read_rows
from shards.reader import ShardReader
from tests.browser import chromium
from tests.test_commands import call
from tests.worlds import run_world, train_run

HOSTILE = (
    "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>\"'&$x$"
)
WORDS = [
    "log.report=true",
    "train.kimg=0.06",
    "log.samples_every_kimg=0.02",
    "evaluation.every_kimg=0.02",
]


@pytest.fixture(scope="module")
def finished(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with samples and evaluations."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    run_world(1, train_run, shards, folder, WORDS)
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of it, to be spoilt."""
    return Path(shutil.copytree(finished, tmp_path / "runs" / "first"))


def test_a_picture_of_noise_fits_the_page() -> None:
    """A grid of a generator that only makes noise is larger as a JPEG than most encoders expect."""
    noise = np.random.default_rng(0).integers(0, 2, (548, 548, 3), np.uint8) * 255
    with Image.open(
        io.BytesIO(base64.b64decode(data_uri(Image.fromarray(noise)).partition(",")[2]))
    ) as picture:
        assert picture.format == "JPEG" and picture.size == (548, 548)


def test_stopped_run_leaves_its_page_at_once(shards: Path, tmp_path: Path) -> None:
    """Without the search for neighbours, for its time is short; written by rank zero alone."""
    results = run_world(2, train_run, shards, tmp_path / "run", WORDS, 24)
    assert [result["state"] for result in results] == ["preempted", "preempted"]
    assert results[1]["writes"] == []
    assert NO_TIME in (tmp_path / "run" / "report.html").read_text()


def test_a_page_that_cannot_be_written_ends_no_run(shards: Path, tmp_path: Path) -> None:
    """The run is done; a warning says what was in the way."""
    (tmp_path / "run" / "report.html").mkdir(parents=True)
    assert run_world(1, train_run, shards, tmp_path / "run", WORDS)[0]["state"] == "done"
    warnings = [
        event["what"]
        for event in read_rows(tmp_path / "run" / "events.jsonl")
        if event["kind"] == "warning"
    ]
    assert len(warnings) == 1
    assert warnings[0].startswith("report.html was not written: ")
    assert not list((tmp_path / "run").glob(".report*"))


class Links(HTMLParser):
    """Everything in a page that makes a browser fetch something."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.found: list[str] = []
        self.tags: list[str] = []
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.found += [
            value or ""
            for name, value in attrs
            if name in ("src", "href", "srcset", "action", "data")
        ]


def test_training_leaves_its_page(finished: Path) -> None:
    """With curves, timeline, reals, neighbours, quality, settings and command, and nothing from outside the file."""
    page = finished / "report.html"
    assert not [
        event for event in read_rows(finished / "events.jsonl") if event["kind"] == "warning"
    ]
    text, links = page.read_text(), Links(page)
    assert all(link.startswith(("data:", "#")) for link in links.found)
    assert "url(http" not in text and "@import" not in text
    assert links.tags.count("svg") >= 7
    for phrase in (
        "Losses",
        "nearest of all 30 reals",
        "quality/frechet",
        "train.batch_size",
        "epoch 1",
        "Real images",
    ):
        assert phrase in text, phrase
    assert (
        len(json.loads(re.findall(r'id="frames">(.*?)</script>', text)[0]))
        == len(read_story(finished).sample_grids)
        > 3
    )


def test_page_in_a_browser(run: Path, tmp_path: Path) -> None:
    """No word in the console; the slider changes picture and caption; light and dark differ; no sideways scrolling."""
    page = write_report(run)
    backgrounds = []
    for dark, width in ((False, 1280), (True, 390)):
        with chromium(tmp_path / f"profile-{width}", width=width, dark=dark) as browser:
            browser.get(page.as_uri())

            def look(browser=browser) -> tuple[str, str]:
                frame, caption = (browser.find_element("id", name) for name in ("frame", "caption"))
                return frame.get_attribute("src"), caption.text

            last = look()
            slide = "const s = document.getElementById('slider'); s.value = 0; s.dispatchEvent(new Event('input'))"
            browser.execute_script(slide)
            first = look()
            assert first[0] != last[0]
            assert first[1].startswith("0 kimg") and last[1].startswith("0.06 kimg")
            browser.find_element("id", "play").click()
            assert browser.find_element("id", "play").text == "Stop"
            wide = "return document.documentElement.scrollWidth <= document.documentElement.clientWidth"
            assert browser.execute_script(wide)
            pictures = "return [...document.images].every(image => image.naturalWidth > 0)"
            assert browser.execute_script(pictures)
            assert browser.get_log("browser") == []
            backgrounds.append(
                browser.find_element("tag name", "body").value_of_css_property("background-color")
            )
    assert backgrounds[0] != backgrounds[1]


def test_every_text_is_escaped(run: Path, tmp_path: Path) -> None:
    """Names, settings, events, commands and hardware that are markup do nothing, in one page and in a comparison."""
    hostile = run.with_name(HOSTILE.replace("/", ""))
    run.rename(hostile)
    (hostile / "config.toml").write_text(
        f"[data]\nshards = {json.dumps(HOSTILE)}\n{json.dumps(HOSTILE)} = 1\n"
    )
    for name, keys in (
        ("status.json", ("state", "reason", "verdict", "time")), ("provenance.json", ("hardware", "git_commit"))
    ):  # fmt: skip
        told = json.loads((hostile / name).read_text()) | dict.fromkeys(keys, HOSTILE)
        told |= (
            {"command": [HOSTILE], "versions": {HOSTILE: HOSTILE}}
            if name == "provenance.json"
            else {}
        )
        (hostile / name).write_text(json.dumps(told))
    with (hostile / "events.jsonl").open("a") as file:
        file.write(
            json.dumps({"kind": HOSTILE, "what": HOSTILE, "verdict": HOSTILE, "images_seen": 30})
            + "\n"
        )
    rows = read_rows(hostile / "evaluations.jsonl")
    rows[-1]["values"][HOSTILE] = 1.0
    (hostile / "evaluations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert call("report", hostile)[0] == 0
    assert call("report", hostile.parent)[0] == 0
    pages = hostile / "report.html", hostile.parent / "report.html"
    for page in pages:
        assert "<script>window" not in page.read_text()
        assert "<img src=x" not in page.read_text()
    with chromium(tmp_path / "profile") as browser:
        for page in pages:
            browser.get(page.as_uri())
            assert browser.execute_script("return window.hacked === undefined")
            assert browser.get_log("browser") == []


@pytest.mark.parametrize("spoil", ["delete", "garbage", "empty", "cut"])
def test_what_is_missing_or_damaged_is_left_out(
    run: Path, spoil: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One file more each time; a page is written all the same, the last one with its charts."""
    files = [
        p
        for p in run.rglob("*")
        if p.is_file() and p.name not in ("config.toml", "status.json") and p.suffix != ".png"
    ]
    for path in [*files, run / "config.toml", run / "status.json"]:
        content = path.read_bytes()
        if spoil == "delete":
            if path.parent == run and path.name not in ("config.toml", "status.json"):
                path.unlink()
        else:
            path.write_bytes(
                {"garbage": b"\x00{]\xff", "empty": b"", "cut": content[: len(content) // 2]}[spoil]
            )
        with monkeypatch.context() as patch:
            patch.setattr(
                "distgan.reporting.page.draw", lambda chart, **marks: ""
            )  # most of the time goes there
            if path.parent == run and path.suffix != ".html":
                assert write_report(run).stat().st_size > 1000
    assert write_report(run).stat().st_size > 1000


def test_damaged_picture_is_left_out(run: Path) -> None:
    """A grid that is no picture costs that picture only."""
    before = len(read_story(run).sample_grids)
    read_story(run).sample_grids[1][1].write_bytes(b"no picture")
    text = write_report(run).read_text()
    assert len(json.loads(re.findall(r'id="frames">(.*?)</script>', text)[0])) == before - 1


def test_numbers_that_are_none_do_no_harm(run: Path) -> None:
    """Of a run that diverged: NaN and infinity in rows and evaluations."""
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        text = (run / name).read_text()
        text = re.sub(
            r'("(?:loss/d|grad_norm/g|quality/frechet|quality/coverage)": )[-0-9.e]+',
            r"\1NaN",
            text,
        )
        (run / name).write_text(re.sub(r'("loss/g": )[-0-9.e]+', r"\1-Infinity", text))
    assert "Losses" in write_report(run).read_text()
    assert figures(float("nan")) == "–"


def test_a_folder_of_runs(run: Path, tmp_path: Path) -> None:
    """A table in the console, and a page whose table sorts by numbers, unknown ones last."""
    for name, kimg in (("second", 9.5), ("third", 120.0)):
        other = Path(shutil.copytree(run, run.with_name(name)))
        status = json.loads((other / "status.json").read_text()) | {"images_seen": int(kimg * 1000)}
        (other / "status.json").write_text(json.dumps(status))
    (run.with_name("third") / "evaluations.jsonl").unlink()
    code, said = call("report", run.parent)
    assert code == 0, said
    assert all(word in said for word in (*COMPARED, "first", "second", "third", "9.5", "120"))
    with chromium(tmp_path / "profile") as browser:
        browser.get((run.parent / "report.html").as_uri())

        def sort_by(column: str) -> list[str]:
            heads = browser.find_elements("css selector", "#runs th button")
            next(head for head in heads if head.text == column).click()
            return [
                cell.text for cell in browser.find_elements("css selector", "#runs td:first-child")
            ]

        assert sort_by("kimg") == ["first", "second", "third"]
        assert sort_by("kimg") == ["third", "second", "first"]
        assert sort_by("best frechet")[-1] == "third"
        assert sort_by("best frechet")[-1] == "third"
        assert browser.get_log("browser") == []
        browser.find_element("link text", "second").click()
        assert browser.current_url.endswith("second/report.html")


def test_comparison_has_a_value_for_each_column(run: Path) -> None:
    """Runs one folder deeper are found too."""
    (run.parent / "nested").mkdir()
    run.rename(run.parent / "nested" / "first")
    (found,) = find_runs(run.parent)
    assert len(comparison_row(read_story(found))) == len(COMPARED)


@pytest.mark.parametrize("words", [["nowhere"], ["."], ["run", "--out", "/proc/none/page.html"]])
def test_mistakes_are_one_line(
    words: list[str], run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 2; nothing written."""
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    code, said = call("report", *(run if word == "run" else word for word in words))
    assert (code, "Traceback" in said) == (2, False)
    assert list(Path().iterdir()) == []
    with pytest.raises(UserError):
        read_story(tmp_path)


def test_every_verdict_has_words() -> None:
    """For whoever has not read the manual."""
    assert set(VERDICTS) == set(NAMES)


def test_copies_are_their_own_nearest(shards: Path) -> None:
    """A fake that is a real finds it, first."""
    reader = ShardReader(shards)
    copies = torch.from_numpy(reader.gather(np.array([3, 17, 29])))
    ids, searched = nearest_ids(copies, reader, most=1000)
    assert searched == 30
    assert ids[:, 0].tolist() == [3, 17, 29]
    assert nearest_ids(copies, reader, most=10)[1] == 10


def test_other_images_are_not_searched(run: Path, tmp_path: Path) -> None:
    """Where the shards are gone or hold something else, the page says so."""
    config = (run / "config.toml").read_text()
    for place, said in (
        (str(tmp_path / "gone"), "could not be looked for"),
        ("s3://bucket/x", "another machine"),
    ):
        (run / "config.toml").write_text(
            re.sub(r"(?m)^shards = .*$", f"shards = {json.dumps(place)}", config)
        )
        assert said in write_report(run).read_text()
    (run / "config.toml").write_text(config)
    described = json.loads((run / "generator.json").read_text()) | {"dataset": "0" * 64}
    (run / "generator.json").write_text(json.dumps(described))
    assert "no longer holds" in write_report(run).read_text()


def test_curves_are_drawn_in_the_colours_of_the_page() -> None:
    """No fixed colour, no id that two charts share but those of equal content, no number that breaks the path."""
    many = Curve("many", 0, range(2000), np.sin(np.arange(2000)) + 2, level=1.0)
    odd = Curve("odd", 1, [1, 2, 3], [float("nan"), 2.0, float("inf")])
    chart = Chart("title", "note", (many, odd), is_log=True)
    svg = draw(chart, epochs=[Mark(1, "epoch 1")], events=[Mark(2, "1", is_bad=True)])
    assert not re.search(r"(?:fill|stroke): ?#", svg)
    assert "var(--c0)" in svg and "var(--c1)" in svg and "var(--bad)" in svg
    assert "nan" not in svg.lower()
    assert len(svg) < 60_000
    assert draw(chart) == draw(chart)
    assert Chart("", "", (Curve("", 0, (), ()),)).is_empty


def test_moving_mean_reaches_both_ends() -> None:
    """A constant stays constant at the ends and around what is no number."""
    values = np.full(20, 3.0)
    values[7] = np.nan
    np.testing.assert_allclose(moving_mean(values, 5), 3.0)
