"""Passwords and tokens in URLs of images reach the server, but no message and no file."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.shards.servers import Server, serving
from tests.test_commands import call

SECRET = "hunter2"

pytest.importorskip("aiohttp")
pytestmark = pytest.mark.usefixtures("no_proxy")


@pytest.fixture
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def server(shards: Path) -> Iterator[Server]:
    with serving(shards) as server:
        yield server


@pytest.fixture
def sweep_file(tmp_path: Path) -> Path:
    """A sweep of one run."""
    path = tmp_path / "some.toml"
    path.write_text("kimg = 1")
    return path


def secret_url(server: Server) -> str:
    """Return the URL of the server's shards with a password and a token."""
    return server.url.replace("://", f"://user:{SECRET}@") + f"?token={SECRET}"


def test_evaluate_shows_where_the_real_images_are_without_secrets(
    server: Server, tmp_path: Path
) -> None:
    """The line before the numbers names the URL."""
    server.faults["index.json"] = ["404"]
    _, said = call("evaluate", tmp_path, "--data", secret_url(server))
    assert (server.url in said.replace("\n", ""), SECRET in said) == (True, False), said


@pytest.mark.parametrize("quote", ["", '"'])
def test_a_sweep_records_its_settings_without_secrets(
    quote: str, server: Server, sweep_file: Path, tmp_path: Path
) -> None:
    """sweep.json holds a setting that can be read again; the run gets the whole URL."""
    setting, folder = f"data.shards={quote}{secret_url(server)}{quote}", tmp_path / "runs"
    code, said = call("sweep", sweep_file, setting, "--folder", folder, "--index", 0, "--words")
    assert (code, setting in said.splitlines()) == (0, True), said
    recorded = json.loads((folder / "sweep.json").read_text())
    assert recorded["overrides"] == [f"data.shards={server.url}"]


def test_the_list_of_a_sweep_shows_no_secrets(
    server: Server, sweep_file: Path, tmp_path: Path
) -> None:
    """Nor does the command that trains it as an array."""
    setting = f"data.shards={secret_url(server)}"
    code, said = call("sweep", sweep_file, setting, "--folder", tmp_path / "runs", "--list")
    assert (code, "as an array" in said, SECRET in said) == (0, True, False), said


def test_the_board_of_a_sweep_shows_no_secrets(
    server: Server, sweep_file: Path, tmp_path: Path
) -> None:
    """An earlier version recorded them."""
    recorded = {"overrides": [f"data.shards={secret_url(server)}"]}
    (tmp_path / "sweep.json").write_text(json.dumps(recorded))
    _, said = call("sweep", sweep_file, "--folder", tmp_path, "--board")
    assert ("settings of the last sweep" in said, SECRET in said) == (True, False), said


def test_the_board_says_what_to_repeat_if_the_server_wants_a_password(
    server: Server, sweep_file: Path, tmp_path: Path
) -> None:
    """The recorded URL has none."""
    arguments = ["sweep", sweep_file, "--folder", tmp_path]
    setting = f"data.shards={secret_url(server)}"
    assert call(*arguments, setting, "--index", 0, "--words")[0] == 0
    server.faults["index.json"] = ["403"]
    code, said = call(*arguments, "--board")
    assert (code, "access was denied" in said, "repeat the settings" in said) == (2, True, True)
