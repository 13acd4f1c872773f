"""`distgan export`: files that work without distgan, and a card that says how."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from distgan.commands.export import CARD_MARK, LOADING
from distgan.networks.base import GeneratorSpec
from distgan.networks.build import GENERATORS, build_generator
from distgan.networks.generator_file import load_generator, save_generator
from distgan.networks.latents import generate, sample_latents
from distgan.networks.mixture import mixture_spec
from tests.test_commands import call
from tests.worlds import run_world, train_run


@pytest.fixture(scope="module")
def run(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with an evaluation."""
    folder = tmp_path_factory.mktemp("export") / "run"
    run_world(1, train_run, shards, folder, ["train.kimg=0.024"])
    return folder


def card_head(card: str) -> dict[str, object]:
    """The YAML between the first two lines of dashes."""
    return yaml.safe_load(card.split("---\n")[1])


def code_of(card: str) -> str:
    """The first Python of a card."""
    found = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert found is not None
    return found[1]


def test_safetensors_load_with_torch_alone(run: Path, tmp_path: Path) -> None:
    """The card's own lines, in a process that can import neither distgan nor safetensors, give the same images."""
    code, said = call("export", run, "--out", tmp_path / "out", "--license", "mit")
    assert code == 0, said
    block = "import sys; sys.modules |= dict.fromkeys(('distgan', 'shards', 'safetensors', 'accelerate'))\n"
    generator = load_generator(run)
    network, spec = generator.network, generator.spec
    latents = sample_latents(3, spec, seed=0)
    np.save(tmp_path / "latents.npy", latents.numpy())
    after = "\nimport numpy; latents = torch.from_numpy(numpy.load(sys.argv[1]))\nnumpy.save(sys.argv[2], generate(latents).numpy())"
    words = [block + code_of((tmp_path / "out" / "README.md").read_text()) + after]
    command = [
        sys.executable,
        "-P",
        "-W",
        "error",
        "-c",
        *words,
        tmp_path / "latents.npy",
        tmp_path / "images.npy",
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path / "out", timeout=120
    )
    assert done.returncode == 0, done.stderr
    images = torch.from_numpy(np.load(tmp_path / "images.npy"))
    torch.testing.assert_close(images, generate(network, latents), rtol=0, atol=1e-5)


