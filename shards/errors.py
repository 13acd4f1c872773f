"""The error of this package, and text that is safe to print or to store."""

from __future__ import annotations

import re

_USER_INFO = re.compile(r"://(?:[^/?#\s]*@|[^/?#\s:]*:(?!\d*(?:[/?#\s]|$))\S*@)")
_QUERY = re.compile(r"(\w://[^\s?#]*)[?#]\S*")


class ShardError(ValueError):
    """A user's mistake or damaged data.

    The message is one line: what is wrong, the value, and what to type instead.
    """


def printable(text: object) -> str:
    """Return `text` with control characters and undecodable bytes escaped.

    A hostile file name then cannot send control sequences to a terminal.
    """
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(text)
    )


def without_secrets(text: str) -> str:
    """Return `text` without the user, password, query and fragment of any URL in it."""
    return _QUERY.sub(r"\1", _USER_INFO.sub("://", text))
