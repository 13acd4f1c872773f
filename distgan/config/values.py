"""The settings as flat names: their fields, their values, what differs from the defaults, and what a run is known by."""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

from distgan.config.schema import Config
from distgan.config.section import Section


def flat_fields(section: type[Section] = Config, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (`section.field`, pydantic field) for every setting, in the order of declaration."""
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from flat_fields(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name, field


def flat_values(config: Config) -> dict[str, Any]:
    """The settings as {`section.field`: plain value}."""

    def walk(tree: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
        for name, value in tree.items():
            if isinstance(value, dict):
                yield from walk(value, f"{prefix}{name}.")
            else:
                yield prefix + name, value

    return dict(walk(config.model_dump(mode="json"), ""))


def identity_values(config: Config) -> dict[str, Any]:
    """The settings that change the weights; two runs that share them and the dataset are one run."""
    values = flat_values(config)
    return {
        name: values[name] for name, field in flat_fields() if field.json_schema_extra["identity"]
    }


def identity_hash(config: Config, fingerprint: str) -> str:
    """Eight hex digits of the identity settings and the dataset's fingerprint."""
    text = json.dumps([identity_values(config), fingerprint], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def changed_from_defaults(config: Config) -> dict[str, Any]:
    """The settings that differ from the defaults."""
    defaults = flat_values(Config())
    return {name: value for name, value in flat_values(config).items() if value != defaults[name]}
