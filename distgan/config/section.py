"""What all sections of settings have in common."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


def setting(default: Any, sentence: str, *, identity: bool = True, **bounds: Any) -> Any:
    """A field with its sentence; `identity` is False for what does not change the weights."""
    return Field(default, description=sentence, json_schema_extra={"identity": identity}, **bounds)


class Section(BaseModel):
    """Settings that belong together; unknown names are errors, values never change."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False
    )
