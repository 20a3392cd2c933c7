"""Reading a report: what `report.json` holds, as numbers and names for figures and pages."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

Report = dict[str, Any]
# Okabe and Ito's colours, told apart by colour-blind readers and on both light and dark ground.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8f8f8f")


def number(value: Any) -> float:
    """A number of the report: null is NaN, and "inf" is infinity."""
    return math.nan if value is None else float(value)


def numbers(values: list[Any]) -> list[float]:
    """Numbers of the report."""
    return [number(value) for value in values]


def short(value: Any, digits: int = 4) -> str:
    """A number for a text, with significant digits; an infinity sign, or a dash where there is nothing."""
    x = number(value)
    if math.isnan(x):
        return "–"
    return f"{x:.{digits}g}" if math.isfinite(x) else ("∞" if x > 0 else "−∞")


def percent(value: Any) -> str:
    """A share in per cent, or a dash where there is nothing."""
    x = number(value)
    return "–" if math.isnan(x) else f"{100 * x:.1f} %"


def loss_name(loss: str) -> str:
    """A loss as the theory writes it."""
    return {"ce": "CE", "dlr": "DLR", "redlr": "ReDLR"}.get(loss, label(loss))


def label(name: str, length: int = 36) -> str:
    """A model's name, cut in the middle where a figure has no room for it."""
    half = (length - 1) // 2
    return name if len(name) <= length else f"{name[:half]}…{name[-half:]}"


def colour(k: int) -> str:
    """The k-th colour, round and round."""
    return _COLOURS[k % len(_COLOURS)]


def orders(report: Report) -> list[Any]:
    """The orders p of the curves, as they are in the report, over all models."""
    return list(dict.fromkeys(row["p"] for model in report["models"] for row in model["curves"]))


def curve_of(model: Report, p: Any) -> Report | None:
    """The curve of an order; None if the model has none."""
    return next((row for row in model["curves"] if row["p"] == p), None)


def losses(report: Report) -> list[str]:
    """The losses of the poster's rows over all models."""
    return list(dict.fromkeys(row["loss"] for model in report["models"] for row in model["poster"]))


def poster_lines(model: Report, loss: str) -> Iterator[tuple[Any, list[Report]]]:
    """The poster's rows of a loss: an order and its rows by increasing radius."""
    rows = [row for row in model["poster"] if row["loss"] == loss]
    for p in dict.fromkeys(row["p"] for row in rows):
        yield p, sorted((row for row in rows if row["p"] == p), key=lambda row: number(row["delta"]))


def upsilon_name(report: Report) -> str:
    """Which Upsilon a number uses."""
    box = (report["config"].get("poster") or {}).get("box", True)
    return "box Υ (free gradient in [0, 1]ⁿ)" if box else "free Υ (the poster's formula, no box)"


def certificate_note(report: Report) -> str | None:
    """What the certified curves bound, in words; None if there are none.

    Attack and certified curve enclose the truth only where both speak of the same classifier.
    """
    found = [model["certificate"] for model in report["models"] if model["certificate"] is not None]
    if not found:
        return None
    same = all(certificate["method"] != "smoothing" for certificate in found)
    about = ", ".join(dict.fromkeys(certificate["about"] for certificate in found))
    return f"certified lower bound of {about}" + ("; the truth lies between the two" if same else "")


def accuracy_at(curve: Report, delta: float, key: str = "accuracy") -> float:
    """A curve's value at the grid's radius nearest to `delta`; NaN if it has none."""
    values = curve[key]
    if values is None:
        return math.nan
    nearest = min(range(len(values)), key=lambda k: abs(number(curve["deltas"][k]) - delta))
    return number(values[nearest])


def grid(report: Report) -> list[float]:
    """Radii for a table: eighths of the curves' range, and the threat's own."""
    deltas = numbers(report["models"][0]["curves"][0]["deltas"])
    wanted = {round(k * (len(deltas) - 1) / 8) for k in range(9)}
    wanted.add(min(range(len(deltas)), key=lambda k: abs(deltas[k] - number(report["threat"]["delta"]))))
    return [deltas[k] for k in sorted(wanted)]
