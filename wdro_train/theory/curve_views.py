"""A robustness curve to look at: in one line, as columns of a table, and drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wdro_train.utils.numbers import parse_number
from wdro_train.utils.optional_imports import optional

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ORDERS = (1.0, 2.0, math.inf)
"""Wasserstein orders that are shown unless others are asked for."""
STEPS = 40
"""Intervals between the radii that are shown unless others are asked for, as in `conf/evaluate.yaml`."""


def in_one_line(distances: NDArray[np.float64], clean: float, halved: Mapping[float, float]) -> str:
    """A curve in words.

    Args:
        distances: Of the images, shape [N].
        clean: Clean accuracy.
        halved: The radius that halves it, by the Wasserstein order.
    """
    without = int(np.isinf(distances).sum())
    radii_of_orders = " and at ".join(f"{radius:.4g} under W_{p:g}" for p, radius in halved.items())
    counted = {0: "no image", 1: "1 image"}.get(without, f"{without} images")
    size = f"{len(distances)} images, clean accuracy {clean:.4f}"
    return f"RobustnessCurve({size}, halved at radius {radii_of_orders}, {counted} without a flip)"


def radii(deltas: Sequence[float | str] | None, distances: NDArray[np.float64]) -> list[float]:
    """The radii that are asked for, or those between which the curve falls.

    Args:
        deltas: What is asked for; None: 41 from 0 to the largest distance that is known.
        distances: Of the images, shape [N].
    """
    if deltas is not None:
        return [parse_number(delta, "delta") for delta in deltas]
    end = float(distances[np.isfinite(distances)].max(initial=0.0)) or 1.0
    return [end * k / STEPS for k in range(STEPS + 1)]


def columns(curves: Mapping[float, NDArray[np.float64]], deltas: Sequence[float]) -> dict[str, list[float]]:
    """Curves as columns of one table.

    Args:
        curves: Accuracies at the radii, by the Wasserstein order.
        deltas: The radii.
    """
    return {
        "p": [p for p in curves for _ in deltas],
        "delta": [delta for _ in curves for delta in deltas],
        "accuracy": [float(value) for values in curves.values() for value in values],
    }


def frame(table: Mapping[str, list[float]]) -> Any:
    """A table of pandas.

    Args:
        table: Columns by name.

    Raises:
        UserError: pandas is not installed.
    """
    return optional("pandas", "frames").DataFrame(dict(table))


def draw(curves: Mapping[float, NDArray[np.float64]], deltas: Sequence[float], ax: Axes | None) -> Axes:
    """Draw accuracy against the radius.

    Args:
        curves: Accuracies at the radii, by the Wasserstein order.
        deltas: The radii.
        ax: Where to draw; None makes a figure.
    """
    import matplotlib.pyplot as plt  # takes a second, and only who draws needs it

    if ax is None:
        _, ax = plt.subplots()
    for p, values in curves.items():
        order = r"\infty" if math.isinf(p) else f"{p:g}"
        ax.plot(deltas, values, label=f"$W_{{{order}}}$")
    ax.set_xlabel("radius")
    ax.set_ylabel("accuracy left")
    ax.set_ylim(0, 1)
    ax.legend()
    return ax
