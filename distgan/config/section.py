"""Base class and field function of all sections of settings."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


def setting(default: Any, sentence: str, *, identity: bool = True, **bounds: Any) -> Any:
    """Return a pydantic field; `identity` is False if the setting does not change the weights."""
    return Field(default, description=sentence, json_schema_extra={"identity": identity}, **bounds)


class Section(BaseModel):
    """An immutable group of settings; unknown names are errors."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False
    )
