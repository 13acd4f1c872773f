"""Errors for people: one line that says what is wrong, the value, and what to type."""


class UserError(ValueError):
    """Shown as one line, without a traceback, and exits 2."""


class RunFailed(RuntimeError):
    """The run cannot go on though nobody made a mistake in typing; shown as one line, and exits 1."""

    must_report = False  # True if this rank must report it because rank zero is gone
