"""A trained conditional generator: its run folder, sampling, export, evaluation and report."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from distgan.commands.evaluate import evaluate_inputs, show_scores
from distgan.commands.export import export
from distgan.config.schema import Evaluation
from distgan.errors import UserError
from distgan.networks.base import ConditionalSpec, GeneratorSpec
from distgan.networks.build import build_generator
from distgan.networks.generator_file import load_generator, save_generator
from distgan.networks.latents import generate
from distgan.reporting.page import render_report
from distgan.reporting.run_record import read_record
from distgan.run.files import RunData
from tests.conftest import NUM_IMAGES
from tests.test_commands import call

TRAINED = ("even", "odd")


def test_few_images_of_a_class_cause_a_warning(conditional_run: Path) -> None:
    """The events say which classes are likely to collapse."""
    assert (
        "few images in even (15 images), odd (15 images)"
        in (conditional_run / "events.jsonl").read_text()
    )


def test_sample_grid_has_a_row_for_each_class(conditional_run: Path) -> None:
    """Of reals every image is of its row's class; fakes have the same size."""
    sizes = []
    for path in (conditional_run / "samples").iterdir():
        with Image.open(path) as picture:
            sizes.append(picture.size)
            if path.name == "reals.png":
                pixels = picture.convert("L")
    assert set(sizes) == {(8 * 68 + 4, 2 * 68 + 4)}
    for row in range(2):
        numbers = [
            256 * pixels.getpixel((4 + 68 * x, 4 + 68 * row))
            + pixels.getpixel((6 + 68 * x, 4 + 68 * row))
            for x in range(8)
        ]
        assert {number % 2 for number in numbers} == {row}
        assert len(set(numbers)) == 8 and max(numbers) < NUM_IMAGES


def test_loaded_generator_samples_classes(conditional_run: Path) -> None:
    """By name, by number and by weights; without a choice both classes appear."""
    generator = load_generator(conditional_run)
    assert generator.classes == TRAINED
    odd = generator.sample(4, seed=1, class_name="odd")
    assert torch.equal(odd, generator.sample(4, seed=1, labels=torch.ones(4, dtype=torch.long)))
    weights = torch.tensor([[0.0, 1.0]]).repeat(4, 1)
    assert torch.equal(odd, generator.sample(4, seed=1, labels=weights))
    assert not torch.equal(odd, generator.sample(4, seed=1, class_name="even"))
    assert sorted(generator.inputs(8)[1].tolist()) == [0] * 4 + [1] * 4
    still = generator.sample(4, truncation=0.0, class_name="odd")
    assert torch.equal(still[0], still[3])


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (torch.tensor([0, 2, 1, 1]), r"label 2: this generator has 2 classes, 0 \(even\)"),
        (torch.tensor([0, -1, 1, 1]), "label -1"),
        (torch.tensor([0, 1]), "2 labels for 4 images"),
        (torch.zeros(4, 3), r"shape \[4, 3\]; give \[4, 2\]"),
    ],
)
def test_labels_that_do_not_exist_are_refused(
    conditional_run: Path, labels: torch.Tensor, expected: str
) -> None:
    """One line with what exists."""
    with pytest.raises(UserError, match=expected):
        load_generator(conditional_run).sample(4, labels=labels)


@pytest.mark.parametrize(
    ("words", "size"),
    [
        ([], (8, 2)),
        (["--class", "odd", "--num", "9"], (3, 3)),
        (["--labels", "odd,0,even,odd"], (2, 2)),
        (["--interpolate", "--labels", "even,odd", "--num", "16"], (8, 2)),
        (["--interpolate", "--num", "8"], (8, 1)),
        (["--progress", "--num", "2"], None),
        (["--video", "walk.gif", "--labels", "even,odd"], None),
    ],
)
def test_sample_makes_images_of_classes(
    conditional_run: Path, tmp_path: Path, words: list[str], size: tuple[int, int] | None
) -> None:
    """Grids are as large as their images need; the default is one row per class."""
    words = [str(tmp_path / word) if word.endswith(".gif") else word for word in words]
    out = [] if "--video" in words else ["--out", tmp_path / "grid.png"]
    code, said = call("sample", conditional_run, *words, *out)
    assert code == 0, said
    if size is not None:
        with Image.open(tmp_path / "grid.png") as picture:
            assert picture.size == tuple(side * 68 + 4 for side in size)


def test_truncated_rows_stay_in_their_class(conditional_run: Path, tmp_path: Path) -> None:
    """At 0 both ends of a row are the typical image of its class, so the row is of one image."""
    words = ["--interpolate", "--truncation", 0, "--num", 16, "--out", tmp_path / "grid.png"]
    code, said = call("sample", conditional_run, *words)
    assert code == 0, said
    with Image.open(tmp_path / "grid.png") as picture:
        for row in range(2):
            cells = [
                picture.crop((4 + 68 * x, 4 + 68 * row, 68 + 68 * x, 68 + 68 * row)).tobytes()
                for x in range(8)
            ]
            assert len(set(cells)) == 1


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--class", "cat"], "no class 'cat'; choose from even, odd"),
        (["--labels", "even,cat"], "no class 'cat'"),
        (["--labels", "0,7"], "label 7: this generator has 2 classes"),
        (["--labels", f"0,{10**20}"], f"label {10**20}: this generator has 2 classes"),
        (["--labels", "0,1", "--num", "3"], "--labels names 2 images, and --num 3"),
        (["--labels", "0", "--class", "odd"], "exclude one another"),
        (["--interpolate", "--labels", "0"], "two or more"),
    ],
)
def test_mistakes_in_sampling_exit_2(
    conditional_run: Path, words: list[str], expected: str
) -> None:
    """The message names what to change."""
    code, said = call("sample", conditional_run, *words)
    assert (code, expected in " ".join(said.split())) == (2, True), said


