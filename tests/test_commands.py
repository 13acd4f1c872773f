"""The `distgan` command on real files."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from distgan.cli import app
from distgan.commands.evaluate import (
    evaluate_inputs,
    is_from_other_data,
    numbered_as,
    open_folder,
    open_input,
    thresholds_of,
)
from distgan.config.schema import Data, Evaluation, Thresholds
from distgan.data import open_dataset
from distgan.errors import UserError
from distgan.images import write_image
from distgan.labels import class_labels
from distgan.networks.base import GeneratorSpec
from distgan.networks.build import build_generator
from distgan.networks.generator_file import load_generator, save_generator, was_improving
from distgan.networks.latents import generate
from distgan.run.files import RunData, data_of
from tests.worlds import run_world, train_run


def call(*arguments: object) -> tuple[int, str]:
    """Run a command in this process and return its exit code and output."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def test_pack_info_and_verify(tmp_path: Path) -> None:
    """A folder is packed, described and intact; a flipped byte is found and exits with code 1."""
    for number in range(6):
        folder = tmp_path / "images" / ("cat" if number % 2 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((40, 50, 3), number * 40, np.uint8)).save(folder / f"{number}.jpg")
    code, said = call(
        "pack", tmp_path / "images", tmp_path / "shards", "--size", 32, "--workers", 1
    )
    assert code == 0, said
    assert "cat (3), dog (3)" in said
    (tmp_path / "images" / "cat" / "broken.png").write_bytes(b"no picture")
    (tmp_path / "images" / "notes.txt").write_text("no picture either")
    code, said = call(
        "pack", tmp_path / "images", tmp_path / "others", "--size", 32, "--bad-images", "skip"
    )
    assert (code, "left out: 1 image, listed in rejected.jsonl" in said) == (0, True), said
    assert "not packed: 1 other file: .txt (1)" in said
    code, said = call("info", tmp_path / "shards")
    assert (code, "32x32, 3 channels, raw" in said) == (0, True)
    assert "classes: 2: cat (3), dog (3)" in said
    assert call("verify", tmp_path / "shards")[0] == 0
    shard = next((tmp_path / "shards").glob("*.tar"))
    content = bytearray(shard.read_bytes())
    content[700] ^= 1
    shard.write_bytes(content)
    code, said = call("verify", tmp_path / "shards")
    assert (code, f"error: {shard.name} has another checksum" in said) == (1, True), said


def test_preview_shows_the_crops_and_packs_nothing(tmp_path: Path) -> None:
    """The middle square of a wide image; a broken image is counted."""
    (tmp_path / "images").mkdir()
    pixels = np.zeros((64, 128, 3), np.uint8)
    pixels[:, 32:96] = (255, 0, 0)
    Image.fromarray(pixels).save(tmp_path / "images" / "wide.png")
    (tmp_path / "images" / "broken.png").write_bytes(b"no picture")
    crops = tmp_path / "crops.png"
    code, said = call("pack", tmp_path / "images", tmp_path / "out", "--preview", crops)
    assert (code, "1 of 2 images" in said, "broken.png" in said) == (0, True, True), said
    assert not (tmp_path / "out").exists()
    with Image.open(crops) as picture:
        corners = {picture.getpixel(place) for place in ((3, 3), (60, 60), (3, 60))}
    assert corners == {(255, 0, 0)}


