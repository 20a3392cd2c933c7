"""Curves and histogram of a report, from distances and certified radii."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from wdro_train.evaluation.report.schema import CurveBlock, HistogramBlock
from wdro_train.theory.band import Band
from wdro_train.theory.robustness_curve import RobustnessCurve


def curve_rows(
    curve: RobustnessCurve,
    orders: Sequence[float],
    deltas: Sequence[float],
    band: Band,
    *,
    alone: RobustnessCurve,
    certified: RobustnessCurve | None,
    contradicted: bool = False,
) -> list[CurveBlock]:
    """A_delta on a grid, and what may be said about the population of the images; one row an order.

    Args:
        curve: From distances found by attacks: upper bounds on A_delta(P^).
        orders: Wasserstein orders.
        deltas: Radii.
        band: Gives the ends for the population.
        alone: Around which the upper end is drawn: from every attack but W-PGD, whose images share a budget, with the
            exact method (see `NetworkEvidence.curve_under_the_band`).
        certified: From certified radii: lower bounds on A_delta(P^); None if there are none.
        contradicted: Whether an image was flipped nearer than it is certified, so that nothing follows for the
            population.
    """
    rows: list[CurveBlock] = []
    for p in orders:
        sure = None if certified is None else certified.accuracies(deltas, p).tolist()
        rows.append(
            {
                "p": p,
                "deltas": list(deltas),
                "accuracy": curve.accuracies(deltas, p).tolist(),
                "upper": [band.upper_end(float(a)) for a in alone.accuracies(deltas, p)],
                "certified": sure,
                "certified_lower": None if sure is None or contradicted else [band.lower_end(a) for a in sure],
            }
        )
    return rows


def histogram(distances: NDArray[np.float64], bins: int = 40) -> HistogramBlock:
    """Counts of the distances of the correct images; misclassified and unflipped images are counted apart.

    Args:
        distances: Shape [N]: 0 for misclassified images, inf where no flip was found.
        bins: Number of bins.
    """
    positive = distances[(distances > 0) & np.isfinite(distances)]
    counts, edges = np.zeros(1, dtype=int), np.zeros(2)
    if positive.size:
        low, high = positive.min(), positive.max()
        # numpy would widen a single value to both sides, below zero.
        counts, edges = np.histogram(positive, bins=bins, range=(low if low < high else 0.0, high))
    return {
        "edges": edges.tolist(),
        "counts": counts.tolist(),
        "misclassified": int((distances == 0).sum()),
        "not_flipped": int(np.isinf(distances).sum()),
    }
