"""Statistics of a global batch that several processes share, by one collective that costs nothing on one process.

The budget of a Wasserstein ball is shared by all images of the batch, so every process needs statistics of the others'
images.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Reducer(Protocol):
    """Joins small statistics over the processes that share one global batch.

    `gather` is the only collective: every process gets the same stack in the same order, so whatever it computes from
    that is bitwise equal on all of them.

    Attributes:
        rank: The number of this process, in 0..world_size-1.
        world_size: How many processes there are.
    """

    rank: int
    world_size: int

    def gather(self, value: Tensor) -> Tensor:
        """The values of all processes, in the order of their ranks.

        Args:
            value: Of this process, shape [...]; of the same shape and type on all of them.

        Returns:
            Shape [world_size, ...].
        """
        ...


class LocalReducer:
    """For one process: gathering adds a leading dimension of length 1."""

    rank: int = 0
    world_size: int = 1

    def gather(self, value: Tensor) -> Tensor:
        """The value itself, shape [1, ...]; see `Reducer`."""
        return value.unsqueeze(0)


class ProcessGroupReducer:
    """Gathers over the processes of a `torch.distributed` group.

    Args:
        group: None for the default group.
    """

    def __init__(self, group: torch.distributed.ProcessGroup | None = None) -> None:
        self.group = group
        self.rank: int = torch.distributed.get_rank(group)
        self.world_size: int = torch.distributed.get_world_size(group)

    def gather(self, value: Tensor) -> Tensor:
        """The values of all ranks, shape [world_size, ...]; see `Reducer`."""
        parts = [torch.empty_like(value) for _ in range(self.world_size)]
        torch.distributed.all_gather(parts, value.contiguous(), group=self.group)
        return torch.stack(parts)


def default_reducer() -> Reducer:
    """The reducer of the running process: over all ranks where `torch.distributed` is initialised, else a local one."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return ProcessGroupReducer()
    return LocalReducer()
