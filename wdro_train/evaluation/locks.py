"""A lock that many processes share while they use a folder, so that the last of them can remove it.

The operating system gives a lock back when its process ends, however it ends, so none is ever left behind.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from wdro_train.utils.files import cannot_write


class SharedLock:
    """A share in a lock, held from construction to `release`.

    Args:
        path: The file of the lock, beside what it protects; it is made here, and removed by the last process.
        setting: The key that chooses the folder, for the error message.

    Raises:
        UserError: The file cannot be made, or its file system knows no locks.
    """

    def __init__(self, path: Path, *, setting: str) -> None:
        self.path = path
        self._handle: int | None = None
        try:
            while self._handle is None:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._handle = _shared(path)
        except OSError as error:
            raise cannot_write(path, error, setting) from error

    def release(self, last: Callable[[], object] | None = None) -> bool:
        """Give the lock back; harmless when called twice.

        Args:
            last: Called if nobody else holds the lock, before anybody else can; the lock's file is removed after it.

        Returns:
            Whether it was called.
        """
        handle, self._handle = self._handle, None
        if handle is None:
            return False
        try:
            if last is None:
                return False
            # Of several that are here at once, each has given up its share before it asks for the whole: the last
            # one to ask gets it.
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not _is(handle, self.path):  # somebody was faster, and others may be at work on a new one
                return False
            last()
            with suppress(OSError):
                self.path.unlink()
            return True
        except OSError:  # somebody else holds it
            return False
        finally:
            os.close(handle)

    def __del__(self) -> None:
        """Release the lock when the last reference to it is gone."""
        self.release()


def _shared(path: Path) -> int | None:
    """A handle with a share in the lock; None if its file was removed in between."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except FileNotFoundError:  # the folder was removed in between
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH)
        if _is(handle, path):
            return handle
    except BaseException:
        os.close(handle)
        raise
    os.close(handle)
    return None


def _is(handle: int, path: Path) -> bool:
    """Whether the file that is open is still the one at the path."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False
