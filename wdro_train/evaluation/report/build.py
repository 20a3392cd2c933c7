"""The report: what was judged, how, and what came out, as plain data (`report.json`, schema 2)."""

from __future__ import annotations

import platform
import sys
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wdro_train.config.run_folders import REPORT_FILE
from wdro_train.evaluation.engine import FoundDistances
from wdro_train.evaluation.identity import git_revision, package_version
from wdro_train.theory.robustness_curve import Band, RobustnessCurve
from wdro_train.utils.files import write_json

SCHEMA = 2
_PACKAGES = ("wdro-train", "torch", "torchvision", "lightning", "torchmetrics", "numpy")


def header(config: dict[str, Any]) -> dict[str, Any]:
    """What is needed to repeat the numbers: command, configuration, revision, versions."""
    return {
        "schema": SCHEMA,
        "command": " ".join(sys.argv),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": config,
        "seed": config.get("seed"),
        "scope": "whole set as one distribution",
        "git_revision": git_revision(dirty=True),
        "python": platform.python_version(),
        "versions": {name: package_version(name) for name in _PACKAGES},
    }


def curve_rows(
    curve: RobustnessCurve,
    orders: Sequence[float],
    deltas: Sequence[float],
    band: Band,
    *,
    alone: RobustnessCurve,
    certified: RobustnessCurve | None,
) -> list[dict[str, Any]]:
    """A_delta on a grid, and what may be said about the distribution the images come from; one row an order.

    Args:
        curve: From distances found by attacks: upper bounds on A_delta(P^).
        orders: Wasserstein orders.
        deltas: Radii.
        band: Gives the ends for the distribution.
        alone: From the attacks that look at each image by itself, which is what the upper end needs: the flips of
            W-PGD, whose images share a budget, are not in it.
        certified: From certified radii: lower bounds on A_delta(P^); None if there are none.
    """
    rows = []
    for p in orders:
        sure = None if certified is None else certified.accuracies(deltas, p).tolist()
        rows.append(
            {
                "p": p,
                "deltas": list(deltas),
                "accuracy": curve.accuracies(deltas, p).tolist(),
                "upper": [band.upper_end(float(a)) for a in alone.accuracies(deltas, p)],
                "certified": sure,
                "certified_lower": None if sure is None else [band.lower_end(a) for a in sure],
            }
        )
    return rows


def worst_case_block(
    curve: RobustnessCurve, found: FoundDistances, p: float, delta: float, number: int
) -> dict[str, Any]:
    """The worst-case law inside one ball, and the first correct images it moves.

    Args:
        curve: The pooled curve.
        found: Labels, and the classes images are flipped to.
        p: Wasserstein order.
        delta: Radius.
        number: How many movers to list.
    """
    worst = curve.worst_case(delta, p)
    moved = np.flatnonzero((worst.weights > 0) & (curve.distances > 0))
    first = moved[np.argsort(curve.distances[moved], kind="stable")][:number]
    return {
        "p": p,
        "delta": delta,
        "accuracy": worst.accuracy,
        "multiplier": worst.multiplier,
        "marginal_distance": worst.marginal_distance,
        "primal": 1 - worst.accuracy,
        "dual": worst.dual,
        "spent": worst.spent,
        "images_moved": len(moved),
        "movers": [
            {
                "index": int(i),
                "label": int(found.labels[i]),
                "becomes": int(found.rivals[i]),
                "distance": float(curve.distances[i]),
                "share": float(worst.weights[i]),
            }
            for i in first
        ],
    }


def histogram(distances: NDArray[np.float64], bins: int = 40) -> dict[str, Any]:
    """Counts of the distances of correct images; misclassified and unflipped images apart."""
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


def tell_apart(models: list[dict[str, Any]]) -> None:
    """Number models of the same name, in place.

    >>> models = [{"name": "best"}, {"name": "last"}, {"name": "best"}]
    >>> tell_apart(models)
    >>> [model["name"] for model in models]
    ['best (1)', 'last', 'best (3)']
    """
    counts = Counter(model["name"] for model in models)
    for k, model in enumerate(models, 1):
        if counts[model["name"]] > 1:
            model["name"] += f" ({k})"


def write(report: dict[str, Any], folder: Path) -> Path:
    """Write `report.json`; undefined values become null, infinities the string "inf"."""
    path = folder / REPORT_FILE
    write_json(path, report, indent=1)
    return path
