"""One GAN a class: what is trained, how it is joined, and that the whole goes on where it was."""

import json
import shutil
from collections import Counter
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
from distgan.networks.mixture import (
    Mixture,
    MixtureSpec,
    choose_class,
    mixture_spec,
)
from distgan.run.class_plan import divide_steps, plan_classes
from shards.pack import pack
from tests.conftest import NUM_IMAGES
from tests.test_commands import call
from tests.worlds import SMALL, checkpoint_digest, image_id, run_world, train_run

WORDS = ("networks.per_class=true", "train.epochs=2")  # 60 images: 5 batches of 12
PART = GeneratorSpec(architecture="dcgan", image_size=32, channels=1, width=4, latent_dim=8)


def train_classes(
    shards: Path, run_dir: Path, words: tuple[str, ...], stop_after: int | None = None
) -> dict[str, Any]:
    """Train a GAN a class in this process; notes the images read, and gets a signal at batch number `stop_after`."""
    import distgan.data as streams_module
    from distgan.per_class import PerClassTrainer
    from distgan.runtime.distributed import leave_world
    from distgan.runtime.signals import Interrupt

    ids: list[list[int]] = []

    class NotingStream(streams_module.BatchStream):
        def __next__(self) -> Any:
            batch = super().__next__()
            ids.append([image_id(image) for image in batch.numpy()])
            if len(ids) == stop_after:
                interrupt.signal_name = "SIGTERM"
            return batch

    streams_module.BatchStream = NotingStream
    interrupt = Interrupt()
    config = load_config(None, [*SMALL, f"data.shards={str(shards)!r}", *words])
    state = PerClassTrainer(
        config, name="test", run_dir=run_dir, interrupt=interrupt, command=["test"]
    ).run()
    leave_world()
    return {"state": state, "ids": ids}


def status(run_dir: Path) -> dict[str, Any]:
    """status.json."""
    return json.loads((run_dir / "status.json").read_text())


@pytest.fixture(scope="module")
def whole(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[int]]]:
    """(run folder, images read batch by batch) of a GAN of the even and one of the odd images."""
    run = tmp_path_factory.mktemp("whole") / "run"
    [result] = run_world(1, train_classes, shards, run, WORDS)
    assert result["state"] == "done"
    return run, result["ids"]


def test_each_class_learns_from_its_own_images(whole: tuple[Path, list[list[int]]]) -> None:
    """As many images as one GAN would see, all of one class in a batch; the status is that of the whole."""
    run, batches = whole
    assert [{number % 2 for number in batch} for batch in batches] in (
        [{0}] * 2 + [{1}] * 3,
        [{0}] * 3 + [{1}] * 2,
    )
    assert (status(run)["state"], status(run)["images_seen"]) == ("done", 2 * NUM_IMAGES)
    assert [status(folder)["state"] for folder in sorted((run / "classes").iterdir())] == [
        "done",
        "done",
    ]


def test_a_class_is_an_ordinary_run(
    whole: tuple[Path, list[list[int]]], shards: Path, tmp_path: Path
) -> None:
    """`data.classes` with the class alone trains the very same tensors."""
    folder = whole[0] / "classes" / "1-odd"
    kimg = status(folder)["images_seen"] / 1000
    run_world(
        1, train_run, shards, tmp_path / "odd", ["data.classes=['odd']", f"train.kimg={kimg}"]
    )
    assert checkpoint_digest(tmp_path / "odd") == checkpoint_digest(folder)


