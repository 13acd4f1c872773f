"""The one error that says what a user, or the data, got wrong."""

from __future__ import annotations


class ShardError(ValueError):
    """One line: what is wrong, the value, and what to type instead."""


def printable(text: str) -> str:
    """`text` with control characters and undecodable bytes spelled out, so that a hostile file name stays a name."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
