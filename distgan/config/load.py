"""Settings from presets and the command line, with suggestions for misspelt names.

Default < preset < command line. `train.epochs` and `train.kimg` replace each other.
"""

import difflib
import tomllib
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from distgan.config.flat import flat_fields
from distgan.config.schema import Config
from distgan.errors import UserError
from distgan.text import first_line
from shards.files import expand_user

PRESETS = files("distgan.config") / "presets"
OPTIONS = ("--preset", "--data", "--run-dir", "--dry-run")  # the others are settings


def load_config(
    preset: str | None, overrides: Sequence[str] = (), *, data: str | None = None
) -> Config:
    """Return the settings of a preset (its name or TOML file), changed by overrides.

    Overrides are written `section.field=value`; `data` is the value of `data.shards`, taken
    literally. Raises UserError.
    """
    return build_config({} if preset is None else read_preset(preset), overrides, data=data)


def build_config(
    tree: dict[str, Any], overrides: Sequence[str] = (), *, data: str | None = None
) -> Config:
    """Return the settings in nested tables, which are changed in place by overrides and `data`."""
    typed: dict[str, Any] = {}
    for override in overrides:
        merge(typed, parse_override(override))
    merge(tree, typed)
    if data is not None:
        merge(tree, {"data": {"shards": data}})
    config = validate(tree)
    if "batch_size" in typed.get("train", {}) and "reference_batch" not in typed.get("optim", {}):
        config = keep_batch(config)
    try:
        with_overrides(config, config.collapse.remedy)
    except UserError as error:
        raise UserError(f"collapse.remedy: {error}") from None
    return config


def keep_batch(config: Config) -> Config:
    """Return the settings so that no larger batch is chosen for many processes.

    A batch that the user gave is kept, even if it is the one that the preset has, too.
    """
    if config.train.batch_size != config.optim.reference_batch:
        return config
    optim = config.optim.model_copy(update={"scaling": "none"})
    return config.model_copy(update={"optim": optim})


def with_overrides(config: Config, overrides: Sequence[str]) -> Config:
    """Return the settings changed by `section.field=value` overrides; raises UserError."""
    tree = config.model_dump(exclude_unset=True)  # what follows other settings follows them again
    for override in overrides:
        merge(tree, parse_override(override))
    return validate(tree)


def preset_names() -> list[str]:
    """Return the names of the presets that come with distgan."""
    names = [entry.name for entry in PRESETS.iterdir()]
    return sorted(name.removesuffix(".toml") for name in names if name.endswith(".toml"))


def read_preset(preset: str) -> dict[str, Any]:
    """Return the tables of a shipped preset or of a TOML file; raises UserError or ShardError."""
    if preset in preset_names():
        text = (PRESETS / f"{preset}.toml").read_text(encoding="utf-8")
    elif not preset.endswith(".toml"):
        raise UserError(
            f"no preset {preset!r}; choose from {', '.join(preset_names())}, or give a .toml file"
        )
    else:
        try:
            text = expand_user(preset).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read the preset {preset}: {error}") from None
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also numbers of thousands of digits
        raise UserError(f"the preset {preset} is not valid TOML: {first_line(error)}") from None


def parse_override(override: str) -> dict[str, Any]:
    """Return `section.field=value` as nested tables. A value that is not TOML is a string."""
    name, equals, text = override.partition("=")
    if name.startswith("-"):
        raise UserError(explain_option(name))
    if not equals or "." not in name:
        raise UserError(
            f"cannot read {override!r}; "
            "settings are written section.field=value, as in train.batch_size=64"
        )
    tree: Any = parse_value(text)
    for part in reversed(name.split(".")):
        tree = {part: tree}
    return tree


def parse_value(text: str) -> Any:
    """Return the TOML value that is the whole text, or else the text itself."""
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return parsed["value"] if len(parsed) == 1 else text


def merge(tree: dict[str, Any], layer: dict[str, Any]) -> None:
    """Put the values of `layer` into `tree`, in place."""
    train = layer.get("train")
    for name, other in (("epochs", "kimg"), ("kimg", "epochs")):
        if isinstance(train, dict) and name in train and isinstance(tree.get("train"), dict):
            tree["train"].pop(other, None)
    for name, value in layer.items():
        if isinstance(value, dict) and isinstance(tree.get(name), dict):
            merge(tree[name], value)
        else:
            tree[name] = value


def validate(tree: dict[str, Any]) -> Config:
    """Return nested tables as a Config; raises UserError with one line per mistake."""
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise UserError(
            "\n".join(explain(mistake) for mistake in error.errors(include_url=False))
        ) from None


def explain(mistake: ErrorDetails) -> str:
    """Return one line that says what is wrong and what to type instead."""
    name = ".".join(str(part) for part in mistake["loc"])
    if mistake["type"] == "extra_forbidden":
        return explain_unknown(name, mistake["input"])
    if mistake["type"] == "value_error":
        return str(mistake["ctx"]["error"])
    if name in Config.model_fields:
        return f"{name!r} is a section; set one of its fields: {', '.join(names_in(name))}"
    return f"{name}={mistake['input']!r}: {mistake['msg'][0].lower()}{mistake['msg'][1:]}"


def explain_unknown(name: str, value: Any) -> str:
    """Return the line about an unknown name, with the most similar name or all of its section.

    The value of an unknown section is a table of its fields.
    """
    while isinstance(value, dict) and value:
        field, value = next(iter(value.items()))
        name = f"{name}.{field}"
    section, _, field = name.rpartition(".")
    same_field = [known for known in names_in() if known.rpartition(".")[2] in (field, section)]
    similar = difflib.get_close_matches(name, same_field, n=1, cutoff=0.0)
    similar = similar or difflib.get_close_matches(name, names_in(), n=1, cutoff=0.75)
    if similar:
        return f"unknown setting {name!r}; did you mean {similar[0]}?"
    known = names_in(section) or [*Config.model_fields]
    return f"unknown setting {name!r}; settings: {', '.join(known)}"


def explain_option(option: str) -> str:
    """Return the line about an unknown option, such as --batch-size for train.batch_size."""
    field = option.strip("-").replace("-", "_")
    names = [name for name in names_in() if field and is_meant(field, name.rpartition(".")[2])]
    if names:
        typed = " and ".join(f"{name}=..." for name in names)
        return f"no option {option}; settings are written without dashes: {typed}"
    if field in ("resume", "continue"):
        return f"no option {option}; repeat the command to resume a run"
    if similar := difflib.get_close_matches(option, OPTIONS, n=1):
        return f"no option {option}; did you mean {similar[0]}?"
    return (
        f"no option {option}; the options are {', '.join(OPTIONS)}, and settings are written "
        "section.field=value, as in train.batch_size=64"
    )


def is_meant(word: str, field: str) -> bool:
    """Return whether a word is a setting's name, or that without its network, as in lr_d."""
    return word == field or f"{word}_d" == field or f"{word}_g" == field


def names_in(section: str = "") -> list[str]:
    """Return the names of all settings, or of those in a section."""
    names = [name for name, _ in flat_fields()]
    return [name for name in names if name.startswith(f"{section}.")] if section else names
