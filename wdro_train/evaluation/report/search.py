"""How long the distances of a report were searched, and how far the accuracy fell meanwhile, in words and rows."""

from __future__ import annotations

from typing import Any

from wdro_train.evaluation.report.schema import ModelReport
from wdro_train.utils.tables import rounded_up


def effort(model: ModelReport) -> str:
    """The effort of the search, for the headline; reports of earlier versions say nothing of it."""
    rounds = _rounds(model)
    if not rounds:
        return ""
    name = str(model["distances"]["attack"].get("effort", "by hand"))
    name = name if name.endswith("hand") else f"{name} effort"
    return f", {name}, {rounds[-1]['passes']:.0f} passes an image"


def convergence(model: ModelReport) -> str | None:
    """What the rounds after the first search brought, and why they ended; None where there were none."""
    rounds = _rounds(model)
    if len(rounds) < 2:
        return None
    first, last = rounds[0], rounds[-1]
    why = "the budget of passes was used up before it converged" if _capped(model) else "it had converged"
    return (
        f"search for flips: accuracy left {_percent(first)} % after {first['passes']:.0f} passes an image, "
        f"{_percent(last)} % after {last['passes']:.0f}, in {len(rounds)} rounds; {why}"
    )


def convergence_rows(model: ModelReport) -> list[list[Any]]:
    """A head, and a row a round: what was done, images searched and improved, passes, accuracy."""
    head = ["round", "images searched", "distances improved", "passes an image so far", "accuracy left"]
    rows = [
        [one["kind"], one["asked"], one["improved"], f"{one['passes']:.1f}", f"{_percent(one)} %"]
        for one in _rounds(model)
    ]
    return [head, *rows] if len(rows) > 1 else []


def convergence_line(model: ModelReport) -> tuple[list[float], list[float]]:
    """Passes an image so far, and the accuracy left in [0, 1], after each round; empty where there was one search."""
    rounds = _rounds(model)
    if len(rounds) < 2:
        return [], []
    return [float(one["passes"]) for one in rounds], [float(one["accuracy"]) for one in rounds]


def _percent(one: Any) -> str:
    """The accuracy left after a round, an upper bound, which is not rounded down."""
    return rounded_up(100 * float(one["accuracy"]), 2)


def _rounds(model: ModelReport) -> list[Any]:
    found = model["distances"].get("convergence")
    return [] if found is None else list(found["rounds"])


def _capped(model: ModelReport) -> bool:
    found = model["distances"].get("convergence")
    return found is not None and found["capped"]
