"""Numbers as people type them.

The command line checks them before it imports torch, so nothing here needs more than Python.
"""

from __future__ import annotations

from wdro_train.utils.errors import UserError


def parse_number(value: float | str, name: str) -> float:
    """A number as people type it: 2, 0.5, inf, "8/255".

    Args:
        value: A number, or a string holding a number or a fraction.
        name: What it is called in the error message.

    Raises:
        UserError: Anything else.
    """
    try:
        numerator, _, denominator = str(value).partition("/")
        return float(numerator) / float(denominator) if denominator else float(numerator)
    except (ValueError, ZeroDivisionError):
        raise UserError(f"{name}={value!r} is not a number; write it like 2, 0.5, inf or 8/255") from None


def parse_norm(value: float | str) -> float:
    """The exponent s of a ground norm ||.||_s as people type it, in [1, inf].

    Args:
        value: A number, or a string that `parse_number` reads.

    Raises:
        UserError: Anything else.
    """
    norm = parse_number(value, "attack.norm")
    if not norm >= 1:
        raise UserError(f"attack.norm={norm:g} is not a norm; choose norm in [1, inf]")
    return norm
