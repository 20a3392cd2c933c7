"""Which code computed a number: versions of installed packages, and the revision of this checkout."""

from __future__ import annotations

import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PACKAGE = Path(__file__).parents[1]


def package_version(package: str) -> str | None:
    """Version of an installed package; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def git_revision(*, dirty: bool = False) -> str | None:
    """The revision of this package's checkout; None outside one.

    Args:
        dirty: Add a + if files were changed since.
    """
    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=_PACKAGE, capture_output=True, text=True, check=True)
        head = found.stdout.strip()
        if dirty:
            command = ["git", "status", "--porcelain", "-uno"]
            changed = subprocess.run(command, cwd=_PACKAGE, capture_output=True, text=True).stdout.strip()
            return head + ("+" if changed else "")
        return head
    except (OSError, subprocess.CalledProcessError):
        return None
