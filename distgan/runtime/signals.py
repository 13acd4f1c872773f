"""The flag that SIGTERM, SIGUSR1 and Ctrl-C raise; standard library only, so that it stands before the slow imports."""

import signal
import time
from types import FrameType


class Interrupt:
    """Signals since the start; the training loop looks at `raised` once a step."""

    SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

    def __init__(self) -> None:
        self.signal_name: str | None = None
        self.since: float = 0.0  # time.monotonic() of the first signal

    @property
    def raised(self) -> bool:
        """True from the first signal on."""
        return self.signal_name is not None

    def install(self) -> "Interrupt":
        """From now on the signals set the flag; a second Ctrl-C ends the process at once."""
        for number in self.SIGNALS:
            signal.signal(number, self.handle)
        return self

    def handle(self, number: int, _frame: FrameType | None) -> None:
        """Note the first signal."""
        if self.raised and number == signal.SIGINT and time.monotonic() - self.since > 1.0:
            raise KeyboardInterrupt
        if not self.raised:
            self.since = time.monotonic()
            self.signal_name = signal.Signals(number).name

    def ignore(self) -> None:
        """The work is saved: a late signal must not turn a finished process into a killed one."""
        for number in self.SIGNALS:
            signal.signal(number, signal.SIG_IGN)
