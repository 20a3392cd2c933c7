"""How an undefined quantity is reported."""

from __future__ import annotations

import math
import warnings


def undefined(cause: str) -> float:
    """NaN, with a warning that names its cause in the name of the function that asked.

    Args:
        cause: Why the quantity is undefined, as a sentence without its full stop.
    """
    warnings.warn(f"NaN reported: {cause}", stacklevel=3)
    return math.nan
