"""Rank, world size and collectives. A world of one needs no process group."""

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from distgan.errors import UserError

T = TypeVar("T")

# Timeouts of a collective. A slow rank may be loading images or compiling; the heartbeat detects a
# dead one much sooner.
START_TIMEOUT = timedelta(minutes=30)  # until the first step is done
STEP_TIMEOUT = timedelta(minutes=10)
LEAVE_TIMEOUT = timedelta(minutes=1)  # for which a rank that has ended waits for the others


@dataclass(frozen=True)
class World:
    """The processes of a run. Every method is collective: all ranks call it in the same order."""

    rank: int
    size: int

    @property
    def is_main(self) -> bool:
        """True on rank zero, the only one that writes files and console output."""
        return self.rank == 0

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """Return the sum over ranks, on every rank; the argument stays unchanged."""
        if self.size == 1:
            return tensor
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    def all_gather(self, tensor: Tensor) -> Tensor:
        """Return all ranks' tensors (of equal shapes) concatenated along dimension 0 by rank."""
        if self.size == 1:
            return tensor
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    def broadcast_(self, tensors: list[Tensor], *, source: int = 0) -> None:
        """Overwrite the tensors with those of the rank `source`."""
        if self.size == 1:
            return
        for tensor in tensors:
            dist.broadcast(tensor, src=source)

    def broadcast_object(self, value: T) -> T:
        """Return rank zero's plain value (numbers, strings, lists, dicts) on every rank."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def run_on_main(self, action: Callable[[], Any]) -> Any:
        """Run on rank zero and return the result there, None elsewhere.

        A UserError on rank zero is raised on all ranks.
        """
        result, mistake = None, None
        if self.is_main:
            try:
                result = action()
            except UserError as error:
                mistake = str(error)
        mistake = self.broadcast_object(mistake)
        if mistake is not None:
            raise UserError(mistake)
        return result

    def broadcast_from_main(self, action: Callable[[], T]) -> T:
        """Run on rank zero and return the plain result on every rank."""
        return self.broadcast_object(self.run_on_main(action))

    def barrier(self) -> None:
        """Wait until every rank has called this."""
        if self.size > 1:
            dist.barrier()


def current_world() -> World:
    """Return the world of the default process group, or a world of one if there is none."""
    if dist.is_available() and dist.is_initialized():
        return World(dist.get_rank(), dist.get_world_size())
    return World(0, 1)


def leave_world() -> None:
    """Destroy the process group, if there is one, before the process ends.

    Ranks wait for each other, because gloo drops what is under way when a peer disconnects, and the
    last collective may have ended on one rank earlier than on another.
    """
    if dist.is_available() and dist.is_initialized():
        store = dist.distributed_c10d._get_default_store()
        with suppress(RuntimeError):  # the store goes with the process that holds it
            if store.add("ranks that leave", 1) == dist.get_world_size():
                store.set("all ranks leave", "")
            store.wait(["all ranks leave"], LEAVE_TIMEOUT)
        dist.destroy_process_group()


def fix_gradient_buckets(network: nn.Module) -> None:
    """Let DDP lay out the gradients now, as every start does; collective, nothing without DDP.

    DDP sorts them into buckets again after the first backward pass of a process. The sum over more
    than two ranks is rounded differently at another place of a bucket, so that a resumed run would
    differ from one that was never interrupted.
    """
    if not isinstance(network, DistributedDataParallel):
        return
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    network.reducer.prepare_for_backward([])
    torch.stack([weight.sum() for weight in weights]).sum().backward()
    network.reducer._rebuild_buckets()
    for weight in weights:
        weight.grad = None


def set_collective_timeout(timeout: timedelta) -> None:
    """Change the timeout of this rank's later collectives."""
    if dist.is_available() and dist.is_initialized():
        # torch 2.14 adds `set_timeout` and deprecates `_set_pg_timeout`.
        name = "set_timeout" if hasattr(dist.distributed_c10d, "set_timeout") else "_set_pg_timeout"
        getattr(dist.distributed_c10d, name)(timeout)


def launched_world_size() -> int:
    """Return the number of processes that the launcher started, 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))
