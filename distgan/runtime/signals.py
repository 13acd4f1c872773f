"""The flag raised by SIGTERM, SIGUSR1, SIGHUP and Ctrl-C.

It uses the standard library only, so that it can be installed before the slow imports.
"""

import signal
import time
from types import FrameType


class Interrupt:
    """The first signal since the start. The training loop checks `raised` before every step."""

    SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)

    def __init__(self) -> None:
        self.signal_name: str | None = None
        self.since: float = 0.0  # time.monotonic() of the first signal

    @property
    def raised(self) -> bool:
        """True once a signal has arrived."""
        return self.signal_name is not None

    def install(self) -> "Interrupt":
        """Handle the signals from now on. A second Ctrl-C ends the process at once.

        A hangup that is ignored, as under nohup, stays ignored.
        """
        for number in self.SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self.handle)
        return self

    def handle(self, number: int, _frame: FrameType | None) -> None:
        """Record the first signal; end at once on Ctrl-C more than a second later."""
        if self.raised and number == signal.SIGINT and time.monotonic() - self.since > 1.0:
            raise KeyboardInterrupt
        if not self.raised:
            self.since = time.monotonic()
            self.signal_name = signal.Signals(number).name

    def describe_saving(self) -> str:
        """Say which signal interrupted a run that is saved now, and how long saving took."""
        seconds = time.monotonic() - self.since if self.raised else 0.0
        name = self.signal_name or "a signal on another rank"
        return f"interrupted by {name}, saved {seconds:.1f} s later"

    def ignore(self) -> None:
        """Ignore the signals from now on: all work is saved, and the exit code must say so."""
        for number in self.SIGNALS:
            signal.signal(number, signal.SIG_IGN)


INTERRUPT = Interrupt()  # of the command line; it does nothing until it is installed
