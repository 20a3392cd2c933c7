"""Read a report: the content of `report.json` as numbers, names and lines for figures, pages and tables."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from wdro_train.certificates.base import THE_NETWORK
from wdro_train.evaluation.report.schema import CurveBlock, ModelReport, Number, PosterRow, Report
from wdro_train.theory.band import level_with_certificates
from wdro_train.utils.tables import rounded_down, rounded_up

CurveKey = Literal["accuracy", "upper", "certified", "certified_lower"]
# Okabe and Ito's colours, told apart by colour-blind readers and on both light and dark ground.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8f8f8f")


def to_float(value: Any) -> float:
    """A number of a report as a float: null is NaN, and the string "inf" is infinity.

    >>> to_float("inf"), to_float("0.5"), to_float(None)
    (inf, 0.5, nan)
    """
    return math.nan if value is None else float(value)


def to_floats(values: Iterable[Any]) -> list[float]:
    """Numbers of a report as floats; see `to_float`."""
    return [to_float(value) for value in values]


def column(rows: Sequence[Mapping[str, object]], key: str) -> list[float]:
    """One key of all rows, as floats."""
    return to_floats(row[key] for row in rows)


def short(value: Any, digits: int = 4) -> str:
    """A number for a text, with significant digits; an infinity sign, or a dash where there is nothing."""
    x = to_float(value)
    if math.isnan(x):
        return "–"
    return f"{x:.{digits}g}" if math.isfinite(x) else ("∞" if x > 0 else "−∞")


def percent(value: Any) -> str:
    """A share in per cent, or a dash where there is nothing."""
    x = to_float(value)
    return "–" if math.isnan(x) else f"{100 * x:.1f} %"


def at_least(value: Any) -> str:
    """A lower bound of a share in per cent, rounded down; a dash where there is none."""
    x = to_float(value)
    return "–" if math.isnan(x) else f"{rounded_down(100 * x, 1)} %"


def at_most(value: Any) -> str:
    """An upper bound of a share in per cent, rounded up; a dash where there is none."""
    x = to_float(value)
    return "–" if math.isnan(x) else f"{rounded_up(100 * x, 1)} %"


def loss_name(loss: str) -> str:
    """A loss as the theory writes it."""
    return {"ce": "CE", "dlr": "DLR", "redlr": "ReDLR"}.get(loss, label(loss))


def unit_of(loss: str) -> str:
    """The unit of a loss: cross-entropy is in nats, DLR and ReDLR are ratios of logits (theory, section 3)."""
    return "nats" if loss == "ce" else "no unit"


def label(name: str, length: int = 36) -> str:
    """A model's name, cut in the middle where a figure has no room for it."""
    half = (length - 1) // 2
    return name if len(name) <= length else f"{name[:half]}…{name[-half:]}"


def colour(k: int) -> str:
    """The k-th colour; after the last one they begin again."""
    return _COLOURS[k % len(_COLOURS)]


def orders(report: Report) -> list[Number]:
    """The orders p of the curves, as they are in the report, over all models."""
    return list(dict.fromkeys(row["p"] for model in report["models"] for row in model["curves"]))


def curve_of(model: ModelReport, p: Any) -> CurveBlock | None:
    """The curve of an order; None if the model has none."""
    return next((row for row in model["curves"] if row["p"] == p), None)


def losses(report: Report) -> list[str]:
    """The losses of the first-order rows over all models."""
    return list(dict.fromkeys(loss for model in report["models"] for loss in by_loss(model)))


def by_loss(model: ModelReport) -> dict[str, list[PosterRow]]:
    """The first-order rows of each loss."""
    found: dict[str, list[PosterRow]] = {}
    for row in model["poster"]:
        found.setdefault(row["loss"], []).append(row)
    return found


