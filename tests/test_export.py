"""`distgan export`: files that work without distgan, and a model card that shows how."""

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from distgan.commands.export import CARD_MARK, export, write_onnx
from distgan.networks.base import GeneratorSpec
from distgan.networks.build import GENERATORS, build_generator
from distgan.networks.generator_file import load_generator, save_generator
from distgan.networks.latents import generate, sample_latents
from distgan.networks.mixture import mixture_spec
from tests.test_commands import call
from tests.worlds import run_code, run_world, train_run


@pytest.fixture(scope="module")
def run(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished run with an evaluation."""
    folder = tmp_path_factory.mktemp("export") / "run"
    run_world(1, train_run, shards, folder, ["train.kimg=0.024"])
    return folder


def card_head(card: str) -> dict[str, object]:
    """Return the YAML between the first two lines of dashes."""
    return yaml.safe_load(card.split("---\n")[1])


def code_of(card: str) -> str:
    """Return the first Python code of a card."""
    found = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert found is not None
    return found[1]


def run_card(folder: Path, code: str, *, blocked: tuple[str, ...] = ()) -> None:
    """Run Python code of a card in its folder, in a process that cannot import some packages."""
    run_code(f"import sys; sys.modules |= dict.fromkeys({blocked!r})\n{code}", folder)


@pytest.mark.parametrize(
    ("architecture", "more"),
    [
        *((architecture, {}) for architecture in GENERATORS),
        *((architecture, {"code_dim": 3}) for architecture in GENERATORS),
        ("dcgan", {"refinements": 2}),
        ("dcgan", {"refinements": 4, "code_dim": 3}),
    ],
)
def test_card_shows_how_to_generate_images_without_distgan(
    architecture: str, more: dict[str, int], tmp_path: Path
) -> None:
    """Its code gives the network's own images, and saves them as a PNG."""
    spec = GeneratorSpec(
        architecture=architecture, image_size=(32, 48), channels=3, width=4, latent_dim=8, **more
    )
    network = build_generator(spec)
    if network.modulation is not None:
        # At first it changes nothing; weights of 1 would amplify rounding.
        draw = torch.Generator().manual_seed(0)
        torch.nn.init.normal_(network.modulation.weight, std=0.3, generator=draw)
    network(sample_latents(16, spec, seed=0))  # so that norm statistics are not the initial ones
    save_generator(network.eval(), spec, tmp_path, facts={})
    out = tmp_path / "out"
    code, said = call("export", tmp_path, "--out", out, "--license", "mit")
    assert code == 0, said
    latents = sample_latents(3, spec, seed=1)
    np.save(out / "latents.npy", latents.numpy())
    after = """
import numpy
latents = torch.from_numpy(numpy.load("latents.npy"))
numpy.save("images.npy", generate(latents).numpy())
"""
    blocked = ("distgan", "shards", "accelerate")
    run_card(out, code_of((out / "README.md").read_text()) + after, blocked=blocked)
    images = torch.from_numpy(np.load(out / "images.npy"))
    torch.testing.assert_close(images, generate(network, latents), rtol=0, atol=1e-5)
    with Image.open(out / "images.png") as picture:
        assert picture.size == (4 * 50 + 2, 4 * 34 + 2)


def test_card_of_a_generator_with_classes_uses_distgan(tmp_path: Path) -> None:
    """It says how many classes there are, and its code saves images."""
    part = GeneratorSpec(architecture="dcgan", image_size=32, channels=1, width=4, latent_dim=8)
    spec = mixture_spec(part, classes=("cat", "dog"), weights=(0.5, 0.5))
    save_generator(build_generator(spec).eval(), spec, tmp_path, facts={})
    out = tmp_path / "out"
    assert call("export", tmp_path, "--out", out)[0] == 0
    card = (out / "README.md").read_text()
    assert "DCGAN for each of 2 classes" in card
    run_card(out, code_of(card))
    with Image.open(out / "images.png") as picture:
        assert picture.size == (4 * 34 + 2, 4 * 34 + 2)


def test_exported_generators_load_again(run: Path, tmp_path: Path) -> None:
    """The exported folder and file both give the images of the run."""
    assert call("export", run, "--out", tmp_path / "out")[0] == 0
    generator = load_generator(run)
    for path in (tmp_path / "out", tmp_path / "out" / "generator.safetensors"):
        again = load_generator(path)
        assert again.spec == generator.spec
        assert torch.equal(again.sample(2, seed=1), generator.sample(2, seed=1))


@pytest.fixture(scope="module")
def both(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with both formats of the run's generator, to be read only."""
    pytest.importorskip("onnxruntime", reason="pip install 'distgan[onnx]'")
    pytest.importorskip("onnxscript", reason="pip install 'distgan[onnx]'")
    out = tmp_path_factory.mktemp("both") / "out"
    assert call("export", run, "--out", out)[0] == 0
    code, said = call("export", run, "--format", "onnx", "--out", out)
    assert (code, "onnxruntime's images differ from torch's by at most" in said) == (0, True), said
    assert "left out" not in said
    return out


def test_a_failed_check_leaves_no_onnx_file(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="pip install 'distgan[onnx]'")
    pytest.importorskip("onnxscript", reason="pip install 'distgan[onnx]'")

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("no such operator")

    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    with pytest.raises(RuntimeError, match="no such operator"):
        write_onnx(load_generator(run), tmp_path, {})
    assert not list(tmp_path.iterdir())


def test_onnx_takes_batches_of_any_size(run: Path, both: Path) -> None:
    """onnxruntime gives the images of PyTorch, for one latent and for many."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="pip install 'distgan[onnx]'")
    session = onnxruntime.InferenceSession(
        both / "generator.onnx", providers=["CPUExecutionProvider"]
    )
    generator = load_generator(run)
    for num in (1, 5, 33):
        latents = generator.latents(num, seed=2)
        (images,) = session.run(None, {"latents": latents.numpy()})
        torch.testing.assert_close(
            torch.from_numpy(images), generate(generator.network, latents), rtol=0, atol=1e-4
        )


@pytest.mark.parametrize("again", [False, True])
def test_card_shows_both_formats_of_one_generator(
    run: Path, both: Path, tmp_path: Path, again: bool
) -> None:
    """Whichever was exported last."""
    out = shutil.copytree(both, tmp_path / "out")
    if again:
        assert call("export", run, "--out", out)[0] == 0
    card = (out / "README.md").read_text()
    assert "generator.safetensors" in card and "generator.onnx" in card


def test_card_leaves_out_a_file_of_another_generator(run: Path, both: Path, tmp_path: Path) -> None:
    """It stays where it is, and a sentence says so."""
    spec = GeneratorSpec(architecture="dcgan", image_size=32, channels=1, width=4, latent_dim=8)
    (tmp_path / "other").mkdir()
    save_generator(build_generator(spec).eval(), spec, tmp_path / "other", facts={})
    out = shutil.copytree(both, tmp_path / "out")
    code, said = call("export", tmp_path / "other", "--out", out)
    assert (code, f"left out {out / 'generator.onnx'}" in said) == (0, True), said
    card = (out / "README.md").read_text()
    assert "generator.safetensors" in card and "generator.onnx" not in card
    assert (out / "generator.onnx").read_bytes() == (both / "generator.onnx").read_bytes()


def test_missing_onnxruntime_names_the_extra(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error says what to install."""
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    code, said = call("export", run, "--format", "onnx", "--out", tmp_path / "out")
    assert (code, "pip install 'distgan[onnx]'" in said) == (2, True), said


def test_card_shows_data_settings_and_quality(run: Path, tmp_path: Path) -> None:
    """Hugging Face's own library reads the front matter; the body has the facts of the run."""
    call("export", run, "--out", tmp_path, "--license", "cc-by-4.0")
    card = (tmp_path / "README.md").read_text()
    assert card_head(card)["license"] == "cc-by-4.0"
    facts = json.loads((tmp_path / "generator.json").read_text())
    assert facts["dataset"] in card
    assert "`networks.generator_width` | `4`" in card
    assert "`quality/frechet`" in card
    assert "12 generated images" in card
    assert "data.shards" not in card
    huggingface_hub = pytest.importorskip("huggingface_hub")
    assert huggingface_hub.ModelCard(card).data.pipeline_tag == "unconditional-image-generation"


def test_hostile_names_stay_text(run: Path, tmp_path: Path) -> None:
    """The name of a run folder or a licence can add neither fields nor markup to the card."""
    named = tmp_path / "`<script>`|x\n# y"
    named.symlink_to(run)
    call("export", named, "--out", tmp_path / "out", "--license", "mit\nlibrary_name: evil")
    card = (tmp_path / "out" / "README.md").read_text()
    assert card_head(card)["library_name"] == "pytorch"
    assert "\n# y" not in card


def test_a_card_that_cannot_be_written_is_not_left_empty(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next export would take an empty card for an edited one, and keep it."""
    monkeypatch.setattr("distgan.commands.export.model_card", lambda *_, **__: "\ud800")
    with pytest.raises(UnicodeEncodeError):
        export(run, tmp_path, format="safetensors", license="mit")
    assert not (tmp_path / "README.md").exists()


def test_edited_card_is_kept(run: Path, tmp_path: Path) -> None:
    """A card without its first comment is not overwritten, whatever its encoding."""
    call("export", run, "--out", tmp_path)
    card = (tmp_path / "README.md").read_text().replace(CARD_MARK, "mine: café")
    written = card.encode("latin-1", errors="replace")
    (tmp_path / "README.md").write_bytes(written)
    code, said = call("export", run, "--out", tmp_path)
    assert (code, "kept" in said) == (0, True)
    assert b"mine: caf\xe9" in written and (tmp_path / "README.md").read_bytes() == written


@pytest.mark.parametrize(
    ("source", "out", "expected"), [("nowhere", "out", "nowhere"), ("run", "/proc/none", "--out")]
)
def test_mistakes_exit_2(run: Path, tmp_path: Path, source: str, out: str, expected: str) -> None:
    """The message names what is wrong."""
    code, said = call(
        "export", run if source == "run" else tmp_path / source, "--out", tmp_path / out
    )
    assert (code, expected in said) == (2, True), said
