"""Files of the run that is resumed, where the resumed run is about to write its own."""

from __future__ import annotations

import os
from pathlib import Path


def set_aside(path: str | Path, epoch: int) -> Path | None:
    """Give a file that is about to be replaced a name of its own, `..._before_epoch_7`, if it is there.

    Args:
        path: Of the file.
        epoch: The first epoch that does not belong to it.

    Returns:
        Its new path; None if there is no such file.
    """
    file = Path(path)
    if not file.is_file():
        return None
    target = file.with_stem(f"{file.stem}_before_epoch_{epoch}")
    number = 2
    while target.exists():
        target = file.with_stem(f"{file.stem}_before_epoch_{epoch}_{number}")
        number += 1
    os.replace(file, target)
    return target
