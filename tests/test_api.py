"""The Python API: lazy imports, training in one process, sampling, and the examples in the docs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import distgan
from distgan.networks.base import GeneratorSpec
from distgan.networks.build import build_generator
from distgan.networks.generator_file import save_generator
from distgan.networks.mixture import mixture_spec
from tests.worlds import ROOT, SMALL, run_code

PART = GeneratorSpec(architecture="dcgan", image_size=32, channels=1, width=4, latent_dim=8)


def test_import_is_light() -> None:
    """`import distgan` imports nothing but the standard library."""
    code = """
import sys
import distgan
heavy = ("torch", "numpy", "pydantic", "accelerate", "wandb", "PIL", "shards")
print([name for name in heavy if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize("name", distgan.__all__)
def test_public_names_exist_and_have_docstrings(name: str) -> None:
    """Every name of `distgan.__all__` can be imported, and `dir` lists it."""
    assert name in dir(distgan)
    if name != "train":  # other tests import the entry point distgan/train.py, which hides it
        assert getattr(distgan, name).__doc__


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'trane'"):
        distgan.trane  # noqa: B018


@pytest.fixture
def mixture(tmp_path: Path) -> Path:
    """Return a folder with a generator of two classes, one black and one white."""
    spec = mixture_spec(PART, classes=("black", "white"), weights=(0.5, 0.5))
    network = build_generator(spec).eval()
    for part, shade in zip(network.parts, (-1.0, 1.0), strict=True):
        torch.nn.init.constant_(part.layers[-2].bias, 20 * shade)  # before the tanh
    save_generator(network, spec, tmp_path, facts={})
    return tmp_path


def test_samples_are_uint8_and_depend_on_seed_and_number_alone(mixture: Path) -> None:
    """Image i of a seed is the same in a small and in a large sample."""
    generator = distgan.load_generator(mixture).to("cpu")
    images = generator.sample(9, seed=3)
    assert (images.dtype, images.shape) == (torch.uint8, (9, 1, 32, 32))
    assert torch.equal(images[:4], generator.sample(4, seed=3))
    assert not torch.equal(images, generator.sample(9, seed=4))


def test_one_class_can_be_sampled(mixture: Path) -> None:
    """Every sample of a class is of that class, also with truncation; other names are refused."""
    generator = distgan.load_generator(str(mixture))
    assert generator.classes == ("black", "white")
    assert generator.sample(9, class_name="white").min() > 200
    assert generator.sample(9, truncation=0.5, class_name="black").max() < 55
    with pytest.raises(distgan.UserError, match="no class 'red'; choose from black, white"):
        generator.sample(1, class_name="red")


def test_truncation_moves_latents_toward_one_of_their_class(mixture: Path) -> None:
    """Not at all at 1, to the same latent at 0; other fractions are refused."""
    generator = distgan.load_generator(mixture)
    torch.testing.assert_close(generator.latents(9, truncation=1.0), generator.latents(9))
    together = generator.latents(9, truncation=0.0, class_name="black")
    torch.testing.assert_close(together, together[:1].expand(9, -1))
    with pytest.raises(distgan.UserError, match="give 0"):
        generator.sample(1, truncation=1.5)


def test_missing_generator_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(distgan.UserError, match="holds no generator"):
        distgan.load_generator(tmp_path)


TRAIN = f"""
import shlex, signal, threading, time
from pathlib import Path
import distgan

def config(*overrides):
    small = {[word for word in SMALL if "kimg" not in word]!r}
    return distgan.load_config("digits", [*small, "train.kimg=0.024", *overrides])
"""


def test_training_in_process_can_be_resumed_and_sampled(tmp_path: Path) -> None:
    """Equal calls give the same folder; the second one finds the run finished."""
    code = """
handler = signal.getsignal(signal.SIGINT)
first, second = distgan.train(config()), distgan.train(config())
assert first == second, (first, second)
assert first.outcome == "done"
assert first.run_dir.parent == Path("runs")
assert distgan.load_generator(first.run_dir).sample(2).shape == (2, 1, 32, 32)
assert signal.getsignal(signal.SIGINT) is handler
other = distgan.train(config("train.precision=auto", "train.seed=1"), run_dir="other")
assert other.run_dir == Path("other")
from distgan.config.load import load_config as load
from distgan.reporting.run_record import read_record
words = shlex.split(read_record(other.run_dir).command)
assert words[:6] == ["distgan", "train", "--preset", "classic", "--run-dir", "other"], words
assert load("classic", words[6:]) == config("train.precision=auto", "train.seed=1")
"""
    run_code(TRAIN + code, tmp_path)


def test_errors_are_raised_and_the_folder_stays_usable(tmp_path: Path) -> None:
    """While an error of any kind is alive, what is right still works in the same folder."""
    code = """
distgan.train(config(), run_dir="run")
errors = []
try:
    distgan.train(config("train.seed=1"), run_dir="run")
except distgan.UserError as error:
    errors.append(error)
assert "other settings" in str(errors[0])
assert distgan.train(config(), run_dir="run").outcome == "done"

def fail(*_, **__):
    raise MemoryError("too large")

import distgan.trainer
build, distgan.trainer.build_gan = distgan.trainer.build_gan, fail
try:
    distgan.train(config(), run_dir="other")
except MemoryError as error:
    errors.append(error)
distgan.trainer.build_gan = build
assert distgan.train(config(), run_dir="other").outcome == "done"
"""
    run_code(TRAIN + code, tmp_path)


def test_interrupt_saves_and_returns(tmp_path: Path) -> None:
    """Ctrl-C ends the call with the outcome `preempted`; the same call resumes."""
    code = """
def interrupt():
    while not Path("run/metrics.jsonl").exists():
        time.sleep(0.01)
    signal.raise_signal(signal.SIGINT)

threading.Thread(target=interrupt, daemon=True).start()
result = distgan.train(config("train.kimg=12"), run_dir="run")
assert result.outcome == "preempted"
assert list(Path("run/checkpoints").iterdir())
"""
    run_code(TRAIN + code, tmp_path)


def test_one_gan_per_class_trains_in_process(tmp_path: Path) -> None:
    """The trained mixture has the classes of the data."""
    code = """
chosen = config("networks.per_class=true", 'data.classes=["3", "7"]', "train.kimg=0.048")
result = distgan.train(chosen)
assert distgan.load_generator(result.run_dir).classes == ("3", "7")
"""
    run_code(TRAIN + code, tmp_path)


def test_examples_of_the_docs_work(tmp_path: Path) -> None:
    """The Python blocks of docs/python-api.md run in order in one process, with a small network."""
    text = (ROOT / "docs" / "python-api.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    code = "\n".join(blocks)
    small = '", "'.join(word for word in SMALL if "wandb" not in word)
    assert '"train.kimg=3"' in code
    run_code(code.replace("train.kimg=3", f'{small}", "train.kimg=0.024'), tmp_path)
