"""Settings from their layers, and mistakes in them explained.

default < preset (TOML) < command line      the later layer wins; `train.epochs` and `train.kimg` replace each other
"""

import difflib
import json
import tomllib
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from distgan.config.schema import Config
from distgan.config.values import flat_fields, flat_values
from distgan.errors import UserError

PRESETS = files("distgan.config") / "presets"


def load_config(preset: str | None, overrides: Sequence[str] = ()) -> Config:
    """Settings from a preset's name or TOML file and `section.field=value` words; raises UserError."""
    tree: dict[str, Any] = {}
    if preset is not None:
        merge(tree, read_preset(preset))
    for word in overrides:
        merge(tree, parse_override(word))
    config = validate(tree)
    try:
        with_overrides(config, config.collapse.remedy)
    except UserError as error:
        raise UserError(f"collapse.remedy: {error}") from None
    return config


def with_overrides(config: Config, words: Sequence[str]) -> Config:
    """The settings with `section.field=value` words laid over them; raises UserError."""
    tree = config.model_dump()
    for word in words:
        merge(tree, parse_override(word))
    return validate(tree)


def preset_names() -> list[str]:
    """The presets that come with distgan."""
    return sorted(
        entry.name.removesuffix(".toml")
        for entry in PRESETS.iterdir()
        if entry.name.endswith(".toml")
    )


def read_preset(preset: str) -> dict[str, Any]:
    """The tree of a shipped preset or of a TOML file."""
    if preset in preset_names():
        text = (PRESETS / f"{preset}.toml").read_text()
    elif not preset.endswith(".toml"):
        raise UserError(
            f"no preset {preset!r}; choose from {', '.join(preset_names())}, or give a .toml file"
        )
    else:
        try:
            text = Path(preset).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read the preset {preset}: {error}") from None
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"the preset {preset} is not valid TOML: {error}") from None


def parse_override(word: str) -> dict[str, Any]:
    """`section.field=value` as a tree; the value is TOML, or a bare word taken as a string."""
    name, equals, text = word.partition("=")
    if not equals or "." not in name:
        raise UserError(
            f"cannot read {word!r}; settings are written section.field=value, as in train.batch_size=64"
        )
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    tree: Any = value
    for part in reversed(name.split(".")):
        tree = {part: tree}
    return tree


def merge(tree: dict[str, Any], layer: dict[str, Any]) -> None:
    """Lay `layer` over `tree` in place."""
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
    """The tree as a Config; raises UserError with one line a mistake."""
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise UserError(
            "\n".join(explain(mistake) for mistake in error.errors(include_url=False))
        ) from None


def explain(mistake: Any) -> str:
    """One pydantic mistake as a line for a person."""
    names = [name for name, _ in flat_fields()]
    place = ".".join(str(part) for part in mistake["loc"])
    if mistake["type"] == "extra_forbidden":
        known = names if "." in place else list(Config.model_fields)
        same_field = [name for name in names if name.rpartition(".")[2] == place.rpartition(".")[2]]
        guess = next(
            iter(same_field + difflib.get_close_matches(place, known, n=1, cutoff=0.75)), None
        )
        if guess:
            return f"unknown setting {place!r}; did you mean {guess}?"
        neighbours = [name for name in names if name.startswith(place.rpartition(".")[0] + ".")]
        return f"unknown setting {place!r}; settings: {', '.join(neighbours or names)}"
    if mistake["type"] == "value_error":
        return str(mistake["ctx"]["error"])
    if place in Config.model_fields:
        return f"{place!r} is a section; set one of its fields: {', '.join(n for n in names if n.startswith(place + '.'))}"
    return f"{place}={mistake['input']!r}: {mistake['msg'][0].lower()}{mistake['msg'][1:]}"


def to_toml(config: Config) -> str:
    """All settings as TOML that `load_config` reads back; settings without a value are left out."""
    lines: list[str] = []
    section = None
    for name, value in flat_values(config).items():
        place, _, field = name.rpartition(".")
        if place != section:
            section = place
            lines += ["", f"[{section}]"]
        if value is not None:
            lines.append(f"{field} = {json.dumps(value)}")
    return "\n".join(lines).strip() + "\n"
