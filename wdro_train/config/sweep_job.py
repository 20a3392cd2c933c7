"""Which job of a sweep this process is at work on, for whatever shows how far the work is.

A job of a sweep says little on standard output: one line or one bar stands for the whole sweep. The sweep tells its
jobs through the environment, because a job may run in a process of its own.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass

_JOB = "WDRO_TRAIN_SWEEP_JOB"


@dataclass(frozen=True)
class SweepJob:
    """A job of a sweep.

    Attributes:
        number: Its place among the jobs, from 1.
        total: How many jobs the sweep has; None where nobody knows.
        what: The overrides in which it differs from the other jobs.
        alone: Whether no other job of the sweep runs at the same time, so that the terminal is its own.
        each: Mean time of the jobs before it in seconds; None for the first.
    """

    number: int
    total: int | None
    what: str
    alone: bool
    each: float | None = None

    def __str__(self) -> str:
        """As it stands at the beginning of a line."""
        return f"job {self.number}" + ("" if self.total is None else f"/{self.total}") + f"  {self.what}".rstrip()


def announce(job: SweepJob) -> None:
    """From now on this process, and those that it starts, are at work on the job."""
    os.environ[_JOB] = json.dumps(asdict(job))


def forget() -> None:
    """The job is over."""
    os.environ.pop(_JOB, None)


def current() -> SweepJob | None:
    """The job of a sweep that this process is at work on; None for a single run."""
    found = os.environ.get(_JOB)
    return None if found is None else SweepJob(**json.loads(found))
