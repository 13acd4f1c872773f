"""Settings under flat names, `section.field`: fields, values, TOML, and the identity of a run."""

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from distgan.config.scaling import scale_to_batch
from distgan.config.schema import Config
from distgan.config.section import Section


def flatten(
    tree: dict[str, Any], prefix: str = "", *, is_value: Callable[[Any], bool] = lambda _: False
) -> dict[str, Any]:
    """Return {`section.field`: value} of nested tables; tables that are values stay as they are."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict) and not is_value(value):
            flat |= flatten(value, f"{prefix}{name}.", is_value=is_value)
        else:
            flat[prefix + name] = value
    return flat


def flat_fields(section: type[Section] = Config, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (`section.field`, pydantic field) for every setting, in the order of declaration."""
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from flat_fields(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name, field


def flat_values(config: Config) -> dict[str, Any]:
    """Return {`section.field`: plain value} of all settings."""
    return flatten(config.model_dump(mode="json"))


def changed_from_defaults(config: Config) -> dict[str, Any]:
    """Return the flat values that differ from the defaults."""
    defaults = flat_values(Config())
    return {name: value for name, value in flat_values(config).items() if value != defaults[name]}


def identity_values(config: Config) -> dict[str, Any]:
    """Return the settings that change the weights. Runs that agree in them are the same run."""
    values = flat_values(config)
    return {
        name: values[name] for name, field in flat_fields() if field.json_schema_extra["identity"]
    }


def identity_hash(config: Config, fingerprint: str) -> str:
    """Return eight hex digits of the identity settings and the dataset's fingerprint."""
    values = identity_values(scale_to_batch(config))
    for name, field in flat_fields():
        if field.json_schema_extra["optional"] and values[name] == field.default:
            del values[name]
    text = json.dumps([values, fingerprint], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def toml_value(value: Any) -> str:
    """Return a value as TOML in ASCII.

    TOML differs from JSON in two escapes: characters beyond U+FFFF are not written as surrogate
    pairs, and DEL must be escaped. Dates become strings.
    """
    text = json.dumps(value, ensure_ascii=False, default=str)
    return re.sub(r"[^ -~]", lambda match: escape(ord(match[0])), text)


def escape(codepoint: int) -> str:
    """Return a character as it is written in a TOML string."""
    return f"\\u{codepoint:04x}" if codepoint < 0x10000 else f"\\U{codepoint:08x}"


def to_overrides(settings: dict[str, Any]) -> list[str]:
    """Return flat settings as `section.field=value` arguments."""
    return [f"{name}={toml_value(value)}" for name, value in settings.items()]


def to_toml(config: Config) -> str:
    """Return all settings as TOML that `load_config` reads back, except those without a value."""
    lines: list[str] = []
    section = None
    for name, value in flat_values(config).items():
        place, _, field = name.rpartition(".")
        if place != section:
            section = place
            lines += ["", f"[{section}]"]
        if value is not None:
            lines.append(f"{field} = {toml_value(value)}")
    return "\n".join(lines).strip() + "\n"
