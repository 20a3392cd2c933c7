"""How much longer a run takes, from what its steps and its evaluations have taken so far."""

from __future__ import annotations

from collections import deque
from statistics import fmean

_RECENT = 200  # steps: attacks cost more as the network resists longer, so that the first steps say little of the last


class TimeLeft:
    """The mean times of a training step and of an evaluation batch, and what they make of the work that is left.

    >>> time = TimeLeft()
    >>> time.trained(0.5)
    >>> time.evaluated(2.0)
    >>> time.seconds(steps=10, batches=3)
    11.0
    """

    def __init__(self) -> None:
        self._steps: deque[float] = deque(maxlen=_RECENT)
        self._batches: deque[float] = deque(maxlen=_RECENT)

    def trained(self, seconds: float) -> None:
        """A training step has taken so long.

        Args:
            seconds: From the end of the step before, or from the beginning of the epoch.
        """
        self._steps.append(seconds)

    def evaluated(self, seconds: float) -> None:
        """A batch of an evaluation has taken so long.

        Args:
            seconds: From the end of the batch before, or from the beginning of the evaluation.
        """
        self._batches.append(seconds)

    def seconds(self, steps: float, batches: float) -> float | None:
        """What is left.

        Args:
            steps: Training steps that are still to come.
            batches: Evaluation batches that are still to come.

        Returns:
            Seconds; None as long as none of these has been timed. Before the first evaluation, the steps alone.
        """
        timed = [(count, times) for count, times in ((steps, self._steps), (batches, self._batches)) if times]
        if not any(count for count, _ in timed):
            return None if steps or batches else 0.0
        return sum(count * fmean(times) for count, times in timed)


def shown(seconds: float) -> str:
    """A duration for people.

    Args:
        seconds: The duration.

    >>> shown(4.2), shown(125), shown(7322)
    ('4 s', '2:05 min', '2:02 h')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    return f"{whole // 3600}:{whole // 60 % 60:02d} h"
