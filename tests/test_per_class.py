"""One GAN per class: training, resuming, and the mixture that joins the classes."""

import io
import json
import shutil
from collections import Counter
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distgan.config.load import load_config
from distgan.config.schema import Data
from distgan.data import open_dataset
from distgan.errors import UserError
from distgan.networks.base import GeneratorSpec
from distgan.networks.build import build_generator
from distgan.networks.generator_file import load_generator, save_generator
from distgan.networks.latents import generate, sample_latents
from distgan.networks.mixture import Mixture, MixtureSpec, choose_class, mixture_spec
from distgan.run.class_plan import divide_steps, plan_classes
from shards.pack import pack
from tests.conftest import NUM_IMAGES
from tests.test_commands import call
from tests.worlds import (
    SMALL,
    checkpoint_digest,
    image_id,
    leave_out_plots,
    run_world,
    train_run,
)

OVERRIDES = ("networks.per_class=true", "train.epochs=2")  # 60 images: 5 batches of 12
PART = GeneratorSpec(architecture="dcgan", image_size=32, channels=1, width=4, latent_dim=8)


def train_classes(
    shards: Path, run_dir: Path, overrides: tuple[str, ...], stop_after: int | None = None
) -> dict[str, Any]:
    """Train one GAN per class in this process.

    Returns the state, the images of each batch and what was printed. The run gets a SIGTERM at
    batch number `stop_after`.
    """
    import distgan.data as data_module
    from distgan.per_class import PerClassTrainer
    from distgan.runtime.distributed import leave_world
    from distgan.runtime.signals import Interrupt

    ids: list[list[int]] = []

    class RecordingStream(data_module.BatchStream):
        def __next__(self) -> Any:
            batch = super().__next__()
            ids.append([image_id(image) for image in batch.numpy()])
            if len(ids) == stop_after:
                interrupt.signal_name = "SIGTERM"
            return batch

    data_module.BatchStream = RecordingStream
    leave_out_plots()
    interrupt = Interrupt()
    config = load_config(None, [*SMALL, f"data.shards={str(shards)!r}", *overrides])
    with redirect_stdout(io.StringIO()) as said:
        state = PerClassTrainer(
            config, name="test", run_dir=run_dir, interrupt=interrupt, command=["test"]
        ).run()
    leave_world()
    return {"state": state, "ids": ids, "said": said.getvalue()}


def status(run_dir: Path) -> dict[str, Any]:
    """Return the contents of status.json."""
    return json.loads((run_dir / "status.json").read_text())


