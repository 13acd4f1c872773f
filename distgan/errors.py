"""Errors that are shown in one line: what is wrong, the value, and what to type instead."""


class UserError(ValueError):
    """A mistake of the user's. Commands show it without a traceback and exit with code 2."""


class RunFailed(RuntimeError):
    """A run that cannot continue, through no mistake of the user's. Its exit code is 1."""

    must_report = False  # True if this rank must report it because rank zero is gone