@pytest.mark.parametrize("option", ["--join", "--part=9/3"])
def test_preview_refuses_what_it_would_ignore(option: str, tmp_path: Path) -> None:
    """A preview neither packs a part nor joins any."""
    preview = tmp_path / "p.png"
    code, said = call("pack", "digits", tmp_path / "out", "--preview", preview, option)
    assert (code, "--preview packs nothing" in said, preview.exists()) == (2, True, False), said


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["pack", "nowhere", "out"], "nowhere"),
        (["pack", "digits", "out", "--size", "50"], "the nearest sizes are 48x48 and 56x56"),
        (["info", "nowhere"], "nowhere"),
        (["sample", "nowhere"], "no such file or folder: nowhere"),
        (["sample", "."], "holds no generator"),
        (["sample", ".", "--out", "grid.jpg"], "give a name that ends in .png"),
        (["report", ".", "--port", "8000"], "add --live, or leave it out"),
        (["evaluate", "nowhere"], "no such file or folder: nowhere"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They exit with code 2, name the value, show no traceback and write nothing."""
    monkeypatch.chdir(tmp_path)
    code, said = call(*arguments)
    assert (code, expected in said) == (2, True), said
    assert list(tmp_path.iterdir()) == []


def test_version_names_what_matters() -> None:
    """distgan's own, Python's and torch's."""
    code, said = call("--version")
    assert (code, said.startswith("distgan "), torch.__version__.split("+")[0] in said) == (
        0,
        True,
        True,
    )


def test_a_run_of_some_classes_is_compared_with_these(tmp_path: Path) -> None:
    """Runs of different classes have no images in common, so these must be named."""
    for name in ("0", "1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "status.json").write_text("{}")
        settings = f"[data]\nshards = 'digits'\nclasses = ['{name}']\n"
        (tmp_path / name / "config.toml").write_text(settings)
    assert data_of([tmp_path / "0"]) == RunData("digits", ("0",))
    with pytest.raises(UserError, match=r"different classes.*name these with --data"):
        data_of([tmp_path / "0", tmp_path / "1"])
    spec = GeneratorSpec(architecture="dcgan", image_size=32, channels=1, width=4, latent_dim=8)
    save_generator(build_generator(spec), spec, tmp_path, facts={})
    settings = Evaluation(num_samples=300, extractor="random")
    [score] = evaluate_inputs([tmp_path], RunData(None, ("0", "1")), settings=settings, seed=0)
    assert score.result.protocol.num_reference == 180  # half of 178 zeros and 182 ones


def test_a_run_whose_settings_are_damaged_is_not_compared_with_the_digits(tmp_path: Path) -> None:
    """Nobody knows which images are its own."""
    (tmp_path / "status.json").write_text("{}")
    for content in (b"", b"[data"):
        (tmp_path / "config.toml").write_bytes(content)
        with pytest.raises(UserError, match=r"config.toml is damaged; name .* with --data"):
            data_of([tmp_path])


def test_classes_have_the_numbers_that_the_generator_knows(shards: Path) -> None:
    """Two packed datasets may have the same classes in different orders."""
    _, reader = open_dataset(Data(shards=str(shards)))
    labels = class_labels(reader, None)
    assert labels.names == ("even", "odd")
    other = numbered_as(("odd", "even"), labels)
    assert other is not None
    ids = np.arange(reader.num_samples)
    assert (other.of_samples(ids) == 1 - labels.of_samples(ids)).all()
    assert (other.names, other.counts) == (("odd", "even"), labels.counts[::-1])
    assert numbered_as(("odd", "even", "none"), labels) is None


def test_a_folder_of_runs_is_not_scored_as_images(tmp_path: Path) -> None:
    """Its sample grids and plots are no generated images."""
    run = tmp_path / "runs" / "a"
    (run / "samples").mkdir(parents=True)
    (run / "status.json").write_text("{}")
    (run / "config.toml").write_text("")
    Image.new("L", (32, 32)).save(run / "samples" / "grid.png")
    with pytest.raises(UserError, match=r"folder of runs; name those .*runs/a"):
        open_input(tmp_path / "runs", (1, 32, 32), seed=0)


def test_a_run_is_judged_by_its_own_thresholds(tmp_path: Path) -> None:
    """Also one of its generator files; without a run, or with odd settings, by the usual ones."""
    assert thresholds_of(tmp_path) == Thresholds()
    (tmp_path / "status.json").write_text("{}")
    (tmp_path / "config.toml").write_text("[collapse.thresholds]\nduplicates = 0.25\n")
    for path in (tmp_path, tmp_path / "generator.safetensors"):
        assert thresholds_of(path).duplicates == 0.25
    (tmp_path / "config.toml").write_text("[collapse.thresholds]\nnobody_knows = 1\n")
    assert thresholds_of(tmp_path) == Thresholds()


def test_run_checkpoint_and_file_give_the_same_samples(shards: Path, tmp_path: Path) -> None:
    """All three are one generator, sample i does not depend on their number, a grid is written."""
    run = tmp_path / "run"
    run_world(1, train_run, shards, run, ["train.kimg=0.024"])
    newest = sorted((run / "checkpoints").iterdir())[-1]
    places = (run, newest, run / "generator.safetensors")
    assert [data_of([tmp_path, path]) for path in places] == [RunData(str(shards))] * 3
    generators = [load_generator(path) for path in (run, newest, run / "generator.safetensors")]
    images = [generate(g.network, g.latents(4, seed=3)) for g in generators]
    torch.testing.assert_close(images[0], images[1], rtol=0, atol=0)
    torch.testing.assert_close(images[0], images[2], rtol=0, atol=0)
    latents = generators[0].latents(2, seed=3)
    two_images = generate(generators[0].network, latents)
    torch.testing.assert_close(images[0][:2], two_images, rtol=0, atol=1e-6)
    code, said = call(
        "sample", run, "--num", 9, "--seed", 3, "--out", tmp_path / "some" / "grid.png"
    )
    assert code == 0, said
    with Image.open(tmp_path / "some" / "grid.png") as picture:
        assert picture.size == (3 * 64 + 4 * 4, 3 * 64 + 4 * 4)


def test_probe_and_evaluate(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The evaluation finds the probe; real images are near, noise is far; JSON has all numbers."""
    monkeypatch.setenv("DISTGAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("distgan.evaluation.probe_schedule.MOST_IMAGES", 2000)
    digits = tmp_path / "digits"
    assert call("pack", "digits", digits)[0] == 0
    code, said = call("probe", digits)
    assert (code, "held-out images; probe" in said) == (0, True), said
    noise = tmp_path / "noise"
    noise.mkdir()
    for number in range(200):
        pixels = np.random.default_rng(number).integers(0, 256, (32, 32), dtype=np.uint8)
        Image.fromarray(pixels).save(noise / f"{number}.png")
    code, said = call(
        "evaluate",
        digits,
        noise,
        "--data",
        digits,
        "--json",
        tmp_path / "scores.json",
        "--extractor",
        "probe",
    )
    assert code == 0, said
    near, far = json.loads((tmp_path / "scores.json").read_text())
    assert near["protocol"]["extractor"] == "probe"
    assert near["protocol"]["num_fakes"] == far["protocol"]["num_fakes"] == 200
    assert near["values"]["quality/frechet"] < far["values"]["quality/frechet"] / 3
    assert near["values"]["quality/coverage"] > 0.8 > 0.1 > far["values"]["quality/coverage"]
    assert "learning" not in near["verdict"]
    code, said = call("evaluate", noise, "--data", shards)
    assert (code, "frechet" in said) == (0, True), said
    assert said.startswith(f"comparing {noise} with {shards} ...")
    code, said = call("evaluate", noise)
    assert (code, "name the real images with --data" in said) == (2, True), said
    code, said = call("evaluate", tmp_path / "nothing", "--data", digits)
    assert (code, "nothing" in said) == (2, True)
    (noise / "7.png").write_bytes(b"no image")
    code, said = call("evaluate", noise, "--data", digits)
    assert (code, "broken image 7.png" in said) == (2, True), said
    (tmp_path / "file").touch()
    for place in (tmp_path / "file" / "scores.json", noise):  # below a file; a folder
        code, said = call("evaluate", noise, "--data", digits, "--json", place)
        assert (code, "cannot write" in said) == (2, True), said


def test_the_first_images_of_a_folder_are_of_all_its_classes(tmp_path: Path) -> None:
    """They are the same whenever the folder is opened."""
    for number in range(40):
        path = tmp_path / ("black" if number < 20 else "white") / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((8, 8), number // 20 * 255, np.uint8)).save(path)
    first, again = (open_folder(tmp_path, (1, 8, 8)).fakes(0, 20) for _ in range(2))
    assert 5 < int((first[:, 0, 0, 0] > 0).sum()) < 15
    assert torch.equal(first, again)


def test_files_that_no_png_can_hold_are_images(tmp_path: Path) -> None:
    """`sample --files` writes images of two channels as npy files."""
    pixels = torch.randint(256, (12, 2, 8, 8), dtype=torch.uint8)
    for number, image in enumerate(pixels):
        assert write_image(image, tmp_path / f"{number:06d}").suffix == ".npy"
    opened = open_input(tmp_path, (2, 8, 8), seed=0)
    assert opened.weights == "images"
    found = sorted(image.tolist() for image in opened.fakes(0, 12))
    assert found == sorted(image.tolist() for image in pixels)


def test_improvement_on_other_images_is_no_excuse(shards: Path, tmp_path: Path) -> None:
    """A run of one class may still improve, and yet lacks the other for good."""
    run = tmp_path / "run"
    run_world(1, train_run, shards, run, ["train.kimg=0.024", "data.classes=['even']"])
    (_, trained_on), (_, digits) = (open_dataset(Data(shards=at)) for at in (str(shards), None))
    assert is_from_other_data(run, trained_on, RunData(str(shards)))
    assert not is_from_other_data(run, trained_on, RunData("elsewhere", ("even",)))
    newest = sorted((run / "checkpoints").iterdir())[-1]
    for path in (newest, run / "generator.safetensors"):
        assert is_from_other_data(path, digits, RunData(None, ("even",)))
    assert not is_from_other_data(shards, trained_on, RunData(str(shards)))


def test_young_generator_is_learning_as_its_run_said(shards: Path, tmp_path: Path) -> None:
    """The run folder and its checkpoints say until when it is young; others count as trained."""
    run = tmp_path / "run"
    run_world(1, train_run, shards, run, ["train.kimg=0.024"])
    newest = sorted((run / "checkpoints").iterdir())[-1]
    for path in (run, newest, run / "generator.safetensors"):
        code, said = call("evaluate", path, "--data", shards)
        assert (code, "learning (too early to tell" in said) == (0, True), said
    description = run / "generator.json"
    contents = json.loads(description.read_text())
    description.write_text(json.dumps(contents | {"young_until_images": 24}))
    assert "too early to tell" not in call("evaluate", run, "--data", shards)[1]
    assert was_improving(newest) and was_improving(run) is contents["was_improving"] is True
    del contents["young_until_images"], contents["was_improving"]
    description.write_text(json.dumps(contents))
    assert "too early to tell" not in call("evaluate", run, "--data", shards)[1]