@pytest.mark.parametrize("world", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_goes_on_in_the_class_it_was_in(
    whole: tuple[Path, list[list[int]]], shards: Path, tmp_path: Path, world: int
) -> None:
    """A signal in the second class: its images are not read again, the first class not at all; the joined weights agree."""
    run, uncut = tmp_path / "run", whole[0]
    if world > 1:  # norm statistics are a rank's own, so two ranks train other weights than one
        uncut = tmp_path / "uncut"
        run_world(world, train_classes, shards, uncut, WORDS)
    cut = run_world(world, train_classes, shards, run, WORDS, 3)
    assert [result["state"] for result in cut] == ["preempted"] * world
    assert status(run)["state"] == "preempted"
    assert status(run)["reason"].startswith("class odd: ")
    seen = status(run)["images_seen"]
    assert 24 < seen < 60
    assert not (run / "generator.safetensors").exists()
    rest = run_world(world, train_classes, shards, run, WORDS)
    assert [result["state"] for result in rest] == ["done"] * world
    read = Counter(number for result in rest for batch in result["ids"] for number in batch)
    assert read.total() == 60 - seen
    assert all(number % 2 for number in read)
    assert status(run)["images_seen"] == 60
    assert (run / "generator.safetensors").read_bytes() == (
        uncut / "generator.safetensors"
    ).read_bytes()


def test_tasks_of_an_array_are_joined(
    whole: tuple[Path, list[list[int]]], shards: Path, tmp_path: Path
) -> None:
    """Each class by a command of its own, the last command joins: the same generator; then nothing is left to do."""
    run = tmp_path / "run"
    for number in (1, 0):
        run_world(1, train_classes, shards, run, (*WORDS, f"networks.only_class={number}"))
        assert not (run / "status.json").exists()
    [last] = run_world(1, train_classes, shards, run, WORDS)
    assert last == {"state": "done", "ids": []}
    assert (run / "generator.safetensors").read_bytes() == (
        whole[0] / "generator.safetensors"
    ).read_bytes()
    written = (run / "generator.safetensors").stat().st_mtime_ns
    assert run_world(1, train_classes, shards, run, WORDS) == [{"state": "done", "ids": []}]
    assert (run / "generator.safetensors").stat().st_mtime_ns == written


def test_commands_take_it_for_one_generator(
    whole: tuple[Path, list[list[int]]], shards: Path, tmp_path: Path
) -> None:
    """sample draws a grid; evaluate finds what the run itself found at its end."""
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


# ------------------------------------------------------------------------------------------------ the mixture


@pytest.fixture(scope="module")
def mixture() -> tuple[Mixture, MixtureSpec]:
    """Three classes of 50, 30 and 20 per cent, whose generators differ."""
    spec = mixture_spec(PART, classes=("a", "b", "c"), weights=(0.5, 0.3, 0.2))
    built = build_generator(spec).eval().requires_grad_(False)
    for number, part in enumerate(built.parts):
        for parameter in part.parameters():
            parameter.mul_(1 + number)
    return built, spec


def test_classes_have_their_weights(mixture: tuple[Mixture, MixtureSpec]) -> None:
    """Of 20,000 latents each class gets its share to within a hundredth, and the latent's other values its own generator."""
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


def test_one_class_can_be_asked_for(mixture: tuple[Mixture, MixtureSpec]) -> None:
    """Every latent is moved into the class; a class that is none, or a generator without classes, is named."""
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


def test_a_mixture_is_a_file_like_any(mixture: tuple[Mixture, MixtureSpec], tmp_path: Path) -> None:
    """Saved and loaded it makes the same images; image i is the same however many are drawn; torch.export keeps it."""
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


def test_other_generators_are_built_as_before() -> None:
    """A spec that is no mixture gives the bare network."""
    assert not isinstance(build_generator(PART), Mixture)


# ------------------------------------------------------------------------------------------------ shares and mistakes


def test_batches_are_shared_out_by_images() -> None:
    """No batch is lost, and shares are proportional to within one."""
    counts = [5000, 100, 900, 4000]
    shares = divide_steps(1234, counts)
    assert sum(shares) == 1234
    assert all(
        abs(share - 1234 * count / sum(counts)) <= 1
        for share, count in zip(shares, counts, strict=True)
    )


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["data.classes=['odd']"], "at least two classes"),
        (
            ["train.batch_size=16"],
            r"train.batch_size=16 in even \(15 images\), odd \(15 images\); use train.batch_size=15",
        ),
        (["train.kimg=0.012"], "no batch for"),
    ],
)
def test_mistakes_are_told_with_their_remedy(words: list[str], expected: str, shards: Path) -> None:
    """Before anything is trained."""
    config = load_config(None, [*SMALL, f"data.shards={str(shards)!r}", *WORDS, *words])
    with pytest.raises(UserError, match=expected):
        plan_classes(config, open_dataset(config.data)[1])


def test_images_without_labels_are_told(tmp_path: Path) -> None:
    """There are no classes to train a GAN of."""
    from PIL import Image

    (tmp_path / "images").mkdir()
    Image.new("L", (32, 32)).save(tmp_path / "images" / "0.png")
    pack(str(tmp_path / "images"), tmp_path / "shards", size=32, channels=1, workers=1)
    with pytest.raises(UserError, match="has no labels"):
        plan_classes(
            load_config(None, WORDS), open_dataset(Data(shards=str(tmp_path / "shards")))[1]
        )


def test_one_class_of_none_is_a_mistake() -> None:
    """only_class without per_class says what is missing."""
    with pytest.raises(UserError, match=r"networks.only_class=1 needs networks.per_class=true"):
        load_config(None, ["networks.only_class=1"])


def test_a_class_that_died_before_its_last_words_says_them(
    whole: tuple[Path, list[list[int]]], shards: Path, tmp_path: Path
) -> None:
    """Trained to its end, killed before its generator was written: the same command writes it, trains nothing, and joins."""
    run = tmp_path / "run"
    shutil.copytree(whole[0], run)
    first = sorted((run / "classes").iterdir())[0]
    (first / "generator.safetensors").unlink()
    for folder in (first, run):
        (folder / "status.json").write_text(json.dumps(status(folder) | {"state": "running"}))
    [result] = run_world(1, train_classes, shards, run, WORDS)
    assert (result["state"], status(run)["state"], status(first)["state"]) == (
        "done",
        "done",
        "done",
    )
    assert (first / "generator.safetensors").exists()
    assert checkpoint_digest(first) == checkpoint_digest(
        sorted((whole[0] / "classes").iterdir())[0]
    )