def first_order_lines(model: ModelReport, loss: str) -> Iterator[tuple[Number, list[PosterRow]]]:
    """The first-order rows of a loss as lines of a figure: an order, and its rows by increasing radius."""
    rows = by_loss(model).get(loss, [])
    for p in dict.fromkeys(row["p"] for row in rows):
        yield p, sorted((row for row in rows if row["p"] == p), key=lambda row: row["delta"])


def upsilon_name(report: Report) -> str:
    """Which of the two Upsilons the numbers of a report use (theory, section 2)."""
    config = report["config"]
    box = {**(config.get("first_order") or {}), **_given(config.get("poster"))}.get("box", True)
    return "box Υ (free gradient in [0, 1]ⁿ)" if box else "free Υ (the paper's formula, no box)"


def _given(settings: Mapping[str, Any] | None) -> dict[str, Any]:
    return {key: value for key, value in (settings or {}).items() if value is not None}


def passes_an_image(model: ModelReport) -> str | None:
    """What each measurement took, in pairs of a forward and a backward pass of one image; None in older reports."""
    rows = [row for row in model.get("passes", []) if row["forward"]]
    shares = [f"{row['measurement']} {(row['forward'] + row['backward']) / 2 / model['images']:.3g}" for row in rows]
    return "passes (forward and backward) an image: " + ", ".join(shares) if rows else None


def encloses(model: ModelReport) -> bool:
    """Whether the model's certified and attacked curves enclose its accuracy: both speak of the same classifier."""
    certificate = model["certificate"]
    return certificate is not None and bool(certificate.get("encloses", False))


def contradicted(model: ModelReport) -> bool:
    """Whether an attack flipped an image of the model nearer than it is certified: one of the two is wrong."""
    certificate = model["certificate"]
    return certificate is not None and certificate["about"] == THE_NETWORK and not encloses(model)


def certified_name(model: ModelReport) -> str:
    """What a figure's legend calls the certified curve."""
    if encloses(model):
        return "certified"
    return "certified, encloses nothing" if contradicted(model) else "certified, of another classifier"


def certificate_note(report: Report) -> str | None:
    """What the certified curves bound, in words; None if there are none.

    Attack and certified curve enclose the truth only where both speak of the same classifier.
    """
    certified = [model for model in report["models"] if model["certificate"] is not None]
    about = dict.fromkeys(model["certificate"]["about"] for model in certified if model["certificate"] is not None)
    if not about:
        return None
    note = f"certified lower bound of {', '.join(about)}"
    if all(map(encloses, certified)):
        return note + "; the truth lies between the two, in the area"
    return note + "; only where there is an area between the two, the truth lies in it"


def lower_level(report: Report) -> float:
    """The level of the lower ends of all networks: certificates that may fail take from that of the band."""
    levels = [model["certificate"]["level"] for model in report["models"] if model["certificate"] is not None]
    return level_with_certificates(report["models"][0]["band"]["level"], levels)


def between(low: Any, high: Any) -> str:
    """An interval of shares, or of their differences, in per cent, rounded outwards; a dash where there is none."""
    ends = [to_float(low), to_float(high)]
    if any(map(math.isnan, ends)):
        return "–"
    return f"{rounded_down(100 * ends[0], 1)} .. {rounded_up(100 * ends[1], 1)} %"


def accuracy_at(curve: CurveBlock, delta: float, key: CurveKey = "accuracy") -> float:
    """A curve's value at the grid's radius nearest to `delta`; NaN if it has none."""
    values = curve[key]
    if values is None:
        return math.nan
    nearest = min(range(len(values)), key=lambda k: abs(to_float(curve["deltas"][k]) - delta))
    return to_float(values[nearest])


def grid(report: Report) -> list[float]:
    """Radii for a table: eighths of the curves' range, and the threat's own."""
    deltas = to_floats(report["models"][0]["curves"][0]["deltas"])
    wanted = {round(k * (len(deltas) - 1) / 8) for k in range(9)}
    wanted.add(min(range(len(deltas)), key=lambda k: abs(deltas[k] - to_float(report["threat"]["delta"]))))
    return [deltas[k] for k in sorted(wanted)]
