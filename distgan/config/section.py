"""What every section of settings has in common."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


def setting(default: Any, sentence: str, *, identity: bool = True, **bounds: Any) -> Any:
    """Return a pydantic field; `identity` is False if the setting does not change the weights."""
    return Field(default, description=sentence, json_schema_extra={"identity": identity}, **bounds)


class Section(BaseModel):
    """Settings that belong together. They are immutable, and unknown names are errors."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False
    )
