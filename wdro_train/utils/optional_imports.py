"""Packages that only some options need are imported when these options are used."""

from __future__ import annotations

import importlib
from typing import Any

from wdro_train.utils.errors import UserError


def optional(package: str, extra: str) -> Any:
    """Import a package that only some options need.

    Args:
        package: Its import name.
        extra: The extra of this project that installs it, as in `pip install 'wdro-train[extra]'`.

    Raises:
        UserError: It is not installed, or something it needs is not.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        missing = (error.name or package).partition(".")[0]
        needed = package if missing == package.partition(".")[0] else f"{missing}, which {package} needs,"
        raise UserError(f"{needed} is not installed; run pip install 'wdro-train[{extra}]'") from error
