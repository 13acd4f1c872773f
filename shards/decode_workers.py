"""Processes that decode the batches of a stream ahead.

order ──> worker n mod W decodes batch n ──pipe──> uint8 [b, C, H, W] in the reading thread

Each worker computes the order itself, so nothing is sent to it. It is at most two batches ahead of
what has been read of it. A pipe closes if either side dies, so that
neither waits for the other. No shared memory is used, of which Docker allows 64 MB by default.

Threads in place of processes measured slower: decoding releases the interpreter lock, but for too
short a time (2 threads reached 0.3 to 0.6 times the rate of 2 processes on 2 busy cores).
"""

from __future__ import annotations

import fcntl
import os
import signal
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

import numpy as np
from numpy.typing import NDArray

from shards.errors import ShardError
from shards.order.rank import RankSlice
from shards.processes import NEEDS_GUARD, SPAWN, exit_with_parent, num_usable_cores
from shards.reader import ShardReader

MAX_DEFAULT_WORKERS = 16
_POLL_SEC = 0.1
_MAX_WAIT_SEC = 300.0  # for a batch of local shards; remote ones have the limits of fetching
_PIPE_BYTES = 2**20  # what Linux allows any user; the default of 2**16 means many task switches
_HANDLED_BY_PARENT = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP}
_HEADER = struct.Struct("<q")  # length of an error message in place of a batch, or 0


def default_num_workers() -> int:
    """Return this process's part of the cores less one, and at most MAX_DEFAULT_WORKERS."""
    num_processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return min(MAX_DEFAULT_WORKERS, max(0, num_usable_cores() // num_processes - 1))


class DecodeWorkers:
    """`num_workers` processes that decode the batches of a rank's slice.

    A batch is awaited until `stop` is set. Close it: that ends the processes.
    """

    def __init__(
        self,
        reader: ShardReader,
        rank_slice: RankSlice,
        *,
        key: int,
        num_workers: int,
        stop: threading.Event,
    ) -> None:
        self._stop = stop
        self._is_remote = reader.files.remote
        self._num_read = 0
        self._workers: list[tuple[BaseProcess, Connection]] = []
        with _signals_left_to_parent():
            for number in range(num_workers):
                receiver, sender = SPAWN.Pipe(duplex=False)
                with suppress(OSError, AttributeError):
                    fcntl.fcntl(sender.fileno(), fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
                own = rank_slice.every(num_workers, skip=number)
                arguments = (sender, reader, own, key, rank_slice.step)
                process = SPAWN.Process(target=_work, args=arguments, daemon=True)
                process.start()
                sender.close()
                self._workers.append((process, receiver))

    def read_into(self, out: NDArray[np.uint8]) -> None:
        """Write the next batch into `out` [b, C, H, W].

        Raises ShardError for what a worker could not read, if one has died, and if a batch does not
        come within the time that a batch may take.
        """
        process, receiver = self._workers[self._num_read % len(self._workers)]
        self._num_read += 1
        header, pixels = bytearray(_HEADER.size), out.reshape(-1).data
        try:
            self._receive(receiver, memoryview(header))
            (num_error_bytes,) = _HEADER.unpack(header)
            content = memoryview(bytearray(num_error_bytes)) if num_error_bytes else pixels
            self._receive(receiver, content)
        except (EOFError, OSError):
            if self._stop.is_set():
                raise
            process.join(1.0)
            reason = "out of memory?): start again, with fewer data.workers"
            if process.exitcode == 1:  # after an exception, here while it starts
                reason = f"see above). A script of your own {NEEDS_GUARD}; or set data.workers=0"
            died = f"a process that decodes images died (exit code {process.exitcode}"
            raise ShardError(f"{died}, {reason}") from None
        if num_error_bytes:
            raise ShardError(bytes(content).decode())

    def close(self) -> None:
        """Kill the processes, which own nothing that could be left half done."""
        for process, _ in self._workers:
            process.kill()
        for process, receiver in self._workers:
            process.join()
            receiver.close()

    def _receive(self, receiver: Connection, into: memoryview) -> None:
        """Fill `into`. Raises EOFError if the pipe is closed or `stop` is set.

        Raises ShardError if nothing comes for too long. Time during which this process was
        suspended does not count.
        """
        waited = 0.0  # seconds
        while into:
            if receiver.poll(_POLL_SEC):
                num_bytes = os.readv(receiver.fileno(), [into])
                if not num_bytes:
                    raise EOFError
                into = into[num_bytes:]
            elif self._stop.is_set():
                raise EOFError
            else:
                waited += _POLL_SEC
            if waited > _MAX_WAIT_SEC and not self._is_remote:
                raise ShardError(
                    f"a process that decodes images has sent nothing for {_MAX_WAIT_SEC:g} s: "
                    "start again, with data.workers=0 if it recurs"
                )


def _work(
    sender: Connection, reader: ShardReader, own: RankSlice, key: int, batch_size: int
) -> None:
    """Decode the batches of `own`, one after another, and send each or the reason why not."""
    threading.Thread(target=exit_with_parent, daemon=True).start()
    batches = own.batches(reader.make_order(key, batch_size=batch_size))
    with suppress(BrokenPipeError), ThreadPoolExecutor(1) as thread:
        sending: Future[None] | None = None
        while True:
            message = _decode(reader, next(batches))
            if sending is not None:
                sending.result()  # one batch waits to be read while the next is decoded
            sending = thread.submit(_send, sender, message)
            if isinstance(message, ShardError):
                return


def _decode(reader: ShardReader, ids: NDArray[np.int64]) -> NDArray[np.uint8] | ShardError:
    try:
        return reader.gather(ids)
    except ShardError as error:
        return error


def _send(sender: Connection, message: NDArray[np.uint8] | ShardError) -> None:
    if isinstance(message, ShardError):
        text = str(message).encode()
        _write_all(sender, memoryview(_HEADER.pack(len(text)) + text))
    else:
        _write_all(sender, memoryview(_HEADER.pack(0)))
        _write_all(sender, message.reshape(-1).data)


def _write_all(sender: Connection, data: memoryview) -> None:
    while data:
        data = data[os.write(sender.fileno(), data) :]


@contextmanager
def _signals_left_to_parent() -> Iterator[None]:
    """Start processes that block Ctrl-C, SIGTERM, SIGUSR1 and SIGHUP, even while they import.

    Schedulers and terminals send these signals to every process of a job. The parent answers with a
    checkpoint, for which it may need one more batch.
    """
    resource_tracker.ensure_running()  # its start would reset the signal mask of this thread
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _HANDLED_BY_PARENT)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
