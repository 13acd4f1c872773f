"""Without a preset, images of one's own get the strong settings for their size and number."""

import json
import sys
from pathlib import Path

import pytest

import distgan
from distgan.cli.training import check_settings
from distgan.commands.sweep_file import plan_runs, read_sweep
from distgan.config.flat import identity_values, to_toml
from distgan.config.load import build_config, load_config
from distgan.config.recipe import default_kimg, recipe_for
from distgan.errors import UserError
from distgan.run.settings import choose_settings, default_run_dir
from shards.format.index import read_index
from tests.worlds import CONTEXT, SMALL, train_run


def strong(size: int, num_images: int = 6000) -> dict[str, object]:
    """Return the settings that change the weights, without those of the data."""
    return identity_values(build_config(recipe_for(size, size, num_images=num_images)))


@pytest.mark.parametrize(("size", "preset"), [(32, "cifar10-strong"), (64, "anime-faces-strong")])
def test_the_recipe_has_the_settings_of_the_strong_preset_for_the_size(
    size: int, preset: str
) -> None:
    """Only the length differs."""
    assert strong(size) == identity_values(load_config(preset))


def test_other_sizes_have_the_recipe_of_the_nearest() -> None:
    """Larger images than those of 64 pixels differ in the penalties only."""
    assert strong(16) == strong(40) == strong(32)
    assert strong(48) == strong(80) == strong(64)
    assert recipe_for(48, 96, num_images=1) == recipe_for(64, 64, num_images=1)
    small, large = strong(64), strong(128)
    assert {name for name in small if small[name] != large[name]} == {"loss.r1", "loss.r2"}
    assert large["loss.r1"] > small["loss.r1"]  # type: ignore[operator]


def test_the_length_grows_with_the_number_of_images_within_limits() -> None:
    """25 epochs, at least 100 and at most 500 thousand images."""
    assert [default_kimg(num) for num in (20, 6000, 16_384, 50_000, 10**7)] == [
        100, 150, 410, 500, 500,
    ]  # fmt: skip


def test_settings_without_preset_follow_the_shards(shards: Path) -> None:
    """With shards the recipe, also from Python; without them digits; a preset stays as it is."""
    chosen = choose_settings(None, ["train.seed=3"], data=str(shards))
    assert (chosen.name, chosen.config.train.kimg, chosen.config.train.seed) == ("strong", 100, 3)
    assert "--preset classic" in chosen.recipe
    assert distgan.load_config(None, ["train.seed=3"], data=str(shards)) == chosen.config
    assert choose_settings(None, ["train.epochs=2"], data=str(shards)).config.train.epochs == 2
    assert choose_settings(None, [f"data.shards={str(shards)!r}"], data=None).name == "strong"
    assert choose_settings(None, [], data=None).config == load_config("digits")
    assert choose_settings("cifar10", [], data=str(shards)).config == load_config(
        "cifar10", data=str(shards)
    )


def test_the_classic_preset_is_the_plain_dcgan() -> None:
    """It has the defaults of all settings that change the weights."""
    identity = identity_values(load_config("classic"))
    defaults = identity_values(load_config(None))
    assert identity | {"optim.reference_batch": None} == defaults


def test_settings_may_fit_the_recipe_alone(shards: Path) -> None:
    """Penalties need a discriminator without batch norm; a setting that fits neither is refused."""
    assert choose_settings(None, ["loss.r1=0.1"], data=str(shards)).config.loss.r1 == 0.1
    check_settings(None, ["loss.r1=0.1"], data=str(shards))
    with pytest.raises(UserError, match=r"unknown setting 'loss.r3'") as refused:
        choose_settings(None, ["loss.r3=0.1"], data=str(shards))
    assert "--preset classic" not in str(refused.value)
    for preset, word in ((None, "loss.r3=0.1"), ("classic", "loss.r2=0.1")):
        with pytest.raises(UserError, match=word[:7]):
            check_settings(preset, [word], data=str(shards))


def test_settings_that_do_not_fit_the_recipe_name_the_classic_preset(shards: Path) -> None:
    """A plain DCGAN accepts them."""
    with pytest.raises(UserError, match=r"label_smoothing.*--preset classic"):
        choose_settings(None, ["loss.label_smoothing=0.1"], data=str(shards))


