"""A lock on a file that the operating system drops when the process that holds it is gone, however it went."""

from __future__ import annotations

import errno
import fcntl
import os
import time
import warnings
from contextlib import suppress
from pathlib import Path

_PAUSE = 0.5  # seconds between two looks at a lock that another process holds


def lock_file(path: Path, patience: float) -> int | None:
    """Lock a file for this process with POSIX's record locks, and make the file if it is not there.

    Args:
        path: The file.
        patience: Seconds to wait for another process.

    Returns:
        The open file's descriptor, which holds the lock until it is closed; None if another process has it.

    Raises:
        OSError: Nothing can be written there.
    """
    deadline = time.monotonic() + patience
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        if _lock(handle, path):
            if _is_same_file(handle, path):
                return handle
        elif time.monotonic() >= deadline:
            os.close(handle)
            return None
        else:
            time.sleep(_PAUSE)
        os.close(handle)  # the folder was removed in between, or the other process is still there: once more


def _lock(handle: int, path: Path) -> bool:
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        warnings.warn(f"{path} cannot be locked ({error.strerror}): see to it that no other run has it", stacklevel=2)
    return True


def _is_same_file(handle: int, path: Path) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(handle), path.stat())
    return False
