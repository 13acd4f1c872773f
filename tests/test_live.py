"""`distgan report --live`: the page of a run that follows its training, in a real browser."""

import http.client
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from distgan.reporting.live import LiveServer
from distgan.run.files import append_row, read_rows
from tests.browser import chromium
from tests.test_commands import call
from tests.worlds import ROOT, SMALL, execute_script, run_world, start_process, train_run


@pytest.fixture(scope="module")
def finished(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    run_world(1, train_run, shards, folder, ["train.kimg=0.024"])
    return folder


@pytest.fixture
def server(finished: Path, tmp_path: Path) -> Iterator[LiveServer]:
    """The live page of a copy of the finished run."""
    with LiveServer(Path(shutil.copytree(finished, tmp_path / "run"))) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(server: LiveServer, path: str = "/", method: str = "GET", **headers: str) -> tuple:
    """Return (status, ETag, body) of a request."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, headers=fields)
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response.status, response.headers.get("ETag"), body


def test_page_is_sent_again_only_if_the_run_changed(server: LiveServer) -> None:
    """The ETag changes with the files of the run folder."""
    status, version, page = ask(server)
    assert (status, b"Losses" in page) == (200, True)
    assert ask(server, If_None_Match=version) == (304, version, b"")
    append_row(server.run / "events.jsonl", {"kind": "warning", "what": "news", "images_seen": 24})
    status, changed, page = ask(server, If_None_Match=version)
    assert (status, changed != version, b"news" in page) == (200, True, True)


def test_length_grows_with_the_rows_of_a_resumed_run(server: LiveServer) -> None:
    """The status of a running run says how many images it had seen at its start."""
    status = server.run / "status.json"
    status.write_text(status.read_text().replace('"done"', '"running"'))
    assert b"24 images, " in ask(server)[2]
    [last] = read_rows(server.run / "metrics.jsonl")[-1:]
    append_row(server.run / "metrics.jsonl", last | {"progress/images": 36})
    assert b"36 images, " in ask(server)[2]


def test_server_is_read_only_and_local(server: LiveServer) -> None:
    """It answers GET and HEAD of one page, on loopback, and changes no file."""
    before = {path: path.stat().st_mtime_ns for path in server.run.rglob("*")}
    assert server.server_address[0] == "127.0.0.1"
    assert ask(server, method="HEAD")[2] == b""
    for method in ("POST", "PUT", "DELETE"):
        assert ask(server, method=method)[0] == 501
    for path in ("/status.json", "/../run/status.json", "/%2e%2e/status.json"):
        assert ask(server, path)[0] == 404
    assert ask(server, Host="evil.example")[0] == 403
    assert ask(server, Host=f"localhost:{server.server_port}")[0] == 200
    assert {path: path.stat().st_mtime_ns for path in server.run.rglob("*")} == before


def test_damaged_run_is_reported_until_it_is_readable(server: LiveServer) -> None:
    """While a file is missing the server answers with the reason, and recovers."""
    status = (server.run / "status.json").read_bytes()
    (server.run / "status.json").unlink()
    code, _, body = ask(server)
    assert (code, b"not a run folder" in body) == (503, True)
    (server.run / "status.json").write_bytes(status)
    assert ask(server)[0] == 200


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["nowhere", "--live"], "not a run folder"),
        (["run", "--live", "--out", "page.html"], "leave out --out"),
        (["run", "--live", "--port", "1"], "--port"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], expected: str, finished: Path, tmp_path: Path
) -> None:
    """A wrong folder, a file to write and a port that is taken."""
    with LiveServer(finished) as other:
        taken = {"run": str(finished), "1": str(other.server_port)}
        code, output = call("report", *(taken.get(word, word) for word in arguments))
    assert (code, output.count("\n"), expected in output) == (2, 1, True), output


@contextmanager
def training(arguments: list[str], folder: Path) -> Iterator[None]:
    """Run `distgan train` with arguments in a process of its own, and end it afterwards."""
    process = start_process(execute_script, "distgan", ["train", *arguments], folder)
    try:
        yield
    finally:
        process.terminate()
        process.join(120)


@contextmanager
def started(*command: str) -> Iterator[subprocess.Popen[str]]:
    """Run a command of this checkout, and end it afterwards."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=120)


def wait_until(condition: Callable[[], bool], *, seconds: float = 120) -> None:
    """Wait for a condition; fails after some time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the page did not change"
        time.sleep(0.05)


def test_page_follows_a_running_training(shards: Path, tmp_path: Path) -> None:
    """Samples and curves arrive without reloading; the slider stays where the user left it."""
    run = tmp_path / "run"
    settings = [*SMALL, "train.kimg=100000", "log.samples_every_kimg=1", "log.every_kimg=0.5"]
    code = "from distgan.cli import app; app()"
    data = ["--preset", "classic", "--data", str(shards)]
    with training([*data, "--run-dir", str(run), *settings], tmp_path):
        wait_until(lambda: len(list(run.glob("samples/0*.png"))) >= 2)
        with (
            started("-c", code, "report", str(run), "--live") as live,
            chromium(tmp_path / "profile") as browser,
        ):
            assert live.stdout is not None
            (url,) = re.findall(r"http://127\.0\.0\.1:\d+/", live.stdout.readline())
            browser.get(url)
            browser.execute_script("window.isSamePage = true")

            def points() -> str:
                """Return the first curve, which a poll may replace at any time."""
                path = "document.querySelector('#curves svg path')"
                return str(browser.execute_script(f"return {path}.getAttribute('d')"))

            def state() -> tuple[int, int, int]:
                """Return the number of frames, and the slider's value and maximum, at one time."""
                slider = "Number(byId('slider').value), Number(byId('slider').max)"
                num_frames, value, last = browser.execute_script(
                    f"return [frames.length, {slider}]"
                )
                return num_frames, value, last

            frames, value, last = state()
            curve = points()
            assert (value, last) == (frames - 1, frames - 1)
            wait_until(lambda: state()[0] > frames and points() != curve)
            _, value, last = state()
            assert value == last
            browser.execute_script(
                "byId('slider').value = 0;"
                "byId('slider').dispatchEvent(new Event('input', {bubbles: true}))"
            )
            frames = state()[0]
            wait_until(lambda: state()[0] > frames)
            assert state()[1] == 0
            assert browser.execute_script("return window.isSamePage === true")
            assert browser.get_log("browser") == []
