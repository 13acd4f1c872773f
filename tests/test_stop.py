"""A signal on any rank stops all ranks before the same step, whatever the order of events."""

import queue
import random
import threading
import time

import pytest

from distgan.runtime.distributed import World
from distgan.runtime.stop import CoordinatedStop
from tests.worlds import run_world

NUM_STEPS = 300


class SimulatedWorld:
    """Ranks as threads, each with a thread for its messages, which may be late."""

    def __init__(self, size: int, *, max_lead: int, seed: int) -> None:
        self.size, self.max_lead = size, max_lead
        self.inboxes = [queue.Queue[tuple[int, str] | None]() for _ in range(size)]
        self.random = [random.Random(seed * size + rank) for rank in range(2 * size)]
        self.stops = [
            CoordinatedStop(World(rank, size), lambda line, rank=rank: self.send(rank, line))
            for rank in range(size)
        ]
        self.completed = [0] * size
        self.progress = threading.Condition()

    def send(self, sender: int, line: str) -> None:
        """Deliver a line as the connections do: rank zero reaches all, the others rank zero."""
        for receiver in range(1, self.size) if sender == 0 else [0]:
            self.inboxes[receiver].put((sender, line))

    def deliver(self, rank: int) -> None:
        """Handle the messages to one rank."""
        while (message := self.inboxes[rank].get()) is not None:
            time.sleep(self.random[self.size + rank].random() * 2e-3)
            word, _, text = message[1].partition(" ")
            if word == "bye":
                self.stops[rank].rank_finished()
            else:
                self.stops[rank].receive(word, text, rank=message[0])

    def train(self, rank: int, signal_at: int | None, outcomes: dict[int, int]) -> None:
        """Take steps like a run: a rank is at most `max_lead` steps ahead of the slowest."""
        step = 0
        while not self.stops[rank].poll(signal_at is not None and step >= signal_at):
            if step == NUM_STEPS:
                break
            time.sleep(self.random[rank].random() * 2e-4)
            step += 1
            self.complete(rank, step)
        outcomes[rank] = step
        self.send(rank, "bye")

    def complete(self, rank: int, step: int) -> None:
        """Finish a step, and wait for ranks that are too far behind."""
        with self.progress:
            self.completed[rank] = step
            self.progress.notify_all()
            in_time = self.progress.wait_for(
                lambda: min(self.completed) >= step - self.max_lead, timeout=20
            )
            assert in_time, f"rank {rank} hangs after step {step}"

    def run(self, signals: dict[int, int]) -> list[int]:
        """Return the step before which each rank stopped, for signals {rank: step}."""
        outcomes: dict[int, int] = {}
        readers = [threading.Thread(target=self.deliver, args=(r,)) for r in range(self.size)]
        trainers = [
            threading.Thread(target=self.train, args=(r, signals.get(r), outcomes), daemon=True)
            for r in range(self.size)
        ]
        for thread in readers + trainers:
            thread.start()
        for thread in trainers:
            thread.join(30)
        for inbox in self.inboxes:
            inbox.put(None)
        return [outcomes[rank] for rank in range(self.size)]


@pytest.mark.parametrize("max_lead", [0, 5])
@pytest.mark.parametrize("signals", [{0: 20}, {3: 20}, {1: 0}, {0: 30, 1: 31, 2: 29, 3: 30}])
def test_all_ranks_stop_before_the_same_step(signals: dict[int, int], max_lead: int) -> None:
    """Also if ranks are steps apart, as hosts are that queue work for a GPU."""
    steps = SimulatedWorld(4, max_lead=max_lead, seed=sum(signals)).run(signals)
    assert len(set(steps)) == 1
    assert min(signals.values()) <= steps[0] < NUM_STEPS


@pytest.mark.parametrize("signal_at", range(NUM_STEPS - 3, NUM_STEPS + 1))
def test_a_signal_during_the_last_steps_hangs_nobody(signal_at: int) -> None:
    """Ranks that have left give no answer, and the others end by themselves."""
    steps = SimulatedWorld(4, max_lead=3, seed=signal_at).run({2: signal_at})
    assert len(set(steps)) == 1


def test_the_others_are_told_before_rank_zero_goes_on() -> None:
    """It may close its connections as soon as it has stopped, and they would wait for it."""
    said: list[tuple[str, int | None]] = []
    stop = CoordinatedStop(World(0, 2), lambda line: said.append((line, stop.stop_at)))
    stop.begin()
    stop.receive("boundary", "5", rank=1)
    assert said == [("hold", None), ("stop_at 5", None)]
    assert stop.stop_at == 5


def test_no_signal_no_stop() -> None:
    """Every rank takes all its steps."""
    assert SimulatedWorld(3, max_lead=0, seed=0).run({}) == [NUM_STEPS] * 3


def test_a_world_of_one_stops_at_once() -> None:
    """There is nobody to agree with."""
    stop = CoordinatedStop(World(0, 1), lambda line: None)
    assert [stop.poll(False), stop.poll(True)] == [False, True]


def stopped_at(signalled_rank: int) -> int:
    """Take steps with one all-reduce each; return the step before which this rank stopped."""
    import torch
    import torch.distributed as dist

    from distgan.runtime.distributed import current_world, leave_world
    from distgan.runtime.heartbeat import Heartbeat

    dist.init_process_group("gloo")
    world = current_world()
    heartbeat = Heartbeat(world)
    step = 0
    while not heartbeat.should_stop(world.rank == signalled_rank and step >= 50):
        dist.all_reduce(torch.ones(1))
        step += 1
    heartbeat.close()
    leave_world()
    return step


@pytest.mark.parametrize("signalled_rank", [0, 2])
def test_processes_stop_before_the_same_step(signalled_rank: int) -> None:
    """Over real connections, soon after the signal, whichever rank it reaches."""
    steps = run_world(3, stopped_at, signalled_rank)
    assert len(set(steps)) == 1
    assert steps[0] >= 50
