"""How far a sweep is: which job is at work, and one line for each that is over."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ValueType
from omegaconf import DictConfig

from wdro_train.config import sweep_job
from wdro_train.config.sweep_job import SweepJob

_SHOWN = ("val/adv_acc", "val/worst_acc", "val/certified_acc", "test/clean_acc", "test/worst_acc")
"""Columns of the table that the line of a job has, too."""
_GLOB = ValueType.GLOB_CHOICE_SWEEP


@dataclass
class SweepProgress:
    """The jobs of a sweep, for the process that runs them one after the other; it travels to processes of jobs.

    Attributes:
        total: How many jobs there are; None where nobody knows.
        varied: Keys in which jobs differ.
        process: Of the sweep itself.
    """

    total: int | None
    varied: frozenset[str]
    process: int = field(default_factory=os.getpid)
    _seconds: list[float] = field(default_factory=list)
    _began: float = 0.0

    @classmethod
    def of(cls, config: DictConfig) -> SweepProgress:
        """A sweep that is about to begin.

        Args:
            config: With the node `hydra`.
        """
        sweeper = config.hydra.sweeper
        typed = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()]
        typed += list(config.hydra.overrides.task)
        # As in Hydra's sweeper what comes later stands: a typed value in the place of a study's list is no sweep.
        last = {one.get_key_element(): one for one in OverridesParser.create().parse_overrides(typed)}
        swept = [one for one in last.values() if one.is_sweep_override()]
        varied = frozenset(str(one.get_key_element()).lstrip("+") for one in swept)
        if sweeper.get("n_trials") is not None:
            return cls(int(sweeper.n_trials), varied)
        if all(one.is_discrete_sweep() for one in swept) and not any(one.value_type == _GLOB for one in swept):
            return cls(math.prod(len(list(one.sweep_iterator())) for one in swept), varied)
        return cls(None, varied)  # what a glob finds, and how long an interval is searched, Hydra decides later

    def begins(self, number: int, overrides: Sequence[str]) -> None:
        """A job begins in this process.

        Args:
            number: Of the job, from 0.
            overrides: Of the job.
        """
        self._began = time.time()
        mine = self.process == os.getpid()
        each = sum(self._seconds) / len(self._seconds) if mine and self._seconds else None
        sweep_job.announce(SweepJob(number + 1, self.total, self._what(overrides), alone=mine, each=each))

    def ends(self, row: Mapping[str, str], *, skipped: bool) -> str:
        """A job of this process is over.

        Args:
            row: Its line of the table: numbers as text, empty where there is none, and `error`.
            skipped: Whether it had finished before.

        Returns:
            A line for people.
        """
        from wdro_train.utils import tables  # and with it Rich, which commands without a table need not load

        job, took = sweep_job.current(), time.time() - self._began
        sweep_job.forget()
        if not skipped:
            self._seconds.append(took)
        numbers = [f"{key} {tables.logged(key, float(row[key]))}" for key in _SHOWN if row.get(key)]
        end = "finished before" if skipped else f"{took:.0f} s"
        return "  ".join([str(job), *([row["error"]] if row["error"] else numbers), end])

    def since(self, stamp: float) -> bool:
        """Whether a file with this time of change was written by the job of this process."""
        return stamp >= self._began - 1.0  # file systems round their times

    def _what(self, overrides: Sequence[str]) -> str:
        return " ".join(one for one in overrides if one.partition("=")[0].lstrip("+") in self.varied)
