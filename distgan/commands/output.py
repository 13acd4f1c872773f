"""Errors of commands that write to a path given by the user."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from distgan.errors import UserError


@contextmanager
def writing_to(path: Path, *, option: str) -> Iterator[None]:
    """Convert an OSError in the block into a UserError that names the option to change."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"cannot write {path}: {reason}; choose another place with {option}"
        ) from None
