"""Files that are there whole or not at all, whenever the process is killed or the disk is full."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from wdro_train.utils.errors import UserError

_SUFFIX = ".tmp"  # of files that are being written


@contextmanager
def replacing(path: str | Path, *, setting: str = "run_dir") -> Iterator[BinaryIO]:
    """Write a file so that readers see the old content or the new one, never a part of it.

    The content goes to a temporary file in the same folder, is flushed to the disk, and takes the target's name in one
    step. If writing fails, or the block raises, the target is what it was before and the temporary file is removed.
    Temporary files that a killed process left for the same target are removed too.

    Args:
        path: The target; its folder is made if it is not there.
        setting: What chooses the folder, for the error message.

    Yields:
        A binary file to write the new content to.

    Raises:
        UserError: The operating system refuses, for instance because the disk is full or cannot be written to.
    """
    target = Path(path)
    scratch = target.with_name(f".{target.name}.{socket.gethostname()}-{os.getpid()}{_SUFFIX}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(target)
        with scratch.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(target)
        _flush_folder(target.parent)
    except OSError as error:
        raise cannot_write(target, error, setting) from error
    finally:
        with suppress(OSError):
            scratch.unlink()


def write_text(path: str | Path, text: str, *, setting: str = "run_dir") -> None:
    """Write a text file in UTF-8; see `replacing`.

    Args:
        path: The target.
        text: Its new content.
        setting: What chooses the folder, for the error message.
    """
    with replacing(path, setting=setting) as file:
        file.write(text.encode())


def write_json(path: str | Path, value: Any, indent: int | None = None, *, setting: str = "run_dir") -> None:
    """Write a JSON file that every reader understands; see `replacing` and `as_json`.

    Args:
        path: The target.
        value: Dictionaries, lists, numbers and strings.
        indent: Spaces a level; None for one line.
        setting: What chooses the folder, for the error message.
    """
    write_text(path, json.dumps(as_json(value), indent=indent, allow_nan=False) + "\n", setting=setting)


def write_csv(path: str | Path, rows: Sequence[Mapping[str, Any]], *, setting: str = "run_dir") -> None:
    """Write a table with a line of names; see `replacing`.

    Args:
        path: The target.
        rows: At least one; all have the same keys.
        setting: What chooses the folder, for the error message.
    """
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue(), setting=setting)


def as_json(value: Any) -> Any:
    """Plain data for JSON, which has no number for NaN (null) or infinity (the strings "inf" and "-inf")."""
    if isinstance(value, Mapping):
        return {str(key): as_json(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(entry) for entry in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, float) and math.isinf(value):
        return "inf" if value > 0 else "-inf"
    return value


def cannot_write(path: str | Path, error: OSError, setting: str = "run_dir") -> UserError:
    """The sentence for a file or folder that the operating system does not let us write.

    Args:
        path: What was to be written.
        error: What the operating system said.
        setting: What chooses the folder.
    """
    reason = error.strerror or str(error) or type(error).__name__
    return UserError(
        f"{path} cannot be written ({reason}); what was there before is unchanged: free some space or choose another "
        f"folder with {setting}=..."
    )


def _remove_abandoned(target: Path) -> None:
    """Remove temporary files of processes of this machine that are no longer there."""
    start = f".{target.name}.{socket.gethostname()}-"
    for file in target.parent.glob(f".{_escaped(target.name)}.*{_SUFFIX}"):
        pid = file.name.removeprefix(start).removesuffix(_SUFFIX)
        if file.name.startswith(start) and pid.isdigit() and not _alive(int(pid)):
            file.unlink(missing_ok=True)


def _escaped(name: str) -> str:
    """A name as a pattern that matches nothing else."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _flush_folder(folder: Path) -> None:
    """Make the new name itself survive a crash of the machine, where the file system can."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems do not flush folders; the content is safe already
            os.fsync(handle)
    finally:
        os.close(handle)
