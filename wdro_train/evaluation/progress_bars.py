"""How far an evaluation is, stage by stage: bars in a terminal, plain lines where there is none, as in a log file."""

from __future__ import annotations

import threading
import time
from contextlib import AbstractContextManager
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

_LONGEST_NAME = 40  # characters of a stage's name, which leave room for the bar in a terminal of 80 columns
_SILENT_SECONDS = 3.0  # of a stage before its first line: a run that is over sooner needs no progress
_SECONDS_BETWEEN_LINES = 60.0  # so that a night's log has hundreds of lines, not tens of thousands


class ProgressDisplay(Protocol):
    """Shows how far each stage is, and what came out, while it is used as a context manager."""

    def __call__(self, stage: str, done: int, total: int | None = None) -> None:
        """Show that so many batches or steps of a stage are done, of `total` or of all of the set's; 0 as it begins."""
        ...

    def tell(self, line: str) -> None:
        """Print a line at once, whatever else is shown."""
        ...

    def __enter__(self) -> Self:
        """Begin."""
        ...

    def __exit__(self, *raised: object) -> None:
        """End."""
        ...


def progress_display(batches: int, *, quiet: bool) -> ProgressDisplay:
    """Bars where standard output is a terminal, else lines.

    Args:
        batches: Number of batches of the set.
        quiet: Show nothing, as on every rank but the first.
    """
    console = Console(quiet=quiet)
    return ProgressBars(console, batches) if console.is_terminal and not quiet else ProgressLines(console, batches)


class ProgressBars(AbstractContextManager["ProgressBars"]):
    """A bar for each stage; the bars vanish afterwards.

    Args:
        console: Where to draw.
        batches: Number of batches of the set.
    """

    def __init__(self, console: Console, batches: int) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, console=console, transient=True)
        self._batches = batches
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, stage: str, done: int, total: int | None = None) -> None:
        """See `ProgressDisplay`."""
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(stage[:_LONGEST_NAME], total=total or self._batches)
        self._progress.update(self._tasks[stage], completed=done)

    def tell(self, line: str) -> None:
        """Above the bars."""
        self._progress.console.print(line, soft_wrap=True)

    def __enter__(self) -> Self:
        """Begin to draw."""
        self._progress.start()
        return self

    def __exit__(self, *raised: object) -> None:
        """Remove the bars."""
        self._progress.stop()


class ProgressLines(AbstractContextManager["ProgressLines"]):
    """A line when a stage has taken a few seconds, then one a minute, and one when it is done; each is flushed.

    Args:
        console: Where to write.
        batches: Number of batches of the set.
    """

    def __init__(self, console: Console, batches: int) -> None:
        self._console, self._batches = console, batches
        self._stage, self._place = "", ""
        self._began = self._last = 0.0
        self._timer: threading.Timer | None = None

    def __call__(self, stage: str, done: int, total: int | None = None) -> None:
        """See `ProgressDisplay`."""
        total = total or self._batches
        if stage != self._stage:
            self._begin(stage)
        self._place = f"{done} of {total}"
        now = time.monotonic()
        if done >= total:
            self._end(now)
        elif self._last and now - self._last > _SECONDS_BETWEEN_LINES:
            self._write()

    def tell(self, line: str) -> None:
        """On a line of its own."""
        self._console.print(line, soft_wrap=True)

    def __enter__(self) -> Self:
        """Nothing to begin."""
        return self

    def __exit__(self, *raised: object) -> None:
        """No more lines."""
        self._stop()

    def _begin(self, stage: str) -> None:
        self._stop()
        self._stage, self._began, self._last = stage, time.monotonic(), 0.0
        self._timer = threading.Timer(_SILENT_SECONDS, self._write)
        self._timer.daemon = True
        self._timer.start()

    def _end(self, now: float) -> None:
        self._stop()
        if self._last:
            self._console.print(f"{self._stage}: done in {now - self._began:.0f} s", soft_wrap=True)
        self._stage = ""

    def _write(self) -> None:
        self._last = time.monotonic()
        self._console.print(f"{self._stage}: {self._place}", soft_wrap=True)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
