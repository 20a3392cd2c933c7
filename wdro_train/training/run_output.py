"""What a run tells people: always in `train.log` in its folder, and on standard output unless the run is one of many.

A sweep speaks for its jobs (`wdro_train.config.sweep_job`). On Slurm, where every job has a log of its own that would
otherwise be empty, jobs speak for themselves too.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from typing import Any

from rich.console import Console, RenderableType

from wdro_train.config import slurm, sweep_job

LOG = "wdro_train.run_log"
"""The logger behind `train.log`; `conf/base/hydra.yaml` gives it the file."""
_WIDTH_OF_FILES = 120  # columns, as of the project's own lines


def is_quiet() -> bool:
    """Whether standard output is left to the sweep that this run is a job of."""
    return sweep_job.current() is not None and not slurm.in_slurm_step()


def say(*parts: RenderableType) -> None:
    """Tell something: lines of text, which are not wrapped, or tables.

    Args:
        *parts: One after the other.
    """
    for part in parts:
        if not is_quiet():
            _print(Console(), part)
    keep(*parts)


def keep(*parts: RenderableType) -> None:
    """Write something to `train.log`, as it would look without colours."""
    log = logging.getLogger(LOG)
    if not log.handlers:
        return  # called from Python, without a folder for a file
    plain = Console(file=StringIO(), width=_WIDTH_OF_FILES)
    for part in parts:
        _print(plain, part)
    assert isinstance(plain.file, StringIO)
    for line in plain.file.getvalue().splitlines():
        log.info(line.rstrip())


def _print(console: Console, part: RenderableType) -> None:
    """Print a part as it is: brackets and colons in a folder's name or a library's warning are no markup."""
    console.print(part, soft_wrap=isinstance(part, str), markup=False, emoji=False)


@contextmanager
def warnings_in_the_log() -> Iterator[None]:
    """Warnings stand in `train.log`, too, while the block runs."""
    shown = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        keep(f"{category.__name__}: {message}")
        shown(message, category, *where, **more)

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = shown
