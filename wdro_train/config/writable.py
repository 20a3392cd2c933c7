"""A folder that a run cannot write to is refused before any work is done for it."""

from __future__ import annotations

import os
from pathlib import Path

from wdro_train.utils.errors import UserError


def refuse_unwritable(key: str, path: str) -> None:
    """Refuse a folder that could not be made or written to.

    Args:
        key: What it is the value of.
        path: The folder, which need not be there yet.

    Raises:
        UserError: No name, a file in its place or above it, no permission, or no space left.
    """
    if not path:
        raise UserError(f"{key}= is empty; give the path of a folder, or leave it out")
    target = Path(path).absolute()
    there = next(place for place in (target, *target.parents) if os.path.lexists(place))
    if not there.is_dir():
        raise UserError(f"{key}={path} cannot be a folder, since {there} is a file; choose another")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"{key}={path} cannot be written to, since {there} is read-only for you; choose another")
    disk = os.statvfs(there)
    if disk.f_blocks and not disk.f_bavail:
        raise UserError(f"{key}={path} cannot be written to, since its disk is full; make room or choose another")
