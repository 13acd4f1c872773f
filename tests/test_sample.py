"""`distgan sample`: grids, files, videos, truncation, interpolation, and its few imports."""

import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from distgan.commands.sample import FRAMES_PER_LEG, NUM_KEYS
from distgan.networks.base import GeneratorSpec
from distgan.networks.build import build_generator
from distgan.networks.ema import recalibrate_batch_norm
from distgan.networks.generator import Generator
from distgan.networks.generator_file import load_generator, save_generator
from distgan.networks.latents import slerp, truncate, walk
from distgan.networks.mixture import mixture_spec
from tests.test_commands import call
from tests.worlds import run_code, run_world, train_run


@pytest.fixture(scope="module")
def run(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished run with two checkpoints."""
    folder = tmp_path_factory.mktemp("sample") / "run"
    run_world(1, train_run, shards, folder, ["train.kimg=0.024", "checkpoint.every_kimg=0.012"])
    return folder


def test_truncated_latents_keep_their_length_and_approach_the_center() -> None:
    """The networks were trained on latents of that length; shorter ones have other colors."""
    center, *latents = torch.randn(33, 100, generator=torch.Generator().manual_seed(0))
    latents = torch.stack(latents)
    distances = []
    for fraction in (1.0, 0.7, 0.4, 0.0):
        cut = truncate(latents, center, fraction)
        assert (cut.norm(dim=1) / latents.norm(dim=1)).sub(1).abs().max() < 0.35
        distances.append((cut - center).norm(dim=1).mean())
    assert distances == sorted(distances, reverse=True)
    torch.testing.assert_close(truncate(latents, center, 1.0), latents)


def test_truncation_keeps_mean_color_and_contrast_and_reduces_variety() -> None:
    """Of a random generator with batch norm statistics of its own latents."""
    torch.manual_seed(0)
    spec = GeneratorSpec(architecture="dcgan", image_size=32, channels=3, width=8, latent_dim=64)
    network = build_generator(spec)
    recalibrate_batch_norm(network, torch.randn(512, 64))
    generator = Generator(network, spec)
    plain, cut = (generator.sample(256, truncation=each).float() for each in (None, 0.4))
    contrast = [images.flatten(2).std(2).mean() for images in (plain, cut)]
    variety = [images.std(0).mean() for images in (plain, cut)]
    assert (plain.mean((0, 2, 3)) - cut.mean((0, 2, 3))).abs().max() < 6
    assert contrast[1] > contrast[0] * 0.9
    assert variety[1] < variety[0] * 0.8


def test_slerp_keeps_the_length() -> None:
    """Between latents of equal length every latent has that length, also between equal latents."""
    starts, ends = torch.nn.functional.normalize(
        torch.randn(2, 5, 100, generator=torch.Generator().manual_seed(0)), dim=2
    )
    between = slerp(starts, ends, torch.linspace(0, 1, 7))
    torch.testing.assert_close(between[:, 0], starts)
    torch.testing.assert_close(between[:, -1], ends)
    torch.testing.assert_close(between.norm(dim=2), torch.ones(5, 7))
    assert slerp(starts, starts, torch.linspace(0, 1, 7)).isfinite().all()


def test_walk_is_closed_and_steady() -> None:
    """It passes through all keys, and neighbouring frames are close, as are the last and first."""
    keys = torch.randn(3, 2, 50, generator=torch.Generator().manual_seed(0))
    path = walk(keys, frames_per_leg=20)
    assert path.shape == (60, 2, 50)
    torch.testing.assert_close(path[::20], keys)
    steps = (path.roll(-1, 0) - path).norm(dim=2)
    assert steps.max() < keys[0].norm(dim=1).max() * 0.15


@pytest.mark.parametrize(
    ("words", "size"),
    [
        (["--num", "9"], (3, 3)),
        (["--num", "9", "--truncation", "0.5"], (3, 3)),
        (["--interpolate", "--num", "16"], (8, 2)),
    ],
)
def test_grids_have_their_columns_and_rows(
    run: Path, tmp_path: Path, words: list[str], size: tuple[int, int]
) -> None:
    """Plain, truncated and interpolated grids are as large as their images need."""
    code, said = call("sample", run, *words, "--out", tmp_path / "grid.png")
    assert code == 0, said
    with Image.open(tmp_path / "grid.png") as picture:
        assert picture.size == tuple(side * (64 + 4) + 4 for side in size)
        assert len(set(picture.convert("L").tobytes())) > 10


@pytest.mark.parametrize(
    "words",
    [
        ["--num", "9"],
        ["--num", "8", "--truncation", "0.5"],
        ["--num", "8", "--interpolate"],
        ["--video"],
    ],
)
def test_only_the_chosen_class_is_sampled(tmp_path: Path, words: list[str]) -> None:
    """Of a black and a white class only white appears: truncated, interpolated, on a walk."""
    part = GeneratorSpec(architecture="dcgan", image_size=32, channels=1, width=1, latent_dim=4)
    spec = mixture_spec(part, classes=("black", "white"), weights=(0.5, 0.5))
    mixture = build_generator(spec).eval()
    for network, shade in zip(mixture.parts, (-1.0, 1.0), strict=True):
        torch.nn.init.constant_(network.layers[-2].bias, 20 * shade)  # before the tanh
    save_generator(mixture, spec, tmp_path, facts={})
    out = tmp_path / ("walk.gif" if words == ["--video"] else "grid.png")
    words = [*words, str(out)] if words == ["--video"] else [*words, "--out", str(out)]
    code, said = call("sample", tmp_path, "--class", "white", *words)
    assert code == 0, said
    with Image.open(out) as picture:
        for frame in range(getattr(picture, "n_frames", 1)):
            picture.seek(frame)
            assert picture.convert("L").getpixel((40, 40)) > 240
    code, said = call("sample", tmp_path, "--class", "red")
    assert (code, "choose from black, white" in said) == (2, True), said


def test_truncated_rows_of_a_mixture_stay_in_their_class(tmp_path: Path) -> None:
    """At 0 both ends of a row are the typical image of its class, so the row is of one image."""
    part = GeneratorSpec(architecture="dcgan", image_size=32, channels=1, width=8, latent_dim=4)
    spec = mixture_spec(part, classes=("a", "b"), weights=(0.5, 0.5))
    mixture = build_generator(spec).eval()
    for network in mixture.parts:
        torch.nn.init.normal_(network.layers[-2].weight, std=2.0)  # new networks make grey images
    save_generator(mixture, spec, tmp_path, facts={})
    code, said = call(
        "sample", tmp_path, "--interpolate", "--truncation", 0, "--out", tmp_path / "grid.png"
    )
    assert code == 0, said
    with Image.open(tmp_path / "grid.png") as picture:
        cells = [
            [
                picture.crop((4 + 68 * x, 4 + 68 * y, 68 + 68 * x, 68 + 68 * y)).tobytes()
                for x in range(8)
            ]
            for y in range(8)
        ]
    assert [len(set(row)) for row in cells] == [1] * 8
    assert len({row[0] for row in cells}) == 2  # one typical image for each class


def test_progress_has_a_column_for_each_checkpoint(run: Path, tmp_path: Path) -> None:
    """The output names the kimg of each column."""
    moments = sorted(float(path.name) for path in (run / "checkpoints").iterdir())
    code, said = call("sample", run, "--progress", "--num", 3, "--out", tmp_path / "grid.png")
    assert (code, f"columns: {', '.join(f'{kimg:g}' for kimg in moments)} kimg" in said) == (
        0,
        True,
    ), said
    with Image.open(tmp_path / "grid.png") as picture:
        assert picture.size == (len(moments) * 68 + 4, 3 * 68 + 4)


def test_several_generators_have_a_row_each(run: Path, tmp_path: Path) -> None:
    """A run, its checkpoint and its file are one generator: three equal rows."""
    newest = sorted((run / "checkpoints").iterdir())[-1]
    code, said = call(
        "sample",
        run,
        newest,
        run / "generator.safetensors",
        "--num",
        4,
        "--out",
        tmp_path / "grid.png",
    )
    assert code == 0, said
    with Image.open(tmp_path / "grid.png") as picture:
        assert picture.size == (4 * 68 + 4, 3 * 68 + 4)
        rows = [
            picture.crop((0, 68 * row, picture.width, 68 * row + 68)).tobytes() for row in range(3)
        ]
    assert rows[0] == rows[1] == rows[2]


def test_files_are_the_images_of_the_grid(run: Path, tmp_path: Path) -> None:
    """One PNG per image in its original size, grey for one channel, numbered from zero."""
    assert call("sample", run, "--files", tmp_path / "many", "--num", 3, "--seed", 5)[0] == 0
    assert sorted(path.name for path in (tmp_path / "many").iterdir()) == [
        f"{i:06d}.png" for i in range(3)
    ]
    generator = load_generator(run)
    wanted = generator.network(generator.latents(3, seed=5))[2, 0]
    with Image.open(tmp_path / "many" / "000002.png") as picture:
        assert (picture.mode, picture.size) == ("L", (32, 32))
        found = torch.tensor(list(picture.tobytes())).view(32, 32)
    assert (found / 127.5 - 1 - wanted).abs().max() < 0.01


def test_videos_play(run: Path, tmp_path: Path) -> None:
    """The GIF repeats endlessly; the MP4 has as many frames."""
    imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg", reason="pip install 'distgan[video]'")
    for name in ("walk.gif", "walk.mp4"):
        code, said = call("sample", run, "--video", tmp_path / name, "--num", 4)
        assert code == 0, said
    with Image.open(tmp_path / "walk.gif") as film:
        assert film.n_frames == NUM_KEYS * FRAMES_PER_LEG
        assert film.info["loop"] == 0
    assert imageio_ffmpeg.count_frames_and_secs(str(tmp_path / "walk.mp4")) == (
        NUM_KEYS * FRAMES_PER_LEG,
        4.8,
    )


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--video", "walk.avi"], ".gif or .mp4"),
        (["--video", "walk.gif", "--interpolate"], "choose one"),
        (["--out", "/proc/none/grid.png"], "--out"),
        (["--files", "/proc/none"], "--files"),
        (["--files", "many", "--out", "grid.png"], "--files writes none; choose one"),
        (["--video", "walk.gif", "--out", "grid.png"], "--video writes none; choose one"),
        (["--interpolate", "--num", "12"], "rows of 8"),
        (["--interpolate", "--labels", "0,1", "--class", "1"], "exclude one another"),
    ],
)
def test_mistakes_exit_2(run: Path, words: list[str], expected: str) -> None:
    """The message names what to change."""
    code, said = call("sample", run, *words)
    assert (code, expected in said) == (2, True), said


def test_missing_encoder_names_the_extra(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error says what to install."""
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    code, said = call("sample", run, "--video", tmp_path / "walk.mp4", "--num", 1)
    assert (code, "pip install 'distgan[video]'" in said) == (2, True), said


def test_progress_of_a_generator_file_is_refused(run: Path, tmp_path: Path) -> None:
    """A generator file has no checkpoints; the error names the option."""
    code, said = call(
        "sample", run / "generator.safetensors", "--progress", "--out", tmp_path / "grid.png"
    )
    assert (code, "--progress" in said) == (2, True), said


def test_sampling_imports_no_training_library(run: Path, tmp_path: Path) -> None:
    """It works in a process that cannot import accelerate, webdataset or wandb."""
    code = f"""
import sys
blocked = ("accelerate", "webdataset", "wandb")
for name in list(sys.modules):
    if name.partition(".")[0] in ("distgan", "shards", *blocked):
        del sys.modules[name]
sys.modules |= dict.fromkeys(blocked)
from distgan.cli import app
app(["sample", {str(run)!r}, "--out", "grid.png"], standalone_mode=False)
"""
    run_code(code, tmp_path)
    assert (tmp_path / "grid.png").exists()
