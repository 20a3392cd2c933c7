"""How much of an evaluation's time goes where: passes through the network, counted for each measurement.

Passes are counted where the work is done and kept with each finished piece, so the figures are those of the whole
evaluation whoever did which piece: another rank, or a run that was killed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import nn

from wdro_train.utils.pass_counter import PassCounter

Result = TypeVar("Result")

PASSES = "passes"
"""The name of the array of every piece that holds its forward and backward passes, shape [2, 1]."""


@dataclass(frozen=True)
class Passes:
    """Images that went through the network.

    Attributes:
        forward: Images that have gone forward.
        backward: Images whose gradient has come back.
    """

    forward: int = 0
    backward: int = 0

    def __add__(self, other: Passes) -> Passes:
        """Both together."""
        return Passes(self.forward + other.forward, self.backward + other.backward)

    def __sub__(self, other: Passes) -> Passes:
        """What has come in addition to `other`."""
        return Passes(self.forward - other.forward, self.backward - other.backward)

    @property
    def pairs(self) -> float:
        """In units of one forward and one backward pass of one image, (forward + backward) / 2; see `PassCounter`."""
        return (self.forward + self.backward) / 2


@dataclass
class PassLedger:
    """The passes of an evaluation so far.

    Attributes:
        total: Of everything that was done, on all ranks.
    """

    total: Passes = Passes()

    def add(self, counted: NDArray[np.int64]) -> None:
        """Add the passes of pieces.

        Args:
            counted: Forward and backward passes, shape [2, pieces].
        """
        forward, backward = counted.sum(axis=1).tolist()
        self.total += Passes(forward, backward)


def counted(model: nn.Module, work: Callable[[], Result]) -> tuple[Result, NDArray[np.int64]]:
    """Do some work, and count the passes that it takes.

    Args:
        model: The network that the work asks.
        work: What to do.

    Returns:
        What the work returned, and its forward and backward passes, shape [2, 1].
    """
    with PassCounter(model) as counter:
        result = work()
    return result, np.asarray([[counter.forward], [counter.backward]], dtype=np.int64)
