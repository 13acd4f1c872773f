"""The Hugging Face Hub: `export --push USER/NAME`, and generators loaded by their name there."""

import sys
from pathlib import Path

import pytest
import torch
import yaml

import distgan
from distgan.networks.base import GeneratorSpec
from distgan.networks.build import build_generator
from distgan.networks.generator import Generator
from distgan.networks.generator_file import save_generator
from tests.hub_server import HubServer
from tests.test_commands import call

SPEC = GeneratorSpec(architecture="dcgan", image_size=32, channels=3, width=4, latent_dim=8)


@pytest.fixture
def generator(tmp_path: Path) -> Path:
    """A folder with a generator."""
    save_generator(build_generator(SPEC).eval(), SPEC, tmp_path, facts={"images_seen": 7})
    return tmp_path


def write_small_onnx(generator: Generator, out: Path, facts: dict[str, object]) -> str:
    """Write a stand-in for the slow export, which tests/test_export.py tests."""
    (out / "generator.onnx").write_bytes(b"weights")
    return "wrote"


@pytest.fixture
def pushed(
    hub: HubServer, generator: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> HubServer:
    """The server after a push, from a folder that also has two files that are not of the export."""
    monkeypatch.setattr("distgan.commands.demo.write_onnx", write_small_onnx)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "private.txt").write_text("mine")
    (tmp_path / "out" / "generator.onnx").write_text("of another generator")
    arguments = ("--out", tmp_path / "out", "--license", "mit", "--push", "me/faces", "--private")
    code, said = call("export", generator, *arguments)
    assert (code, f"{hub.url}/spaces/me/faces" in said) == (0, True), said
    return hub


def test_push_uploads_generator_card_and_demo(pushed: HubServer) -> None:
    """A model and a static Space; only files of this generator."""
    assert {name: repo["visibility"] for name, repo in pushed.repos.items()} == {
        "models/me/faces": "private",
        "spaces/me/faces": "private",
    }
    assert pushed.repos["spaces/me/faces"]["sdk"] == "static"
    model, space = pushed.files["models/me/faces"], pushed.files["spaces/me/faces"]
    assert model.keys() == {"README.md", "generator.json", "generator.safetensors", "samples.png"}
    assert space.keys() == {"README.md", "generator.onnx", "index.html"}
    head = yaml.safe_load(space["README.md"].decode().split("---\n")[1])
    assert (head["sdk"], head["models"], head["license"]) == ("static", ["me/faces"], "mit")
    assert b"https://*.hf.co" in space["index.html"]
    card = model["README.md"].decode()
    assert "https://huggingface.co/spaces/me/faces" in card
    assert 'distgan.load_generator("me/faces")' in card


def test_pushed_generator_loads_by_its_name(
    pushed: HubServer, generator: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In Python and in commands it gives the same images; the second time from the cache."""
    monkeypatch.chdir(tmp_path)
    images = distgan.load_generator(generator).sample(2)
    assert torch.equal(distgan.load_generator("me/faces").sample(2), images)
    code, said = call("sample", "me/faces", "--num", 4, "--out", tmp_path / "grid.png")
    assert (code, (tmp_path / "grid.png").exists()) == (0, True), said
    pushed.shutdown()
    pushed.server_close()
    assert torch.equal(distgan.load_generator("me/faces").sample(2), images)


def test_unknown_name_is_one_line(hub: HubServer) -> None:
    """The error says that there is neither such a folder nor such a model."""
    with pytest.raises(
        distgan.UserError, match="no such file or folder: me/none, and no such model"
    ):
        distgan.load_generator("me/none")


def test_mistyped_path_is_not_looked_for_on_the_hub(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name in an existing folder is a path, as is one that the Hub does not allow."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    for path in ("runs/none", "none", "a/b/none"):
        with pytest.raises(distgan.UserError, match=f"no such file or folder: {path}$"):
            distgan.load_generator(path)


def test_wrong_token_and_name_are_one_line(
    hub: HubServer, generator: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The errors say what to type; a wrong name is refused before anything is written."""
    monkeypatch.setattr("distgan.commands.demo.write_onnx", write_small_onnx)
    out = tmp_path / "out"
    code, said = call("export", generator, "--out", out, "--push", "faces")
    assert (code, "USER/NAME" in said, out.exists()) == (2, True, False), said
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    code, said = call("export", generator, "--out", out, "--push", "me/faces")
    assert (code, "hf auth login" in said, said.count("\n")) == (2, True, 1), said
    code, said = call("export", generator, "--out", out, "--private")
    assert (code, "--push" in said) == (2, True), said


@pytest.mark.parametrize("public", ["models/me/faces", "spaces/me/faces"])
def test_private_push_to_a_public_place_uploads_nothing(
    public: str, hub: HubServer, generator: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Hub does not make it private; the error says what to do."""
    monkeypatch.setattr("distgan.commands.demo.write_onnx", write_small_onnx)
    hub.repos[public], hub.files[public] = {"visibility": "public"}, {}
    arguments = ("--out", tmp_path / "out", "--push", "me/faces", "--private")
    code, said = call("export", generator, *arguments)
    assert (code, "public; make it private in its settings" in said) == (2, True), said
    assert not any(hub.files.values())


def test_missing_library_names_the_extra(
    generator: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loading by name and pushing say what to install."""
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.setattr("distgan.commands.demo.write_onnx", write_small_onnx)
    with pytest.raises(distgan.UserError, match=r"no such file or folder.*distgan\[hub\]"):
        distgan.load_generator("me/faces")
    code, said = call("export", generator, "--out", tmp_path / "out", "--push", "me/faces")
    assert (code, "distgan[hub]" in said) == (2, True), said
