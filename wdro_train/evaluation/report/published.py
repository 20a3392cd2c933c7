"""Published accuracies of known networks, to stand beside those of an evaluation."""

from __future__ import annotations

import json
import math
from importlib.resources import files

from wdro_train.evaluation.report.schema import PublishedRow
from wdro_train.utils.numbers import parse_number


def published(name: str, norm: float, delta: float) -> list[PublishedRow]:
    """What is published about a network of RobustBench on CIFAR-10 at a radius.

    Args:
        name: As on RobustBench's leaderboard.
        norm: Ground norm.
        delta: Radius.

    Returns:
        One row an order p: `p`, `norm`, `delta`, `accuracy`, `error` (of reading it off a figure, 0 for a number)
        and `source`; none for an unknown network or radius.
    """
    content = json.loads(files("wdro_train.evaluation.report").joinpath("published.json").read_text(encoding="utf-8"))
    return [
        {"p": p, "norm": norm, "delta": delta, "accuracy": row[key], "error": error, "source": content["sources"][key]}
        for row in content["networks"]
        if row["name"] == name
        and parse_number(row["norm"], "norm") == norm
        and math.isclose(parse_number(row["delta"], "delta"), delta, rel_tol=1e-6)
        for key, p, error in (("w_inf", math.inf, 0.0), ("w_2", 2.0, row["w_2_error"]))
    ]
