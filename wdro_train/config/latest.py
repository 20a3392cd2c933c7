"""`latest`: a link to the newest run folder, beside the folders that are named by the time."""

from __future__ import annotations

import os
import uuid
from contextlib import suppress
from pathlib import Path

LATEST = "latest"

_links: dict[Path, Path] = {}
_before: dict[Path, tuple[Path, str | None]] = {}


def plan(folder: Path, root: Path | None) -> None:
    """When something is first written to a folder, the link beside it is to lead there.

    Args:
        folder: Of a run or a sweep.
        root: Where the link is; None for nowhere.
    """
    if root is not None:
        _links[folder.absolute()] = root.absolute() / LATEST


def followed(folder: Path) -> Path:
    """The folder to which a name with `latest` in it leads now: the next run would lead that name elsewhere.

    Args:
        folder: As the user has named it.
    """
    found = Path(folder.anchor)
    for part in folder.relative_to(folder.anchor).parts:
        found /= part
        if part == LATEST and found.is_symlink():
            found = found.parent / os.readlink(found)
    return found


def begun(folder: Path) -> None:
    """Something is about to be written to a folder: let the link that is planned for it lead there, if there is one.

    A file system without links has none, and a file or a folder of that name stays.

    Args:
        folder: Of a run or a sweep.
    """
    link = _links.pop(folder.absolute(), None)
    if link is None or (link.exists() and not link.is_symlink()):
        return
    with suppress(OSError):
        before = os.readlink(link) if link.is_symlink() else None
        _lead(link, os.path.relpath(folder.absolute(), link.parent))
        _before[folder.absolute()] = link, before


def removed(folder: Path) -> None:
    """A folder in which nothing was left has been removed: the link leads where it led before.

    Args:
        folder: Of a run or a sweep.
    """
    link, before = _before.pop(folder.absolute(), (None, None))
    if link is None or not link.is_symlink() or link.exists():
        return
    with suppress(OSError):
        link.unlink() if before is None else _lead(link, before)


def _lead(link: Path, target: str) -> None:
    """Let a link lead somewhere, in one step."""
    beside = link.with_name(f".{link.name}-{uuid.uuid4().hex[:8]}")
    beside.symlink_to(target, target_is_directory=True)
    os.replace(beside, link)
