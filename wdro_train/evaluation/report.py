"""The report: what was judged, how, and what came out, as plain data (`report.json`, schema 1)."""

from __future__ import annotations

import json
import math
import platform
import sys
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wdro_train.evaluation.engine import FoundDistances
from wdro_train.evaluation.identity import git_revision, package_version
from wdro_train.robustness_curve import Band, RobustnessCurve

SCHEMA = 1
REPORT_FILE = "report.json"
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
    certified: RobustnessCurve | None,
) -> list[dict[str, Any]]:
    """A_delta with its band on a grid, one row an order.

    Args:
        curve: From distances found by attacks: upper bounds on A_delta(P^).
        orders: Wasserstein orders.
        deltas: Radii.
        band: Around the accuracy on the sample.
        certified: From certified radii: lower bounds on A_delta(P^); None if there are none.
    """
    rows = []
    for p in orders:
        accuracy = curve.accuracies(deltas, p)
        ends = [band.around(float(a)) for a in accuracy]
        sure = None if certified is None else certified.accuracies(deltas, p).tolist()
        rows.append(
            {
                "p": p,
                "deltas": list(deltas),
                "accuracy": accuracy.tolist(),
                "lower": [low for low, _ in ends],
                "upper": [high for _, high in ends],
                "certified": sure,
                "certified_lower": None if sure is None else [band.around(a)[0] for a in sure],
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
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / REPORT_FILE
    scratch = path.with_suffix(".tmp")
    scratch.write_text(json.dumps(as_json(report), indent=1, allow_nan=False) + "\n")
    scratch.replace(path)
    return path


def as_json(value: Any) -> Any:
    """The same with JSON's types: NaN -> null, +-inf -> "inf" / "-inf"."""
    if isinstance(value, dict):
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
