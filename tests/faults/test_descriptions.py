"""Descriptions of generators that are wrong or hostile."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from distgan.commands.export import export
from distgan.errors import UserError
from distgan.networks.base import GeneratorSpec
from distgan.networks.build import build_generator
from distgan.networks.generator_file import load_generator, save_generator
from tests.test_commands import call


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Save a small generator."""
    spec = GeneratorSpec(architecture="dcgan", image_size=32, channels=1, width=4, latent_dim=8)
    save_generator(build_generator(spec), spec, tmp_path, facts={"images_seen": 12})
    return tmp_path


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("width", 4096),
        ("channels", 10_000_000),
        ("latent_dim", 2**40),
        ("width", 2**70),
        ("width", "4"),
        ("width", -1),
        ("image_size", 128),
        ("image_size", 2**40),
        ("architecture", "none"),
    ],
)
def test_wrong_sizes_in_a_description_cost_nothing(run: Path, field: str, value: Any) -> None:
    """They are compared with the header of the weights before anything is allocated."""
    description = json.loads((run / "generator.json").read_text())
    description["generator"][field] = value
    (run / "generator.json").write_text(json.dumps(description))
    began = time.monotonic()
    with pytest.raises(UserError, match="cannot read a generator from"):
        load_generator(run / "generator.safetensors")
    assert time.monotonic() - began < 2


def test_many_classes_in_a_description_cost_nothing(run: Path) -> None:
    """A mixture has as many generators as its file has parts."""
    description = json.loads((run / "generator.json").read_text())
    names = list(map(str, range(100_000)))
    description["generator"] |= {
        "architecture": "mixture", "part": dict(description["generator"]),
        "classes": names, "weights": [1e-5] * len(names),
    }  # fmt: skip
    (run / "generator.json").write_text(json.dumps(description))
    began = time.monotonic()
    with pytest.raises(UserError, match="100000 classes are described"):
        load_generator(run / "generator.safetensors")
    assert time.monotonic() - began < 2


@pytest.mark.parametrize("value", ["many", [1], {}, 1.5])
def test_export_of_a_wrong_description_is_one_line(run: Path, tmp_path: Path, value: Any) -> None:
    """The file and the field are named."""
    description = json.loads((run / "generator.json").read_text()) | {"images_seen": value}
    (run / "generator.json").write_text(json.dumps(description))
    with pytest.raises(UserError, match=r"generator.json: images_seen is .*, which is no number"):
        export(run / "generator.safetensors", tmp_path / "out", format="safetensors", license="x")


def test_control_characters_in_class_names_are_escaped(run: Path) -> None:
    """A class name cannot send control sequences to a terminal."""
    description = json.loads((run / "generator.json").read_text())
    description["generator"] |= {
        "architecture": "mixture", "part": dict(description["generator"]),
        "classes": ["\x1b[31mred", "b"], "weights": [0.5, 0.5],
    }  # fmt: skip
    (run / "generator.json").write_text(json.dumps(description))
    weights = load_file(run / "generator.safetensors")
    save_file(
        {f"parts.{part}.{name}": t.clone() for part in (0, 1) for name, t in weights.items()},
        run / "generator.safetensors",
    )
    code, said = call("sample", run / "generator.safetensors", "--class", "c")
    assert (code, "\x1b" in said, "x1b[31mred" in said) == (2, False, True), said


def test_pipe_in_place_of_weights_is_not_waited_for(run: Path) -> None:
    """Only a regular file is opened."""
    (run / "generator.safetensors").unlink()
    os.mkfifo(run / "generator.safetensors")
    with pytest.raises(UserError, match=r"generator.safetensors is not a regular file"):
        load_generator(run)