def test_a_run_that_began_without_recipe_is_continued_with_its_own_settings(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both in a folder of its own and in the default one; with other settings it is refused."""
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    train_run(shards, run, ["train.kimg=0.024"])
    overrides = [*SMALL, "train.kimg=0.048"]
    chosen = choose_settings(None, overrides, data=str(shards), run_dir=run)
    assert (chosen.name, chosen.config.networks.discriminator_norm) == ("run", "batch")
    assert train_run(shards, run, ["train.kimg=0.048"])["start"] == 24
    other = choose_settings(None, [*overrides, "train.seed=1"], data=str(shards), run_dir=run)
    assert other.name == "strong"
    classic = load_config(None, overrides, data=str(shards))
    folder = default_run_dir("run", classic, read_index(shards).fingerprint)
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(to_toml(classic))
    assert choose_settings(None, overrides, data=str(shards)).config == classic


def test_a_sweep_that_began_without_recipe_keeps_its_settings(shards: Path, tmp_path: Path) -> None:
    """A new sweep of the same file has the recipe; one with a run of the past stays classic."""
    file = tmp_path / "some.toml"
    file.write_text(f"data = {str(shards)!r}\nkimg = 1\n[grid]\noptim.lr_g = [1e-4, 2e-4]\n")
    new = plan_runs(read_sweep(file), folder=tmp_path / "runs")
    assert not any("classic" in run.arguments for run in new)
    old = load_config("classic", new[0].arguments[4:], data=str(shards))
    names = plan_runs(
        read_sweep(file).model_copy(update={"preset": "classic"}), folder=tmp_path / "runs"
    )
    names[0].entry.folder.mkdir(parents=True)
    (names[0].entry.folder / "config.toml").write_text(to_toml(old))
    assert plan_runs(read_sweep(file), folder=tmp_path / "runs") == names


def test_a_sweep_may_try_what_fits_the_recipe_alone(shards: Path, tmp_path: Path) -> None:
    """The plain DCGAN has batch norm in its discriminator, with which penalties are refused."""
    file = tmp_path / "some.toml"
    file.write_text(f"data = {str(shards)!r}\nkimg = 1\n[grid]\nloss.r1 = [0.1, 0.2]\n")
    assert len(plan_runs(read_sweep(file), folder=tmp_path / "runs")) == 2


def test_runs_on_other_images_are_not_taken_for_those_of_a_sweep(
    shards: Path, tmp_path: Path
) -> None:
    """The data in its file may be edited, or be packed again in place."""
    file, runs = tmp_path / "some.toml", tmp_path / "runs"
    file.write_text(f"preset = 'digits'\ndata = {str(shards)!r}\n")
    [run] = plan_runs(read_sweep(file), folder=runs)
    run.entry.folder.mkdir(parents=True)
    (run.entry.folder / "generator.safetensors").touch()
    description = run.entry.folder / "generator.json"
    description.write_text(json.dumps({"dataset": read_index(shards).fingerprint}))
    assert len(plan_runs(read_sweep(file), folder=runs)) == 1
    description.write_text(json.dumps({"dataset": "0" * 64}))
    with pytest.raises(UserError, match=r"trained on other images .* give another --folder"):
        plan_runs(read_sweep(file), folder=runs)


def start_training(shards: Path, run_dir: Path) -> None:
    """Train as the entry point does in this process, which ends; what it prints goes to a file."""
    from distgan.train import train

    small = [each for each in SMALL if not each.startswith("train.batch_size")]
    sys.stdout = run_dir.with_suffix(".txt").open("w")
    try:
        train([*small, "train.kimg=0.032"], data=str(shards), run_dir=run_dir)
    finally:
        sys.stdout.close()


def test_the_start_table_names_the_recipe(shards: Path, tmp_path: Path) -> None:
    """A run says which settings it took, and how to get the others."""
    process = CONTEXT.Process(target=start_training, args=(shards, tmp_path / "run"))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    said = (tmp_path / "run.txt").read_text()
    assert "recipe: strong, chosen for 32x32 pixels" in said
    assert "--preset classic" in said
