"""SIGTERM and SIGINT end a run in order: loggers are closed, other ranks are ended, and a sentence says how to go on.

Both signals become one exception. It is not `KeyboardInterrupt`, on which Lightning leaves with exit code 1, and no
`Exception`, which Hydra would count as the failure of one job of a sweep.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

# Lightning's thread that ends this process when one of its ranks has ended. It is recognised by its name, because the
# commands listen before they spend seconds on importing Lightning. It is private; a test holds the name against it.
_OBSERVER = "_ChildProcessObserver"
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_received: list[int] = []
_last_words: list[Callable[[], object]] = []
_listener = -1


class Interrupted(BaseException):
    """A signal asked this process to end."""


def listen() -> None:
    """From now on SIGTERM and SIGINT raise `Interrupted`, once.

    A rank that Lightning started leaves both to the process that started it, which ends its ranks itself.
    """
    global _listener
    if threading.current_thread() is not threading.main_thread():
        return
    _listener = os.getpid()
    _received.clear()
    if _is_started_rank():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        return
    for number in _SIGNALS:
        signal.signal(number, _interrupt)


def exit_code() -> int | None:
    """143 after SIGTERM, 130 after SIGINT, None if neither came."""
    return 128 + _received[0] if _received else None


def before_leaving(work: Callable[[], object]) -> None:
    """Have something done when a signal has ended the work, such as writing the table of an unfinished sweep.

    Args:
        work: Called without arguments by `finish`; what it returns is ignored.
    """
    _last_words.append(work)


def finish() -> None:
    """Do what `before_leaving` was given, the last first; what fails does not keep the rest from being done."""
    while _last_words:
        with suppress(Exception, SystemExit):
            _last_words.pop()()


def listen_again() -> None:
    """Take the signals back from a library that has set its own handlers; only where `listen` was called before."""
    if _listener == os.getpid() and not _received:
        listen()


def _interrupt(number: int, frame: FrameType | None) -> None:
    if os.getpid() != _listener:  # a loader's worker, which inherits the handler
        os._exit(128 + number)
    _received.append(number)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # schedulers repeat themselves
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # who presses Ctrl+C again does not want to wait
    _end_ranks()
    raise Interrupted(number)


def _end_ranks() -> None:
    """End the ranks that Lightning started, which may hang in a collective, and stop watching over them."""
    for thread in threading.enumerate():
        if type(thread).__name__ == _OBSERVER:
            children: list[subprocess.Popen[bytes]] = thread._child_processes  # type: ignore[attr-defined]
            for process in children:
                process.kill()
            children.clear()  # it would end this process too


def _is_started_rank() -> bool:
    environment = os.environ
    return (
        "TORCHELASTIC_RUN_ID" not in environment
        and "SLURM_PROCID" not in environment
        and (environment.get("LOCAL_RANK", "0") != "0")
    )
