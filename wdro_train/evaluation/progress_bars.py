"""Progress bars for the terminal, one for each stage of an evaluation."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Self

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

_LONGEST_NAME = 40  # characters of a stage's name, which leave room for the bar in a terminal of 80 columns


class ProgressBars(AbstractContextManager["ProgressBars"]):
    """Shows how far each stage is, while it is used as a context manager; the bars vanish afterwards.

    Args:
        batches: Number of batches of the set.
        steps: Number of steps of a stage that goes over the whole set in every step (W-PGD).
        quiet: Show nothing, as on every rank but the first.
    """

    def __init__(self, batches: int, steps: int, *, quiet: bool) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, transient=True, disable=quiet)
        self._batches, self._steps = batches, steps
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, stage: str, done: int, total: int | None = None) -> None:
        """Show that so many batches or steps of a stage are done, of `total`, or of all of the set's."""
        if stage not in self._tasks:
            total = total or (self._steps if stage.startswith("pgd_") else self._batches)
            self._tasks[stage] = self._progress.add_task(stage[:_LONGEST_NAME], total=total)
        self._progress.update(self._tasks[stage], completed=done)

    def __enter__(self) -> Self:
        """Begin to draw."""
        self._progress.start()
        return self

    def __exit__(self, *raised: object) -> None:
        """Remove the bars."""
        self._progress.stop()
