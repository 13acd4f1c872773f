"""Processes that decode: the same batches, and none is left behind."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from distgan.runtime.signals import Interrupt
from shards.errors import ShardError
from shards.format.index import ShardIndex
from shards.order.settings import OrderSettings
from shards.pack import pack
from shards.reader import ShardReader
from shards.remote.files import open_shards
from shards.stream import BatchStream
from tests.shards.encodings import smooth_source, take
from tests.shards.servers import QUICK, serving
from tests.worlds import run_world, train_run

ROOT = Path(__file__).parents[2]


def test_a_process_decodes_what_the_thread_would(indices: dict[str, ShardIndex]) -> None:
    """The batches are equal and torch's random state is untouched; a dead process is an error."""
    reader = ShardReader(indices["jpeg"], classes=["odd"])
    expected, before = take(reader, 30, start=60), torch.get_rng_state()
    with BatchStream(reader, key=7, start=60, batch_size=12, workers=1) as stream:
        while not multiprocessing.active_children():
            time.sleep(0.01)
        (worker,) = multiprocessing.active_children()
        for (
            number
        ) in Interrupt.SIGNALS:  # the trainer's to answer, even while the worker is starting
            os.kill(worker.pid or 0, number)
        assert torch.equal(torch.stack(list(islice(stream, 30))), expected)
        assert stream.position == 60 + 30 * 12
        for number in Interrupt.SIGNALS:
            os.kill(worker.pid or 0, number)
        for _ in range(20):
            next(stream)
        os.kill(worker.pid or 0, signal.SIGKILL)
        with pytest.raises(ShardError, match=r"decodes images died.*fewer data\.workers"):
            for _ in stream:
                pass
    assert torch.equal(torch.get_rng_state(), before)
    assert multiprocessing.active_children() == []


@pytest.mark.slow
def test_a_script_that_starts_itself_again_is_explained(
    indices: dict[str, ShardIndex], tmp_path: Path
) -> None:
    """Without the usual guard, each process runs the whole script and fails."""
    script = tmp_path / "study.py"
    script.write_text(
        "from shards.reader import ShardReader\n"
        "from shards.stream import BatchStream\n"
        f"reader = ShardReader({str(indices['jpeg'].path)!r})\n"
        "stream = BatchStream(reader, key=7, start=0, batch_size=12, workers=1)\n"
        "next(stream)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 1
    assert 'needs `if __name__ == "__main__":`' in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("closed", [False, True])
def test_a_batch_that_does_not_come_is_noticed(
    indices: dict[str, ShardIndex], monkeypatch: pytest.MonkeyPatch, closed: bool
) -> None:
    """A process that sends nothing ends the stream with one line, and does not delay its end."""
    stream = BatchStream(
        ShardReader(indices["jpeg"]), key=7, start=0, batch_size=12, workers=1, prefetch=1
    )
    next(stream)
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid or 0, signal.SIGSTOP)
    monkeypatch.setattr("shards.decode_workers._MAX_WAIT_SEC", 60.0 if closed else 0.5)
    if closed:
        stream.close()
    else:
        with pytest.raises(ShardError, match=r"has sent nothing for 0\.5 s.*data\.workers=0"):
            for _ in stream:
                pass
    assert multiprocessing.active_children() == []


def count_without_shared_memory(folder: Path) -> int | None:
    """Return how many images arrive in this process with a full and read-only /dev/shm.

    None if no file system can be mounted.
    """
    has_own_mounts = ctypes.CDLL(None).unshare(0x20000) == 0  # CLONE_NEWNS
    for command in ("mount --make-rprivate /", "mount -t tmpfs -o ro,size=4k tmpfs /dev/shm"):
        if not has_own_mounts or subprocess.run(command.split(), capture_output=True).returncode:
            return None
    with BatchStream(ShardReader(folder), key=7, start=0, batch_size=128, workers=1) as stream:
        return sum(len(batch) for batch in islice(stream, 20))


def test_processes_need_no_shared_memory(indices: dict[str, ShardIndex]) -> None:
    """With a full and read-only /dev/shm, batches of 393 kB arrive all the same."""
    [num_images] = run_world(1, count_without_shared_memory, indices["jpeg"].path)
    if num_images is None:
        pytest.skip("no file system can be mounted: needs root")
    assert num_images == 2560


@pytest.mark.slow
def test_processes_read_remote_windows(indices: dict[str, ShardIndex], tmp_path: Path) -> None:
    """From the cache of the node, batches in order; what one of them cannot read is one line."""
    pytest.importorskip("aiohttp")
    order_settings = OrderSettings("windows", lanes=2, window_shards=1)
    expected = take(ShardReader(indices["png"], order_settings=order_settings), 40)
    with serving(indices["png"].path) as server:
        index, files = open_shards(server.url, cache=tmp_path, retry=QUICK)
        reader = ShardReader(index, files=files, order_settings=order_settings)
        assert torch.equal(take(reader, 40, workers=2), expected)
        assert server.shard_gets == {"000000.tar": 1, "000001.tar": 1}
    index = pack(smooth_source(), tmp_path / "damaged", encoding="png")
    with open(index.path / "000000.tar", "r+b") as file:
        file.seek(int(np.load(index.path / "spans.npy")[5, 0]))
        file.write(b"no image")
    with pytest.raises(ShardError, match="sample 5 cannot be decoded") as caught:
        take(ShardReader(index), 30, workers=2)
    assert "\n" not in str(caught.value)


LEFT_OPEN = """
import multiprocessing, os, signal, sys, time
from shards.reader import ShardReader
from shards.stream import BatchStream
if __name__ == "__main__":
    stream = BatchStream(ShardReader(sys.argv[1]), key=7, start=0, batch_size=12, workers=2)
    next(stream)
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    if sys.argv[2] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
@pytest.mark.parametrize("end", ["killed", "forgotten"])
def test_processes_end_with_their_parent(
    indices: dict[str, ShardIndex], tmp_path: Path, end: str
) -> None:
    """Where it is killed, and where it ends without closing its stream."""
    script = tmp_path / "left_open.py"
    script.write_text(LEFT_OPEN)
    command = [sys.executable, str(script), str(indices["png"].path), end]
    done = subprocess.run(
        command,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        timeout=300,
    )
    assert done.returncode == (-signal.SIGKILL if end == "killed" else 0)
    workers = [int(word) for word in done.stdout.split()]
    assert len(workers) == 2
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < deadline, "a worker outlived its parent"
        time.sleep(0.05)


@pytest.mark.slow
def test_training_with_processes_goes_on_where_it_was(
    indices: dict[str, ShardIndex], tmp_path: Path
) -> None:
    """Two ranks with a decoding process each: a resumed run is bit-identical to a whole one."""
    for name, lengths in (("whole", (0.06,)), ("halves", (0.036, 0.06))):
        for kimg in lengths:
            words = [f"train.kimg={kimg}", "data.workers=1"]
            found = run_world(
                2, train_run, indices["jpeg"].path, tmp_path / name, words, timeout=120
            )[0]
        if name == "whole":
            whole = found
    assert all(
        np.array_equal(whole["weights"][name], found["weights"][name]) for name in whole["weights"]
    )
