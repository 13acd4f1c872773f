"""Errors for people: one line that says what is wrong, the value, and what to type."""


class UserError(ValueError):
    """Shown as one line, without a traceback, and exits 2."""


class RunFailed(RuntimeError):
    """The run cannot go on though nobody made a mistake in typing; shown as one line, and exits 1."""

    speaks = False  # whether another process than rank zero has to show it, rank zero being gone
