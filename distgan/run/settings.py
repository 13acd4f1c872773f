"""The settings of a run, which depend on its images if no preset is named."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from distgan.config.flat import identity_hash
from distgan.config.load import build_config, load_config
from distgan.config.recipe import RECIPE, describe_recipe, recipe_for
from distgan.config.schema import Config
from distgan.data import open_dataset
from distgan.errors import UserError
from distgan.run.files import read_toml

OLD_NAME = "run"  # of runs without preset, before there was a recipe for them


@dataclass(frozen=True)
class ChosenSettings:
    """The settings of a run, a name for them, and why they were chosen if the user named none."""

    config: Config
    name: str
    recipe: str = ""


def choose_settings(
    preset: str | None,
    overrides: Sequence[str],
    *,
    data: str | None,
    run_dir: Path | None = None,
) -> ChosenSettings:
    """Return the settings of a preset; without one, the best that are known for the images.

    Without a preset, earlier versions trained a classic DCGAN. If `run_dir`, or else the default
    folder, contains such a run, it is continued. Raises UserError or ShardError.
    """
    if preset is not None:
        return ChosenSettings(load_config(preset, overrides, data=data), Path(preset).stem)
    try:
        classic = load_config(None, overrides, data=data)
    except UserError:  # the overrides may fit the recipe alone
        classic = None
    of_data = [override for override in overrides if override.startswith("data.")]
    settings = (classic or load_config(None, of_data, data=data)).data
    if settings.shards is None:
        return ChosenSettings(load_config("digits", overrides, data=data), "digits")
    index, reader = open_dataset(settings)
    if classic is not None and is_run_of(
        classic, run_dir or default_run_dir(OLD_NAME, classic, index.fingerprint)
    ):
        return ChosenSettings(classic, OLD_NAME, "classic, with which this run was started")
    _, height, width = reader.image_shape
    tree = recipe_for(height, width, num_images=reader.num_samples)
    try:
        config = build_config(tree, overrides, data=data)
    except UserError as error:
        if classic is None:
            raise
        # The overrides fit the defaults, but not this recipe.
        raise UserError(f"{error}; or change a plain DCGAN: --preset classic") from None
    return ChosenSettings(config, RECIPE, describe_recipe(height, width))


def is_run_of(config: Config, folder: Path) -> bool:
    """Return whether a folder contains a run with these settings."""
    tree = read_toml(folder / "config.toml")
    try:
        recorded = Config.model_validate(tree)
    except ValueError:
        return False
    return bool(tree) and identity_hash(recorded, "") == identity_hash(config, "")


def default_run_dir(name: str, config: Config, fingerprint: str) -> Path:
    """Return the default run folder.

    Equal settings and data give the same folder, so that repeating a command resumes the run.
    """
    return Path("runs") / f"{name}-{identity_hash(config, fingerprint)}"
