"""The one error that says what a user, or the data, got wrong."""

from __future__ import annotations

import re

_USER_INFO = re.compile(r"://(?:[^/?#\s]*@|[^/?#\s:]*:(?!\d*(?:[/?#\s]|$))\S*@)")
_QUERY = re.compile(r"(\w://[^\s?#]*)[?#]\S*")


class ShardError(ValueError):
    """One line: what is wrong, the value, and what to type instead."""


def printable(text: str) -> str:
    """`text` with control characters and undecodable bytes spelled out, so that a hostile file name stays a name."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


def without_secrets(text: str) -> str:
    """`text` with `user:password@`, query and fragment taken out of every URL in it, to be shown or stored."""
    return _QUERY.sub(r"\1", _USER_INFO.sub("://", text))
