"""How far a sum of products can be off in floating point."""

from __future__ import annotations

UNIT_FLOAT32 = 2.0**-24
"""Unit roundoff u of float32: the largest relative error of one operation."""


def accumulated(terms: int, unit: float = UNIT_FLOAT32) -> float:
    """Relative error of a sum of products in any order, gamma_n = n u / (1 - n u).

    An inner product is off by at most gamma_n times the sum of the absolute values of its products (Higham 2002,
    Accuracy and Stability of Numerical Algorithms, section 3.1).

    Args:
        terms: Number n of roundings that a term takes part in.
        unit: Unit roundoff u.

    Returns:
        Infinity where n u is 1 or more, and nothing is known.
    """
    return terms * unit / (1 - terms * unit) if terms * unit < 1 else float("inf")
