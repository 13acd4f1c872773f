"""Who of the world is still there: a rank that dies is named, and nobody waits for it for long.

rank 1 ──┐
rank 2 ──┼── rank 0      one connection each; both ends say "here" every second, and last words before they go
rank 3 ──┘

A collective cannot say who is missing: with NCCL, or with a pulled cable, it only hangs. These connections can: one that
closes without a word is a dead process, one that stays silent is a lost node. Rank zero tells the others.
"""

import os
import platform
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable

from distgan.errors import RunFailed
from distgan.runtime.distributed import World

BEAT_SEC = 1.0
SILENCE_SEC = 30.0  # then a node that does not answer is lost
GRACE_SEC = 10.0  # then a process still caught in a collective with the dead is ended from outside
CLOSING_SEC = 60.0  # then one is ended that did notice, but cannot close


class PeerLost(RunFailed):
    """Another rank has died; without rank zero the first process of each node says so."""

    def __init__(self, line: str, *, rank: int) -> None:
        super().__init__(line)
        self.must_report = rank == 0 and os.environ.get("LOCAL_RANK", "0") == "0"


class Heartbeat:
    """The other ranks, watched from threads; collective to build. `on_hang` is told why before a hung process is ended."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.on_hang: Callable[[str], None] = lambda why: None
        self.loss: PeerLost | None = None
        self.noticed, self.taken, self.closing = (
            threading.Event(),
            threading.Event(),
            threading.Event(),
        )
        self.deciding = threading.Lock()
        self.links: dict[int, socket.socket] = {}
        if world.size > 1:
            self.connect()
            threading.Thread(target=self.beat, daemon=True).start()

    def connect(self) -> None:
        """Every rank greets rank zero, and the two watch each other from then on."""
        server = socket.create_server(("", 0)) if self.world.is_main else None
        greeting = (
            (server.getsockname()[1], secrets.token_hex(8), platform.node())
            if server
            else (0, "", "")
        )
        port, token, host = self.world.broadcast_object(greeting)
        if server is None:
            link = socket.create_connection((os.environ["MASTER_ADDR"], port), timeout=SILENCE_SEC)
            link.sendall(f"{token} {self.world.rank} {platform.node()}\n".encode())
            self.watch(link, 0, host)
            return
        with server:
            server.settimeout(SILENCE_SEC)
            while len(self.links) < self.world.size - 1:
                link, _ = server.accept()
                link.settimeout(BEAT_SEC)
                try:
                    words = link.makefile().readline().split()
                except OSError:
                    words = []
                if words[:1] == [token]:
                    self.watch(link, int(words[1]), words[2])
                else:  # a stranger
                    link.close()

    def watch(self, link: socket.socket, rank: int, host: str) -> None:
        """Listen to a peer in a thread of its own."""
        link.settimeout(BEAT_SEC)
        self.links[rank] = link
        threading.Thread(
            target=self.listen, args=(link, rank, f"rank {rank} on {host}"), daemon=True
        ).start()

    def beat(self) -> None:
        """Say "here" to every peer once a second."""
        while not self.closing.wait(BEAT_SEC):
            self.send("here")

    def send(self, text: str, *, but: int | None = None) -> None:
        """A line to every peer; one that cannot be told will be found missing by whoever listens to it."""
        for rank, link in list(self.links.items()):
            if rank != but:
                try:
                    link.sendall(f"{text}\n".encode())
                except OSError:
                    continue

    def listen(self, link: socket.socket, rank: int, name: str) -> None:
        """Until the peer says goodbye. Silence is counted in waits, not by the clock: a suspended job loses nobody."""
        silent, heard = 0, b""
        while True:
            try:
                data = link.recv(4096)
            except TimeoutError:
                silent += 1
                if silent * BEAT_SEC < SILENCE_SEC:
                    continue
                return self.peer_lost(rank, f"lost {name}: no sign of life for {SILENCE_SEC:g} s")
            except OSError:
                data = b""
            if not data:
                return self.peer_lost(
                    rank, f"lost {name}: its process has ended (connection closed)"
                )
            silent, heard = 0, heard + data
            *lines, heard = heard.split(b"\n")
            for word, _, rest in (line.decode(errors="replace").partition(" ") for line in lines):
                if word == "bye":
                    return None
                if word == "failed":
                    return self.peer_lost(rank, f"{name} failed: {rest}")
                if word == "lost":
                    number, _, line = rest.partition(" ")
                    return self.peer_lost(int(number), line)

    def peer_lost(self, rank: int, line: str) -> None:
        """Note the first loss, pass it on, and see that this process ends."""
        with self.deciding:
            if self.loss is not None or self.closing.is_set():
                return
            self.loss = PeerLost(line, rank=rank)
        self.noticed.set()
        self.send(f"lost {rank} {line}", but=rank)
        if self.taken.wait(GRACE_SEC):
            time.sleep(CLOSING_SEC)
        else:
            self.on_hang(line)
            if self.loss.must_report or self.world.is_main:
                print(f"error: {line}", file=sys.stderr, flush=True)
        os._exit(1)

    def find_cause(self, error: BaseException) -> tuple[BaseException, str]:
        """What ended the run, and one line of it: the lost peer behind a failed collective, or the error, told to others."""
        collective = isinstance(error, RuntimeError) and not isinstance(error, RunFailed)
        if collective and self.links and self.noticed.wait(3 * BEAT_SEC):
            assert self.loss is not None, "noticed is set after loss"
            error = self.loss
        self.taken.set()
        line = next(iter(str(error).splitlines()), type(error).__name__)
        if self.loss is None:
            self.close(f"failed {line}")
        return error, line

    def close(self, last_words: str = "bye") -> None:
        """Go without being missed."""
        self.closing.set()
        self.send(last_words)
