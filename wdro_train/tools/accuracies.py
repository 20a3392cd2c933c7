"""Worst-case accuracies as the tables of a study hold them: by order and radius, both as they are written."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from wdro_train.evaluation.choices import DEFAULT_RADII
from wdro_train.theory.robustness_curve import RobustnessCurve

Accuracies = dict[str, dict[str, float]]
"""Worst-case accuracy by order and radius."""
Curves = dict[str, list[float]]
"""Worst-case accuracy by order, on the radii of `radii_of_curves`."""
ORDERS = {"1": 1.0, "2": 2.0, "inf": math.inf}


def radii_of_curves(deltas: Sequence[float]) -> list[float]:
    """Radii of the curves of a study, from 0 to twice the largest radius of its table.

    Args:
        deltas: Radii of the table.
    """
    grid: list[float] = np.linspace(0, 2 * max(deltas), DEFAULT_RADII).tolist()
    return grid


def accuracies(curve: RobustnessCurve, deltas: Sequence[float]) -> Accuracies:
    """The accuracies of a table.

    Args:
        curve: Gives them.
        deltas: Radii of the table.
    """
    return {name: {f"{delta:g}": curve.accuracy(delta, p) for delta in deltas} for name, p in ORDERS.items()}


def curves(curve: RobustnessCurve, deltas: Sequence[float]) -> Curves:
    """The accuracies of a figure.

    Args:
        curve: Gives them.
        deltas: Radii of the table.
    """
    grid = radii_of_curves(deltas)
    return {name: curve.accuracies(grid, p).round(6).tolist() for name, p in ORDERS.items()}
