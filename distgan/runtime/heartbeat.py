"""Detection of lost ranks: which process died or became silent, and on which host.

rank 1 ──┐
rank 2 ──┼── rank 0      one TCP connection per rank; both ends send "here" every second
rank 3 ──┘

A collective cannot name the missing rank, and with NCCL or after a network failure it just hangs.
These connections can: if one closes without "bye", the process has died; if one stays silent, the
node is lost. Rank zero informs the other ranks. The ranks also use these connections to agree on
where to stop after a signal (stop.py).
"""

import os
import platform
import secrets
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from distgan.errors import RunFailed
from distgan.runtime.distributed import (
    START_TIMEOUT,
    STEP_TIMEOUT,
    World,
    set_collective_timeout,
)
from distgan.runtime.stop import CoordinatedStop

BEAT_SEC = 1.0
SILENCE_SEC = 30.0  # a rank that is silent for this long is lost
GRACE_SEC = 10.0  # after a loss, a process that hangs in a collective is ended after this time
CLOSING_SEC = 60.0  # after a loss, a process has this time to close its files
MOST_GREETING_BYTES = 1000


class RankLost(RunFailed):
    """The loss of another rank. If rank zero is lost, the first process of each node reports it."""

    def __init__(self, reason: str, *, rank: int) -> None:
        super().__init__(reason)
        self.must_report = rank == 0 and os.environ.get("LOCAL_RANK", "0") == "0"


def listen(*, backlog: int) -> socket.socket:
    """Return a server on any free port, for IPv6 as well if the machine has both."""
    if socket.has_dualstack_ipv6():
        family = socket.AF_INET6
        return socket.create_server(("", 0), family=family, backlog=backlog, dualstack_ipv6=True)
    return socket.create_server(("", 0), backlog=backlog)


@dataclass(eq=False)
class Link:
    """The connection to one other rank."""

    socket: socket.socket
    rank: int
    host: str
    received: bytes = b""  # the beginning of a line whose end has not arrived yet
    silent_beats: int = 0

    @property
    def name(self) -> str:
        """The rank as errors name it."""
        return f"rank {self.rank} on {self.host}"

    def read_lines(self) -> list[str] | None:
        """Return the lines that have arrived, or None if the connection is closed."""
        try:
            data = self.socket.recv(4096)
        except OSError:
            data = b""
        if not data:
            return None
        self.silent_beats = 0
        *lines, self.received = (self.received + data).split(b"\n")
        return [line.decode(errors="replace") for line in lines]


