"""The two lines of a run in a terminal, whatever its width."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text
from torch import Tensor

from wdro_train.config.sweep_job import SweepJob
from wdro_train.training.time_left import shown
from wdro_train.utils import tables

NAMES = {
    "loss": "loss",
    "clean_acc": "clean",
    "adv_acc": "adversarial",
    "worst_acc": "worst case",
    "certified_acc": "certified",
}
"""What is shown of the logged values, by their keys without the stage, in this order."""


@dataclass
class Progress:
    """How far a run is.

    Attributes:
        stage: What it is doing: `checking`, `training`, `validation` or `test`.
        done: Batches of the stage that are over.
        total: All batches of the stage; None where nobody knows.
        epoch: The present epoch, from 1; None before the first.
        epochs: How many there are; None where nobody knows.
        left: Seconds that were left of the run when it was worked out; None where nobody knows.
        since: When that was, by `time.monotonic`.
        values: The latest loss and accuracies, by the names of `NAMES`.
        job: The job of a sweep that the run is; None for a single run.
        began: When the run began to be shown, by `time.monotonic`.
    """

    stage: str = "starting"
    done: int = 0
    total: int | None = None
    epoch: int | None = None
    epochs: int | None = None
    left: float | None = None
    since: float = field(default_factory=time.monotonic)
    values: dict[str, float] = field(default_factory=dict)
    job: SweepJob | None = None
    began: float = field(default_factory=time.monotonic)


def accuracies(logged: Mapping[str, Tensor], prefix: str, keys: Sequence[str] = tuple(NAMES)[1:]) -> dict[str, float]:
    """The logged values of a stage that are shown, by their names.

    Args:
        logged: All logged values.
        prefix: Of the stage: `val/`.
        keys: Which of them.
    """
    return {NAMES[key]: float(logged[prefix + key]) for key in keys if prefix + key in logged}


def two_lines(progress: Progress) -> RenderableType:
    """What is done and what is left in the first line, values in the second; each is cut where the terminal ends.

    Args:
        progress: Of the run.
    """
    words = []
    if progress.job is not None:
        words.append(str(progress.job))
    if progress.epoch is not None and progress.stage != "test":
        words.append(f"epoch {progress.epoch}" + ("" if progress.epochs is None else f"/{progress.epochs}"))
    words.append(progress.stage)
    counted = "" if progress.total is None else f"{progress.done}/{progress.total}"
    first = Table.grid(expand=True, padding=(0, 1))
    first.add_column(no_wrap=True, overflow="ellipsis")
    first.add_column(ratio=1, min_width=8)
    first.add_column(no_wrap=True, justify="right")
    first.add_column(no_wrap=True, justify="right")
    first.add_row(
        Text("  ".join(words)),
        ProgressBar(total=progress.total, completed=progress.done, pulse=progress.total is None),
        Text(counted),
        Text(_left(progress)),
    )
    values = "  ".join(f"{name} {tables.logged(name, value)}" for name, value in dict(progress.values).items())
    return Group(first, Text(values or " ", no_wrap=True, overflow="ellipsis"))


def _left(progress: Progress) -> str:
    """The time that is left of the run, or of the whole sweep."""
    if progress.left is None:
        return ""
    now, job = time.monotonic(), progress.job
    left = max(progress.left - (now - progress.since), 0.0)
    if job is not None and job.total is not None:
        each = now - progress.began + left if job.each is None else job.each
        left += (job.total - job.number) * each
    return f"{shown(left)} left"