@pytest.mark.parametrize("architecture", GENERATORS)
def test_every_architecture_says_how_to_load_it(
    architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In ten lines, or fifteen, that give the network's own images."""
    spec = GeneratorSpec(
        architecture=architecture, image_size=64, channels=3, width=4, latent_dim=8
    )
    network = build_generator(spec)
    network(sample_latents(16, spec, seed=0))  # norm statistics that are not those of the start
    save_generator(network.eval(), spec, tmp_path, facts={})
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {}
    exec(LOADING[architecture], namespace)
    latents = sample_latents(3, spec, seed=1)
    torch.testing.assert_close(
        namespace["generate"](latents), generate(network, latents), rtol=0, atol=1e-5
    )
    assert (
        len(LOADING[architecture].splitlines()) <= {"dcgan": 10, "resnet": 15}[architecture] + 1
    )  # and the imports


def test_a_generator_of_classes_is_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its card says how many classes there are, and its lines make images."""
    part = GeneratorSpec(architecture="dcgan", image_size=32, channels=1, width=4, latent_dim=8)
    spec = mixture_spec(part, classes=("cat", "dog"), weights=(0.5, 0.5))
    save_generator(build_generator(spec).eval(), spec, tmp_path, facts={})
    assert call("export", tmp_path, "--out", tmp_path / "out")[0] == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "DCGAN for each of 2 classes" in card
    monkeypatch.chdir(tmp_path / "out")
    namespace: dict[str, Any] = {}
    exec(code_of(card), namespace)
    assert namespace["images"].shape == (16, 1, 32, 32)


def test_what_was_exported_is_sampled_again(run: Path, tmp_path: Path) -> None:
    """Folder and file alike give the run's images."""
    assert call("export", run, "--out", tmp_path / "out")[0] == 0
    generator = load_generator(run)
    network, spec = generator.network, generator.spec
    latents = sample_latents(2, spec, seed=1)
    for path in (tmp_path / "out", tmp_path / "out" / "generator.safetensors"):
        again = load_generator(path)
        assert again.spec == spec
        assert torch.equal(generate(again.network, latents), generate(network, latents))


def test_onnx_takes_batches_of_any_size(run: Path, tmp_path: Path) -> None:
    """onnxruntime gives torch's images for one latent and for many."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="pip install 'distgan[onnx]'")
    pytest.importorskip("onnxscript", reason="pip install 'distgan[onnx]'")
    code, said = call("export", run, "--format", "onnx", "--out", tmp_path / "out")
    assert (code, "onnxruntime's images are torch's to" in said) == (0, True), said
    session = onnxruntime.InferenceSession(
        tmp_path / "out" / "generator.onnx", providers=["CPUExecutionProvider"]
    )
    generator = load_generator(run)
    network, spec = generator.network, generator.spec
    for num in (1, 5, 33):
        latents = sample_latents(num, spec, seed=2)
        (images,) = session.run(None, {"latents": latents.numpy()})
        torch.testing.assert_close(
            torch.from_numpy(images), generate(network, latents), rtol=0, atol=1e-4
        )
    assert "onnxruntime" in (tmp_path / "out" / "README.md").read_text()


def test_onnx_names_the_extra(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line to type stands in the error."""
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    code, said = call("export", run, "--format", "onnx", "--out", tmp_path / "out")
    assert (code, "pip install 'distgan[onnx]'" in said) == (2, True), said


def test_card_tells_data_settings_and_quality(run: Path, tmp_path: Path) -> None:
    """The front matter is read by Hugging Face's own library; the body has what a stranger needs."""
    call("export", run, "--out", tmp_path, "--license", "cc-by-4.0")
    card = (tmp_path / "README.md").read_text()
    assert card_head(card)["license"] == "cc-by-4.0"
    facts = json.loads((tmp_path / "generator.json").read_text())
    assert facts["dataset"] in card
    assert "`networks.generator_width` | `4`" in card
    assert "`quality/frechet`" in card
    assert "12 fakes" in card
    assert "data.shards" not in card
    huggingface_hub = pytest.importorskip("huggingface_hub")
    assert huggingface_hub.ModelCard(card).data.pipeline_tag == "unconditional-image-generation"


def test_a_hostile_name_stays_text(run: Path, tmp_path: Path) -> None:
    """A run folder's name and a licence can neither add fields to the card nor markup."""
    named = tmp_path / "`<script>`|x\n# y"
    named.symlink_to(run)
    call("export", named, "--out", tmp_path / "out", "--license", "mit\nlibrary_name: evil")
    card = (tmp_path / "out" / "README.md").read_text()
    assert card_head(card)["library_name"] == "pytorch"
    assert "\n# y" not in card


def test_a_card_of_ones_own_is_kept(run: Path, tmp_path: Path) -> None:
    """Without its mark it belongs to a person."""
    call("export", run, "--out", tmp_path)
    card = (tmp_path / "README.md").read_text().replace(CARD_MARK, "mine")
    (tmp_path / "README.md").write_text(card)
    code, said = call("export", run, "--out", tmp_path)
    assert (code, "kept" in said) == (0, True)
    assert (tmp_path / "README.md").read_text() == card


@pytest.mark.parametrize(
    ("source", "out", "expected"), [("nowhere", "out", "nowhere"), ("run", "/proc/none", "--out")]
)
def test_mistakes(run: Path, tmp_path: Path, source: str, out: str, expected: str) -> None:
    """Exit code 2 and what to type."""
    code, said = call(
        "export", run if source == "run" else tmp_path / source, "--out", tmp_path / out
    )
    assert (code, expected in said) == (2, True), said