class Heartbeat:
    """Connections to the other ranks, watched by a thread. Creating one is a collective.

    With the reason as argument, `on_loss` is called as soon as a rank is lost, and `on_hang` before
    this process is ended because it hangs in a collective.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.on_loss: Callable[[str], None] = lambda reason: None
        self.on_hang: Callable[[str], None] = lambda reason: None
        self.loss: RankLost | None = None
        self.loss_known, self.loss_handled = threading.Event(), threading.Event()
        self.closing = threading.Event()
        self.lock = threading.Lock()
        self.links: dict[int, Link] = {}
        self.selector = selectors.DefaultSelector()
        self.stop = CoordinatedStop(world, self.send)
        if world.size > 1:
            set_collective_timeout(START_TIMEOUT)
            self.connect()
            threading.Thread(target=self.watch, daemon=True).start()

    def should_stop(self, interrupted: bool) -> bool:
        """Return whether all ranks stop before this step, because one of them was interrupted.

        Every rank calls it before every step. Raises RankLost.
        """
        stop = self.stop.poll(interrupted)
        if self.stop.next_boundary == 2:  # the first step is done
            set_collective_timeout(STEP_TIMEOUT)
        if self.loss is not None:
            raise self.loss
        return stop

    def find_cause(self, error: BaseException) -> tuple[BaseException, str]:
        """Return what ended the run, and its first line; inform the other ranks if necessary.

        A failed collective is a symptom: if a rank was lost, its loss is the cause.
        """
        is_symptom = isinstance(error, RuntimeError) and not isinstance(error, RunFailed)
        if is_symptom and self.links and self.loss_known.wait(3 * BEAT_SEC):
            assert self.loss is not None, "loss is set before loss_known"
            error = self.loss
        self.loss_handled.set()
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        if self.loss is None:
            self.close(f"failed {reason}")
        return error, reason

    @contextmanager
    def naming_losses(self) -> Iterator[None]:
        """Raise RankLost instead of the error of a collective that failed because of the loss."""
        try:
            yield
        except RuntimeError as error:
            raise self.find_cause(error)[0] from None

    def close(self, message: str = "bye") -> None:
        """Send a last message, so that the other ranks do not report this one as lost."""
        self.closing.set()
        self.send(message)

    # ---------------------------------------------------------------------------- connections

    def connect(self) -> None:
        """Connect every rank to rank zero."""
        server = None
        if self.world.is_main:
            server = listen(backlog=self.world.size)
        port = server.getsockname()[1] if server else 0
        contact = (port, secrets.token_hex(8), platform.node())
        port, token, host = self.world.broadcast_object(contact)
        if server is not None:
            self.accept_all(server, token)
            return
        link = socket.create_connection((os.environ["MASTER_ADDR"], port), timeout=SILENCE_SEC)
        link.sendall(f"{token} {self.world.rank} {platform.node()}\n".encode())
        self.add(link, 0, host)

    def accept_all(self, server: socket.socket, token: str) -> None:
        """Accept one connection per rank; close those that do not send the token."""
        with server:
            server.settimeout(SILENCE_SEC)
            while len(self.links) < self.world.size - 1:
                link, _ = server.accept()
                link.settimeout(BEAT_SEC)
                try:
                    greeting = link.makefile("rb").readline(MOST_GREETING_BYTES).split()
                except OSError:
                    greeting = []
                if greeting[:1] == [token.encode()]:
                    self.add(link, int(greeting[1]), greeting[2].decode())
                else:
                    link.close()

    def add(self, connection: socket.socket, rank: int, host: str) -> None:
        """Register a connection."""
        connection.settimeout(BEAT_SEC)
        self.links[rank] = Link(connection, rank, host)
        self.selector.register(connection, selectors.EVENT_READ, self.links[rank])

    def send(self, message: str, *, except_rank: int | None = None) -> None:
        """Send a line to all connected ranks. `watch` detects ranks that cannot be reached."""
        for link in list(self.links.values()):
            if link.rank != except_rank:
                try:
                    link.socket.sendall(f"{message}\n".encode())
                except OSError:
                    continue

    # ---------------------------------------------------------------------------- watching

    def watch(self) -> None:
        """Read messages; once per beat, send "here" and count the silent ranks.

        Silence is counted in beats of this loop, not in seconds, so that no rank counts as lost
        after the whole job was suspended.
        """
        next_beat = time.monotonic() + BEAT_SEC
        while not self.closing.is_set():
            for key, _ in self.selector.select(max(0.0, next_beat - time.monotonic())):
                self.receive(key.data)
            if time.monotonic() >= next_beat:
                next_beat = time.monotonic() + BEAT_SEC
                self.send("here")
                for key in list(self.selector.get_map().values()):
                    self.count_silence(key.data)

    def receive(self, link: Link) -> None:
        """Handle what has arrived from one rank."""
        lines = link.read_lines()
        if lines is None:
            self.selector.unregister(link.socket)
            reason = f"lost {link.name}: its process has ended (connection closed)"
            return self.rank_lost(link.rank, reason)
        for line in lines:
            word, _, rest = line.partition(" ")
            if word == "bye":
                self.selector.unregister(link.socket)
                return self.stop.rank_finished()
            if word == "failed":
                self.rank_lost(link.rank, f"{link.name} failed: {rest}")
            elif word == "lost":
                rank, _, reason = rest.partition(" ")
                self.rank_lost(int(rank), reason)
            else:
                self.stop.receive(word, rest, rank=link.rank)
        return None

    def count_silence(self, link: Link) -> None:
        """Count a beat without a message from a rank, which is lost after SILENCE_SEC."""
        link.silent_beats += 1
        if link.silent_beats * BEAT_SEC >= SILENCE_SEC:
            reason = f"lost {link.name}: no sign of life for {SILENCE_SEC:g} s"
            self.rank_lost(link.rank, reason)

    def rank_lost(self, rank: int, reason: str) -> None:
        """Record the first loss, inform the other ranks, and make sure that this process ends."""
        with self.lock:
            if self.loss is not None or self.closing.is_set():
                return
            self.loss = RankLost(reason, rank=rank)
        self.loss_known.set()
        self.stop.release()
        self.send(f"lost {rank} {reason}", except_rank=rank)
        threading.Thread(target=self.end_process, args=(self.loss,), daemon=True).start()

    def end_process(self, loss: RankLost) -> None:
        """Record the loss, and end this process if it does not end on its own."""
        with suppress(RunFailed):  # for example on a full disk
            self.on_loss(str(loss))
        if self.loss_handled.wait(GRACE_SEC):
            time.sleep(CLOSING_SEC)
        else:
            self.on_hang(str(loss))
            if loss.must_report or self.world.is_main:
                print(f"error: {loss}", file=sys.stderr, flush=True)
        os._exit(1)
