"""How a command ends when it cannot go on: in one sentence on standard error, with an exit code that scripts can read.

Exit code 1 stands for an error, 130 and 143 for SIGINT and SIGTERM. A sentence says what is wrong and how to mend it;
the traceback of an error that nobody foresaw is kept in a file.
"""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from hydra.errors import HydraException

from wdro_train.cli.error_messages import sentence
from wdro_train.config import slurm
from wdro_train.utils import interruption

RAISE = "HYDRA_FULL_ERROR"
_TRACEBACK = "traceback.txt"


@dataclass
class Ending:
    """What this process prints if a signal ends it now, and whether errors show their traceback.

    Hydra stands between the command line, which ends the process, and the run, which knows how one goes on.

    Attributes:
        advice: What to say when a signal ends the process; None to say nothing.
        tracebacks: Whether the user has asked for tracebacks with `HYDRA_FULL_ERROR=1`.
    """

    advice: str | None = "nothing was begun"
    tracebacks: bool = False


ending = Ending()


def leave(reason: str) -> NoReturn:
    """End the program with a sentence for the user and exit code 1.

    Args:
        reason: The sentence.

    Raises:
        SystemExit: Always.
    """
    print(f"error: {reason}", file=sys.stderr)
    raise SystemExit(1) from None


@contextmanager
def leaving_on_error() -> Iterator[None]:
    """End the program when the block raises an error; for Hydra's callbacks, whose errors it only warns about."""
    try:
        yield
    except Exception as error:
        leave(sentence(error) or unexpected(error, None))


@contextmanager
def ending_in_a_sentence(explain: Callable[[Exception], str | None] = lambda error: None) -> Iterator[None]:
    """End the process in order when the block raises: an error and a signal in one sentence each.

    `HYDRA_FULL_ERROR=1` in the environment shows the traceback of an error instead.

    Args:
        explain: What to say about an exception of Hydra, or None to say what Hydra says itself.
    """
    before = os.environ.get(RAISE)
    ending.tracebacks = before == "1"
    interruption.listen()
    try:
        yield
    except SystemExit:
        if interruption.exit_code() is None:
            raise
        _leave_interrupted()
    except BaseException as error:
        if interruption.exit_code() is not None:
            _leave_interrupted()
        if ending.tracebacks or not isinstance(error, Exception):
            raise
        reason = explain(error) or sentence(error)
        if reason is None and isinstance(error, HydraException):
            reason = " ".join(str(error).split())
        leave(reason or unexpected(error, None))
    finally:
        os.environ.pop(RAISE, None)
        if before is not None:
            os.environ[RAISE] = before


def unexpected(error: BaseException, folder: str | Path | None) -> str:
    """Keep the traceback of an exception that nobody foresaw, and say where it is.

    Args:
        error: The exception.
        folder: Where to keep it; None, or one that cannot be written to, for a temporary file.
    """
    text = "".join(traceback.format_exception(error))
    try:
        file = Path(folder or tempfile.mkdtemp(prefix="wdro_train_")) / _TRACEBACK
        file.write_text(text)
    except OSError:
        file = Path(tempfile.mkdtemp(prefix="wdro_train_")) / _TRACEBACK
        file.write_text(text)
    said = " ".join(str(error).split())
    reason = f"{type(error).__name__}: {said}" if said else type(error).__name__
    return f"{reason}; nobody foresaw this, its traceback is in {file}, and {RAISE}=1 prints it"


def _leave_interrupted() -> NoReturn:
    """Say how to go on and leave with the signal's exit code; ranks other than the first leave the saying to it."""
    interruption.finish()
    if slurm.started_rank() == 0 and ending.advice is not None:
        print(f"interrupted; {ending.advice}", file=sys.stderr)
    raise SystemExit(interruption.exit_code()) from None
