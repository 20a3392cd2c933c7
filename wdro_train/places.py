"""Where a run writes: refused before any work if that cannot be, and left as it was if nothing came of the run."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

from wdro_train.errors import UserError


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


def forget(folder: str | Path, notes: str | None) -> None:
    """Remove a run's folder if the run left nothing in it but Hydra's notes and an empty log.

    Args:
        folder: Of the run. Folders above it that are empty then, below the working directory, go too.
        notes: The name of Hydra's own folder in it; None if Hydra made none.
    """
    folder = Path(folder).absolute()
    if not folder.is_dir():
        return
    own = folder / notes if notes else None
    files = [file for file in folder.rglob("*") if not file.is_dir() and (own is None or own not in file.parents)]
    if not all(file.suffix == ".log" and file.stat().st_size == 0 for file in files):
        return
    with suppress(OSError):
        for file in files:
            file.unlink()
        if own is not None:
            shutil.rmtree(own, ignore_errors=True)
        for inner in sorted((place for place in folder.rglob("*") if place.is_dir()), reverse=True):
            inner.rmdir()
        here = Path.cwd()
        for place in (folder, *folder.parents):
            if place == here or (place != folder and here not in place.parents):
                break
            place.rmdir()  # fails, and so ends this, where something else is in it