def test_labels_of_an_unconditional_generator_are_refused(finished: Path) -> None:
    """So is a class."""
    for words in (["--labels", "0"], ["--class", "odd"]):
        code, said = call("sample", finished, *words)
        assert (code, "conditional" in said or "no classes" in said) == (2, True), said


def test_exported_file_is_the_generator(conditional_run: Path, tmp_path: Path) -> None:
    """It loads again, and the card lists the classes."""
    export(conditional_run, tmp_path, format="safetensors", license="mit")
    again, generator = (
        load_generator(tmp_path / "generator.safetensors"),
        load_generator(conditional_run),
    )
    assert again.spec == generator.spec
    assert torch.equal(again.sample(3, seed=1), generator.sample(3, seed=1))
    card = (tmp_path / "README.md").read_text()
    assert "conditional DCGAN of 2 classes" in card and "0. `even`\n1. `odd`" in card


def test_onnx_takes_labels_as_second_input(conditional_run: Path, tmp_path: Path) -> None:
    """onnxruntime makes the images of the class that is asked for, in batches of any size."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="pip install 'distgan[onnx]'")
    pytest.importorskip("onnxscript", reason="pip install 'distgan[onnx]'")
    export(conditional_run, tmp_path, format="onnx", license="mit")
    session = onnxruntime.InferenceSession(tmp_path / "generator.onnx")
    generator = load_generator(conditional_run)
    for num in (1, 5):
        latents, labels = generator.inputs(num, seed=2)
        feeds = {"latents": latents.numpy(), "labels": labels.numpy()}
        (images,) = session.run(None, feeds)
        expected = generate(generator.network, latents, labels)
        torch.testing.assert_close(torch.from_numpy(images), expected, rtol=0, atol=1e-4)


def test_evaluate_lists_the_classes(tmp_path: Path) -> None:
    """An untrained generator of digits is compared with each digit by itself."""
    names = tuple("0123456789")
    spec = ConditionalSpec(
        architecture="dcgan", image_size=32, channels=1, width=4, latent_dim=8,
        classes=names, shares=(0.1,) * 10,
    )  # fmt: skip
    save_generator(build_generator(spec), spec, tmp_path, facts={})
    [score] = evaluate_inputs(
        [tmp_path], RunData(None), settings=Evaluation(num_samples=300, extractor="random"), seed=0,
        json_file=tmp_path / "scores.json",
    )  # fmt: skip
    assert tuple(each.name for each in score.result.by_class) == names
    [row] = json.loads((tmp_path / "scores.json").read_text())
    assert [each["name"] for each in row["by_class"]] == list(names)
    assert row["values"]["quality/class_frechet"] > row["reals"]["quality/class_frechet"]


@pytest.mark.parametrize("conditional_first", [True, False])
def test_conditional_and_plain_generators_are_shown_side_by_side(
    conditional_first: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What only one of them has is shown for that one, whichever comes first."""
    plain = GeneratorSpec(architecture="dcgan", image_size=32, channels=1, width=4, latent_dim=8)
    names = tuple("0123456789")
    conditional = ConditionalSpec(**plain.to_dict(), classes=names, shares=(0.1,) * 10)
    specs = {"conditional": conditional, "plain": plain}
    for name, spec in specs.items():
        (tmp_path / name).mkdir()
        save_generator(build_generator(spec), spec, tmp_path / name, facts={})
    order = sorted(specs, reverse=not conditional_first)
    settings = Evaluation(num_samples=300, extractor="random")
    inputs = [tmp_path / name for name in order]
    show_scores(evaluate_inputs(inputs, RunData(None), settings=settings, seed=0))
    said = capsys.readouterr().out
    assert re.search(r"quality/class_frechet\s+[\d.]+", said)
    assert re.search(r"quality/frechet\s+[\d.]+\s+[\d.]+\s+[\d.]+", said)


CAT = {"name": "cat", "values": {"quality/coverage": 0.25}, "reals": {"quality/coverage": 0.5}}


@pytest.mark.parametrize(
    ("by_class", "expected"),
    [([CAT], "0.25"), ([{"name": "cat"}], None), ([CAT | {"values": {}}], None), (7, None)],
)
def test_report_has_a_table_of_classes(
    conditional_run: Path, tmp_path: Path, by_class: object, expected: str | None
) -> None:
    """A damaged one is left out."""
    copied = Path(shutil.copytree(conditional_run, tmp_path / "run"))
    rows = [
        json.loads(line)
        for line in (conditional_run / "evaluations.jsonl").read_text().splitlines()
    ]
    text = json.dumps(rows[-1] | {"by_class": by_class})
    (copied / "evaluations.jsonl").write_text(text + "\n")
    page = render_report(read_record(copied), nearest_note="not searched")
    assert "Rows: even, odd" in page
    assert ("<h3>Classes</h3>" in page) == (expected is not None)
    assert expected is None or expected in page
