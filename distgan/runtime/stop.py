"""Agreement of all ranks on the step before which they stop, after one received a signal.

If ranks stopped at different steps, a collective would wait forever. A vote before every step would
prevent that, but it costs more with every rank. This protocol costs nothing until a signal arrives:

    any rank   "stop"         to rank zero: I was interrupted
    rank 0     "hold"         to all: which step boundary is the first that you have not passed yet?
    all ranks  "boundary 17"  to rank zero, at once, from the thread that reads the connections;
                              the training thread waits at that boundary
    rank 0     "stop_at 18"   to all: the largest of the answers

No rank has passed boundary 18 yet, and all will reach it: the waiting ranks resume, and all ranks
stop there. Every rank counts boundaries from the start of its process.
"""

import threading
from collections.abc import Callable

from distgan.runtime.distributed import World

NEVER = -1


class CoordinatedStop:
    """This rank's side of the protocol; `send` sends a line to every connected rank."""

    def __init__(self, world: World, send: Callable[[str], None]) -> None:
        self.world, self.send = world, send
        self.changed = threading.Condition()
        self.next_boundary = 0
        self.requested = self.holding = False
        self.stop_at: int | None = None
        self.answers: dict[int, int] = {}  # rank zero: the next boundary of each rank
        self.any_finished = False

    def poll(self, interrupted: bool) -> bool:
        """Pass one step boundary; return whether all ranks stop here."""
        if self.world.size == 1:
            return interrupted
        if interrupted and not self.requested:
            self.requested = True
            self.request()
        with self.changed:
            self.changed.wait_for(lambda: not self.holding or self.stop_at is not None)
            boundary = self.next_boundary
            self.next_boundary += 1
            return boundary == self.stop_at

    def request(self) -> None:
        """Ask for a stop."""
        if self.world.is_main:
            self.begin()
        else:
            self.send("stop")

    def receive(self, word: str, text: str, *, rank: int) -> None:
        """Handle a message of another rank. Unknown words ("here") are ignored."""
        if word == "stop":
            self.begin()
        elif word == "hold":
            self.send(f"boundary {self.hold()}")
        elif word == "boundary":
            self.add_answer(rank, int(text))
        elif word == "stop_at":
            self.decide(int(text))

    def begin(self) -> None:
        """Ask all ranks, from rank zero and only once, for their next boundary."""
        with self.changed:
            if self.holding or self.any_finished:
                return
            self.answers[0] = self.hold()
        self.send("hold")

    def hold(self) -> int:
        """Make the training thread wait at the next boundary, and return which one that is."""
        with self.changed:
            self.holding = True
            return self.next_boundary

    def add_answer(self, rank: int, boundary: int) -> None:
        """Record an answer on rank zero; decide once every rank has answered.

        The others are told first: rank zero may close its connections as soon as it has stopped.
        """
        self.answers[rank] = boundary
        if len(self.answers) == self.world.size and self.stop_at is None:
            last = max(self.answers.values())
            self.send(f"stop_at {last}")
            self.decide(last)

    def decide(self, boundary: int) -> None:
        """Let the training thread continue to the boundary where all ranks stop."""
        with self.changed:
            if self.stop_at is None:
                self.stop_at = boundary
            self.changed.notify_all()

    def rank_finished(self) -> None:
        """Stop waiting, because a rank has passed its last step and the others will soon."""
        with self.changed:
            self.any_finished = True
            undecided = self.holding and self.stop_at is None
        if undecided:
            if self.world.is_main:
                self.send(f"stop_at {NEVER}")
            self.decide(NEVER)

    def release(self) -> None:
        """Let the training thread continue, because a rank was lost and the run will end."""
        self.decide(NEVER)
