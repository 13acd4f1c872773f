"""`distgan report`: the page of a run, opened in a real browser."""

import base64
import io
import json
import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from distgan.reporting.nearest import nearest_ids
from distgan.reporting.page import NOT_SEARCHED, write_report
from distgan.reporting.rendering import image_uri
from distgan.reporting.run_record import read_record
from distgan.run.files import read_rows
from shards.reader import ShardReader
from tests.browser import chromium
from tests.reports import REPORT_SETTINGS, frames_in, report_text
from tests.test_commands import call
from tests.worlds import run_world, train_run

HOSTILE = (
    "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>\"'&$x$"
)


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


def test_a_run_in_a_folder_whose_name_is_no_utf8_has_a_page(finished: Path, tmp_path: Path) -> None:
    """Its name is shown with the byte that is none; pages of several runs link to it."""
    runs = tmp_path / "runs"
    run = runs / os.fsdecode(b"r\xff")
    for folder in (run, runs / "plain"):
        shutil.copytree(finished, folder)
    code, said = call("report", run)
    assert code == 0, said
    assert "r\\udcff" in (run / "report.html").read_text()
    code, said = call("report", runs)
    assert code == 0, said
    assert "r%FF/report.html" in (runs / "report.html").read_text()


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
    headings = re.findall("<h2[^>]*>(.*?)</h2>", text, re.DOTALL)
    assert {"Samples", "Curves", "Evaluation", "Nearest real images"} <= set(headings), headings
    assert len(frames_in(text)) == len(read_record(finished).sample_grids) > 3


def test_interrupted_run_writes_its_page_without_the_search(shards: Path, tmp_path: Path) -> None:
    """An interrupted run has little time; rank zero alone writes the page."""
    results = run_world(2, train_run, shards, tmp_path / "run", REPORT_SETTINGS, 24)
    assert [result["state"] for result in results] == ["preempted", "preempted"]
    assert results[1]["writes"] == []
    assert NOT_SEARCHED in (tmp_path / "run" / "report.html").read_text()


def test_page_that_cannot_be_written_does_not_fail_the_run(shards: Path, tmp_path: Path) -> None:
    """The run is done, with one warning and no temporary file."""
    (tmp_path / "run" / "report.html").mkdir(parents=True)
    assert run_world(1, train_run, shards, tmp_path / "run", REPORT_SETTINGS)[0]["state"] == "done"
    events = read_rows(tmp_path / "run" / "events.jsonl")
    (warning,) = [event["what"] for event in events if event["kind"] == "warning"]
    assert warning.startswith("could not write report.html: ")
    assert not list((tmp_path / "run").glob(".report*"))


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


@pytest.mark.parametrize(
    ("world", "slurm", "expected"),
    [
        ({}, {}, "distgan train"),
        ({"processes": 4, "device": "cuda"}, {}, "launch/one_node.yaml --num_processes 4"),
        ({"processes": 4, "device": "cpu"}, {}, "launch/cpu.yaml --num_processes 4"),
        (
            {"processes": 8, "nodes": 2, "device": "cuda"},
            {},
            "launch/many_nodes.yaml --num_processes 8 --num_machines 2 --machine_rank RANK",
        ),
        (
            {"processes": 8, "nodes": 2, "device": "cuda"},
            {"SLURM_JOB_ID": "7"},
            "sbatch --nodes=2 --gpus-per-node=4 launch/slurm.sbatch --data",
        ),
        (
            {"processes": 4, "nodes": 2, "device": "cpu"},
            {"SLURM_JOB_ID": "7"},
            "PROCESSES_PER_NODE=2 sbatch --nodes=2 launch/slurm.sbatch --data",
        ),
        ({"processes": 2, "nodes": 0, "device": "cpu"}, {"SLURM_JOB_ID": "7"}, "--nodes=0"),
    ],
)
def test_the_command_starts_as_many_processes_on_as_many_nodes(
    finished: Path,
    tmp_path: Path,
    world: dict[str, object],
    slurm: dict[str, str],
    expected: str,
) -> None:
    """As the run was started, from what its folder says; also if that makes no sense."""
    run = shutil.copytree(finished, tmp_path / "run")
    command = ["train.py", "--data", "shards"]
    provenance = {"command": command, "world": world, "slurm": slurm}
    (run / "provenance.json").write_text(json.dumps(provenance))
    assert expected in read_record(run).command


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
