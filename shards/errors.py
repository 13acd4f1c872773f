"""The errors of this package, and text that is safe to print or to store."""

from __future__ import annotations

import errno
import os
import re

_USER_INFO = re.compile(r"://(?:[^/?#\s]*@|[^/?#\s:]*:(?!\d*(?:[/?#\s]|$))\S*@)")
_QUERY = re.compile(r"(\w://[^\s?#]*)[?#]\S*")
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_REMEDY_OF_ERRNO = {
    errno.EMFILE: "allow more open files with `ulimit -n 4096`",
    errno.ENAMETOOLONG: "use a shorter name",
    errno.EFBIG: "allow larger files with `ulimit -f unlimited`",
    errno.EROFS: "use another folder",
    errno.EIO: "check the disk",
} | dict.fromkeys(DISK_FULL, "free some space")


class ShardError(ValueError):
    """A user's mistake or damaged data.

    The message is one line: what is wrong, the value, and what to type instead.
    """


class BadImage(Exception):
    """The reason why an image cannot be used, in the same words on every machine."""


def describe_system_error(error: OSError) -> str:
    """Return one line: the file, what is wrong, and what to do about it if that is known."""
    file = "" if error.filename is None else f"{printable(os.fsdecode(error.filename))}: "
    remedy = _REMEDY_OF_ERRNO.get(error.errno or 0)
    return f"{file}{error.strerror or error}{f'; {remedy}' if remedy else ''}"


def printable(text: object) -> str:
    """Return `text` with control characters and undecodable bytes escaped.

    A hostile file name then cannot send control sequences to a terminal.
    """
    text = str(text)
    if text.isprintable():  # nearly always, and there may be millions
        return text
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


def without_secrets(text: str) -> str:
    """Return `text` without the user, password, query and fragment of any URL in it."""
    return _QUERY.sub(r"\1", _USER_INFO.sub("://", text))
