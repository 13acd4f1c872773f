"""Rank, world, reductions and gathers on torch.distributed alone; the identity in a world of one."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from distgan.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """Who this process is. Every method is a collective: all ranks call it, in the same order."""

    rank: int
    size: int

    @property
    def is_main(self) -> bool:
        """True on the one rank that writes files and talks to people."""
        return self.rank == 0

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """The sum over ranks, on every rank; the argument is left as it was."""
        if self.size == 1:
            return tensor
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    def all_gather(self, tensor: Tensor) -> Tensor:
        """All ranks' tensors (equal shapes) concatenated along dimension 0, in rank order."""
        if self.size == 1:
            return tensor
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    def broadcast_(self, tensors: list[Tensor]) -> None:
        """Overwrite the tensors with rank zero's."""
        if self.size == 1:
            return
        for tensor in tensors:
            dist.broadcast(tensor, src=0)

    def broadcast_object(self, value: T) -> T:
        """Rank zero's plain value (numbers, strings, lists, dicts) on every rank."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def run_on_main(self, action: Callable[[], Any]) -> Any:
        """Do something on rank zero only; a user's mistake there ends all ranks together. Others get None."""
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
        """Likewise, with rank zero's plain result for all."""
        return self.broadcast_object(self.run_on_main(action))

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.size > 1:
            dist.barrier()


def current_world() -> World:
    """The world of the default process group, or a world of one where there is none."""
    if dist.is_available() and dist.is_initialized():
        return World(dist.get_rank(), dist.get_world_size())
    return World(0, 1)


def leave_world() -> None:
    """The last thing a process does: leave the process group, where there is one."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


class CoordinatedStop:
    """A flag that all ranks see raised at the same step, without the device ever waiting for the host.

    The vote of one step travels while the step is computed and is read at the next, over a gloo group of its own.
    """

    def __init__(self, world: World, *, timeout: timedelta) -> None:
        self.group: Any = (
            dist.new_group(backend="gloo", timeout=timeout) if world.size > 1 else None
        )
        self.vote = torch.zeros((), dtype=torch.int32)
        self.pending: dist.Work | None = None

    def poll(self, flag: bool) -> bool:
        """Cast this step's vote; true once any rank had voted yes by the step before (at once in a world of one)."""
        if self.group is None:
            return flag
        decided = False
        if self.pending is not None:
            self.pending.wait()
            decided = bool(self.vote.item())
        self.vote = torch.tensor(int(flag), dtype=torch.int32)
        self.pending = dist.all_reduce(
            self.vote, op=dist.ReduceOp.MAX, group=self.group, async_op=True
        )
        return decided

    def close(self) -> None:
        """Let the last vote arrive, so that no rank leaves while another is waiting for it, and let go of the group."""
        if self.pending is not None:
            self.pending.wait()
        if self.group is not None:
            dist.barrier(self.group)
            dist.destroy_process_group(self.group)


def launched_world_size() -> int:
    """How many processes the launcher says it has started (1 without a launcher)."""
    return int(os.environ.get("WORLD_SIZE", "1"))
