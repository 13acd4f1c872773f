"""Base class and field function of all sections of settings."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic_core import PydanticCustomError

MOST = 2**53


def setting(
    default: Any, sentence: str, *, identity: bool = True, optional: bool = False, **bounds: Any
) -> Any:
    """Return a pydantic field.

    `identity` is False if the setting does not change the weights. An `optional` setting has no
    part in the name of a run's folder while it has its default. Settings that were added later are
    optional, so that older runs keep their folders.
    """
    extra: dict[str, Any] = {"identity": identity, "optional": optional}
    return Field(default, description=sentence, json_schema_extra=extra, **bounds)


class Section(BaseModel):
    """An immutable group of settings; unknown names are errors."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False
    )

    @field_validator("*")
    @classmethod
    def check_size(cls, value: Any) -> Any:
        """Refuse numbers that neither floats nor tensors can hold."""
        if isinstance(value, int) and abs(value) > MOST:
            raise PydanticCustomError("too_large", "is too large")
        return value
