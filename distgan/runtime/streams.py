"""Standard output and error that a run survives the loss of."""

import faulthandler
import os
import sys
from contextlib import suppress
from typing import Any, TextIO


class LastingStream:
    """A text stream that drops what cannot be written.

    A run must not end because its terminal or its pipe is closed, or the disk of its log is full.
    What it prints is in its run folder, too.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Write the text, or drop it."""
        with suppress(OSError, ValueError):
            return self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Pass on what has been written. If nobody can read it any more, discard it from now on."""
        try:
            self.stream.flush()
        except (BrokenPipeError, ValueError):
            # Otherwise the interpreter would fail at exit, when it flushes the rest.
            with suppress(OSError, ValueError), open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), self.stream.fileno())
        except OSError:
            pass


def keep_streams() -> None:
    """Make sure that no failed write to standard output or error ends this process.

    A signal that ends it at once, as SIGBUS does if a shard loses its end while it is read, leaves
    a last word: the name of the signal and the line of code.
    """
    with suppress(OSError, ValueError, AttributeError, RuntimeError):  # no file behind stderr
        faulthandler.enable()
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, LastingStream):
            setattr(sys, name, LastingStream(stream))