@pytest.fixture(scope="module")
def whole(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Train GANs of the even and the odd images; return the folder and the result."""
    run = tmp_path_factory.mktemp("whole") / "run"
    [result] = run_world(1, train_classes, shards, run, OVERRIDES)
    assert result["state"] == "done"
    return run, result


def test_each_class_trains_on_its_own_images(whole: tuple[Path, dict[str, Any]]) -> None:
    """Batches hold one class each; together they have the images that one GAN would see."""
    run, result = whole
    assert [{number % 2 for number in batch} for batch in result["ids"]] in (
        [{0}] * 2 + [{1}] * 3,
        [{0}] * 3 + [{1}] * 2,
    )
    assert (status(run)["state"], status(run)["images_seen"]) == ("done", 2 * NUM_IMAGES)
    assert [status(each)["state"] for each in (run / "classes").iterdir()] == ["done"] * 2


def test_the_table_of_settings_is_printed_once(whole: tuple[Path, dict[str, Any]]) -> None:
    """The first class shows what all have in common; the second one begins with one line."""
    lines = whole[1]["said"].splitlines()
    for each in ("  networks: ", "  class even: 15 images, ", "  class odd: 15 images, "):
        assert sum(line.startswith(each) for line in lines) == 1, each
    assert any(line.startswith("training: class odd, ") for line in lines), lines


def test_a_refused_command_leaves_the_settings_of_the_run(
    whole: tuple[Path, dict[str, Any]], shards: Path
) -> None:
    """config.toml still says what was trained."""
    before = (whole[0] / "config.toml").read_text()
    with pytest.raises(AssertionError, match=r"run with other settings: optim\.lr_g"):
        run_world(1, train_classes, shards, whole[0], (*OVERRIDES, "optim.lr_g=1e-3"))
    assert (whole[0] / "config.toml").read_text() == before


def test_run_of_a_class_equals_a_run_with_data_classes(
    whole: tuple[Path, dict[str, Any]], shards: Path, tmp_path: Path
) -> None:
    """`data.classes` with that class alone trains the same tensors, bit for bit."""
    folder = whole[0] / "classes" / "1-odd"
    kimg = status(folder)["images_seen"] / 1000
    run_world(
        1, train_run, shards, tmp_path / "odd", ["data.classes=['odd']", f"train.kimg={kimg}"]
    )
    assert checkpoint_digest(tmp_path / "odd") == checkpoint_digest(folder)


@pytest.mark.parametrize("world", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_interrupted_run_resumes_in_its_class(
    whole: tuple[Path, dict[str, Any]], shards: Path, tmp_path: Path, world: int
) -> None:
    """After a signal in the second class no image is read twice, and the weights are equal."""
    run, uncut = tmp_path / "run", whole[0]
    if world > 1:  # norm statistics are a rank's own, so two ranks train other weights than one
        uncut = tmp_path / "uncut"
        run_world(world, train_classes, shards, uncut, OVERRIDES)
    cut = run_world(world, train_classes, shards, run, OVERRIDES, 3)
    assert [result["state"] for result in cut] == ["preempted"] * world
    assert status(run)["state"] == "preempted"
    assert status(run)["reason"].startswith("class odd: ")
    seen = status(run)["images_seen"]
    assert 24 < seen < 60
    assert not (run / "generator.safetensors").exists()
    rest = run_world(world, train_classes, shards, run, OVERRIDES)
    assert [result["state"] for result in rest] == ["done"] * world
    read = Counter(number for result in rest for batch in result["ids"] for number in batch)
    assert read.total() == 60 - seen
    assert all(number % 2 for number in read)
    assert status(run)["images_seen"] == 60
    assert (run / "generator.safetensors").read_bytes() == (
        uncut / "generator.safetensors"
    ).read_bytes()


def test_classes_trained_separately_are_joined(
    whole: tuple[Path, dict[str, Any]], shards: Path, tmp_path: Path
) -> None:
    """One command per class, then one that joins them, give the generator of a single command."""
    run = tmp_path / "run"
    for number in (1, 0):
        run_world(1, train_classes, shards, run, (*OVERRIDES, f"networks.only_class={number}"))
        assert not (run / "status.json").exists()
    [last] = run_world(1, train_classes, shards, run, OVERRIDES)
    assert (last["state"], last["ids"]) == ("done", [])
    assert (run / "generator.safetensors").read_bytes() == (
        whole[0] / "generator.safetensors"
    ).read_bytes()
    written = (run / "generator.safetensors").stat().st_mtime_ns
    [again] = run_world(1, train_classes, shards, run, OVERRIDES)
    assert (again["state"], again["ids"]) == ("done", [])
    assert (run / "generator.safetensors").stat().st_mtime_ns == written
    generators = {path: path.read_bytes() for path in run.rglob("generator.safetensors")}
    for path in generators:
        path.write_bytes(b"")  # as after a power cut
    [again] = run_world(1, train_classes, shards, run, OVERRIDES)
    assert (again["state"], again["ids"]) == ("done", [])
    assert {path: path.read_bytes() for path in generators} == generators


def test_commands_accept_the_joined_generator(
    whole: tuple[Path, dict[str, Any]], shards: Path, tmp_path: Path
) -> None:
    """`sample` draws a grid; `evaluate` finds what the run itself found at its end."""
    run = whole[0]
    code, said = call("sample", run, "--num", 4, "--out", tmp_path / "grid.png")
    assert (code, (tmp_path / "grid.png").exists()) == (0, True), said
    code, said = call(
        "evaluate", run, "--data", shards, "--num", 12, "--json", tmp_path / "scores.json"
    )
    assert code == 0, said
    [score] = json.loads((tmp_path / "scores.json").read_text())
    [row] = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
    assert score["protocol"]["num_fakes"] == row["protocol"]["num_fakes"]
    assert score["values"]["quality/frechet"] == pytest.approx(
        row["values"]["quality/frechet"], rel=1e-3
    )
    assert score["verdict"] in status(run)["reason"]
    assert "too early to tell" in score["verdict"]  # the classes were trained on a few images


# -------------------------------------------------------------------------------------- the mixture


@pytest.fixture(scope="module")
def mixture() -> tuple[Mixture, MixtureSpec]:
    """Build a mixture of three classes of 50, 30 and 20 %, with different generators."""
    spec = mixture_spec(PART, classes=("a", "b", "c"), weights=(0.5, 0.3, 0.2))
    built = build_generator(spec).eval().requires_grad_(False)
    for number, part in enumerate(built.parts):
        for parameter in part.parameters():
            parameter.mul_(1 + number)
    return built, spec


def test_latents_choose_classes_by_their_weights(mixture: tuple[Mixture, MixtureSpec]) -> None:
    """Classes get their fraction of 20,000 latents; the rest of a latent goes to the generator."""
    built, spec = mixture
    latents = sample_latents(20_000, spec, seed=0)
    chosen = built.classes_of(latents)
    shares = torch.bincount(chosen, minlength=3) / len(chosen)
    np.testing.assert_allclose(shares, spec.weights, atol=0.01)
    images = generate(built, latents[:50])
    for number, part in enumerate(built.parts):
        mine = chosen[:50] == number
        torch.testing.assert_close(
            images[mine], generate(part, latents[:50][mine][:, 1:]), rtol=0, atol=1e-5
        )


def test_latents_can_be_moved_into_one_class(mixture: tuple[Mixture, MixtureSpec]) -> None:
    """An unknown class, or a generator without classes, is a UserError."""
    built, spec = mixture
    latents = sample_latents(9, spec, seed=0)
    for number, name in enumerate(spec.classes):
        moved = choose_class(latents, spec, name)
        assert built.classes_of(moved).tolist() == [number] * 9
        assert torch.equal(moved[:, 1:], latents[:, 1:])
    with pytest.raises(UserError, match="no class 'd'; choose from a, b, c"):
        choose_class(latents, spec, "d")
    with pytest.raises(UserError, match="has no classes"):
        choose_class(latents, PART, "a")


def test_mixture_is_saved_and_exported_like_any_generator(
    mixture: tuple[Mixture, MixtureSpec], tmp_path: Path
) -> None:
    """Loaded or exported it makes the same images, however many are drawn."""
    built, spec = mixture
    save_generator(built, spec, tmp_path, facts={})
    generator = load_generator(tmp_path)
    loaded, read = generator.network, generator.spec
    assert read == spec
    latents = sample_latents(20, spec, seed=1)
    images = generate(loaded, latents)
    torch.testing.assert_close(images, generate(built, latents), rtol=0, atol=0)
    torch.testing.assert_close(images[:3], generate(loaded, latents[:3]), rtol=0, atol=1e-5)
    program = torch.export.export(
        built, (latents,), dynamic_shapes=({0: torch.export.Dim("batch")},)
    )
    torch.testing.assert_close(program.module()(latents[:7]), images[:7], rtol=0, atol=1e-5)


def test_spec_without_classes_builds_no_mixture() -> None:
    """It builds the network itself."""
    assert not isinstance(build_generator(PART), Mixture)


# -------------------------------------------------------------------------------- plan and mistakes


def test_steps_are_divided_by_numbers_of_images() -> None:
    """No step is lost, and numbers are proportional to within one."""
    counts = [5000, 100, 900, 4000]
    shares = divide_steps(1234, counts)
    assert sum(shares) == 1234
    exact = [1234 * count / sum(counts) for count in counts]
    assert all(abs(a - b) <= 1 for a, b in zip(shares, exact, strict=True))


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["data.classes=['odd']"], "at least two classes"),
        (
            ["train.batch_size=16"],
            r"train.batch_size=16 in even \(15 images\), odd \(15 images\); "
            r"use train.batch_size=15",
        ),
        (["train.kimg=0.012"], "no batch for"),
    ],
)
def test_mistakes_are_refused_with_a_remedy(
    overrides: list[str], expected: str, shards: Path
) -> None:
    """The error comes before anything is trained."""
    config = load_config(None, [*SMALL, f"data.shards={str(shards)!r}", *OVERRIDES, *overrides])
    with pytest.raises(UserError, match=expected):
        plan_classes(config, open_dataset(config.data)[1])


def test_a_class_without_images_is_left_out(shards: Path) -> None:
    """Such as one whose images were all broken."""
    _, reader = open_dataset(Data(shards=str(shards)))
    counts = {"class_names": ("even", "none", "odd"), "class_counts": (15, 0, 15)}
    reader.index = replace(reader.index, **counts)
    plan = plan_classes(load_config(None, [*SMALL, *OVERRIDES]), reader)
    assert [each.name for each in plan] == ["even", "odd"]


def test_images_without_labels_are_refused(tmp_path: Path) -> None:
    """Without labels there are no classes."""
    from PIL import Image

    (tmp_path / "images").mkdir()
    Image.new("L", (32, 32)).save(tmp_path / "images" / "0.png")
    pack(str(tmp_path / "images"), tmp_path / "shards", size=32, channels=1, workers=1)
    with pytest.raises(UserError, match="has no labels"):
        plan_classes(
            load_config(None, OVERRIDES), open_dataset(Data(shards=str(tmp_path / "shards")))[1]
        )


def test_only_class_needs_per_class() -> None:
    """The error says which setting is missing."""
    with pytest.raises(UserError, match=r"networks.only_class=1 needs networks.per_class=true"):
        load_config(None, ["networks.only_class=1"])


def test_class_killed_before_it_wrote_its_generator_is_finished(
    whole: tuple[Path, dict[str, Any]], shards: Path, tmp_path: Path
) -> None:
    """The same command writes the generator, trains nothing, and joins the classes."""
    run = tmp_path / "run"
    shutil.copytree(whole[0], run)
    first = sorted((run / "classes").iterdir())[0]
    (first / "generator.safetensors").unlink()
    for folder in (first, run):
        (folder / "status.json").write_text(json.dumps(status(folder) | {"state": "running"}))
    [result] = run_world(1, train_classes, shards, run, OVERRIDES)
    assert result["state"] == status(run)["state"] == status(first)["state"] == "done"
    assert (first / "generator.safetensors").exists()
    assert checkpoint_digest(first) == checkpoint_digest(
        sorted((whole[0] / "classes").iterdir())[0]
    )
