"""One collective, behind an interface that is the identity on one process."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Reducer(Protocol):
    """Joins small statistics over the processes that share one global batch.

    `gather` is the single primitive: every process gets the same stack in the same order, so whatever is
    computed from it is bitwise equal on all of them.
    """

    rank: int
    world_size: int

    def gather(self, value: Tensor) -> Tensor:
        """Stack `value` of every process: shape [...] -> [world_size, ...]."""
        ...


class LocalReducer:
    """The single-process reducer: gathering is adding a leading dimension."""

    rank: int = 0
    world_size: int = 1

    def gather(self, value: Tensor) -> Tensor:
        """Stack of one."""
        return value.unsqueeze(0)


class ProcessGroupReducer:
    """Gathers over a `torch.distributed` process group (the default group when none is given)."""

    def __init__(self, group: torch.distributed.ProcessGroup | None = None) -> None:
        self.group = group
        self.rank: int = torch.distributed.get_rank(group)
        self.world_size: int = torch.distributed.get_world_size(group)

    def gather(self, value: Tensor) -> Tensor:
        """Stack of the value on every rank, in rank order."""
        parts = [torch.empty_like(value) for _ in range(self.world_size)]
        torch.distributed.all_gather(parts, value.contiguous(), group=self.group)
        return torch.stack(parts)


def default_reducer() -> Reducer:
    """The reducer for the running process: over all ranks if `torch.distributed` is up, else local."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return ProcessGroupReducer()
    return LocalReducer()
