"""Networks side by side: one table with a column a network, and one of the paired differences (theory, section 12)."""

from __future__ import annotations

import math

from wdro_train.evaluation.report import fields
from wdro_train.evaluation.report.fields import at_most, between, encloses, percent, short, to_float, to_floats
from wdro_train.evaluation.report.schema import ModelReport, Number, Report
from wdro_train.evaluation.report.sentences import ball, effort, written_radii
from wdro_train.theory.robustness_curve import RobustnessCurve

Table = list[list[str]]


def side_by_side(report: Report) -> Table:
    """Every network a column: clean accuracy, what is left at the threat's radius under each order, and at what effort.

    A single percentage of a worst case is an attack's upper bound. Two are a certified lower bound and the attack's
    upper bound, between which the truth lies.

    Args:
        report: In memory or as read from `report.json`.

    Returns:
        The head, and the rows. The one of the threat itself comes first after the clean accuracy.
    """
    models, threat = report["models"], report["threat"]
    written, p = written_radii(report), to_float(threat["p"])
    others = [order for order in map(to_float, fields.orders(report)) if order != p]
    rows = [["clean accuracy", *(percent(model["clean_accuracy"]) for model in models)]]
    for order in (p, *others):
        cells = (left(model, order, threat["delta"]) for model in models)
        rows.append([ball(written, order, threat["delta"]), *cells])
    rows += [
        ["ratio to clean", *map(_ratio, models)],
        ["on the distribution", *map(_distribution, models)],
        ["images moved", *(str(model["worst_case"]["images_moved"]) for model in models)],
        ["median distance", *(short(model["distances"]["median_of_correct"]) for model in models)],
    ]
    # In rows of their own: effort, and passes an image where they are known, which fits narrow columns.
    efforts = [effort(model).partition(", ") for model in models]
    rows += [["effort of the attack", *(name for name, _, _ in efforts)]]
    if any(passes for _, _, passes in efforts):
        rows += [["passes an image", *(passes.removesuffix(" passes an image") or "–" for _, _, passes in efforts)]]
    certificates = [model["certificate"] for model in models]
    if any(certificates):
        rows.append(["certificate", *("none" if one is None else one["method"] for one in certificates)])
    return [["", *(model["name"] for model in models)], *rows]


def paired_differences(report: Report) -> Table | None:
    """Every network against every other one on the same images; None where there are none to pair.

    Args:
        report: In memory or as read from `report.json`.

    Returns:
        The head, with a column a pair, and the rows: the difference of the attacks' upper bounds with its interval on
        the distribution, and where the difference of the truths lies, on the images and on their distribution.
    """
    found = report["differences"]
    if found is None or not found["rows"]:
        return None
    pairs = found["rows"]
    return [
        [ball(written_radii(report), found["p"], found["delta"]), *(f"{p['first']} − {p['second']}" for p in pairs)],
        ["attacks' upper bounds", *(percent(pair["attacked"]) for pair in pairs)],
        ["their distribution", *(between(pair["attacked_low"], pair["attacked_high"]) for pair in pairs)],
        ["truths", *(between(pair["enclosed_low"], pair["enclosed_high"]) for pair in pairs)],
        ["their distribution", *(between(pair["lower_end"], pair["upper_end"]) for pair in pairs)],
    ]


def left(model: ModelReport, p: Number, delta: float) -> str:
    """What is left of a network's accuracy in a ball: at most so much, or between two bounds.

    Args:
        model: Its part of the report.
        p: Wasserstein order.
        delta: Radius.
    """
    order = to_float(p)
    attacked = RobustnessCurve(to_floats(model["distances"]["values"])).accuracy(delta, order)
    certificate = model["certificate"]
    if certificate is None or not encloses(model):
        return f"≤ {at_most(attacked)}"
    return between(RobustnessCurve(to_floats(certificate["radii"])).accuracy(delta, order), attacked)


def _ratio(model: ModelReport) -> str:
    found = model["interval"]
    if math.isnan(to_float(found["ratio_certified"])):
        return f"≤ {at_most(found['ratio_attacked'])}"
    return between(found["ratio_certified"], found["ratio_attacked"])


def _distribution(model: ModelReport) -> str:
    found = model["interval"]
    if found["lower_end"] is None:
        return f"≤ {at_most(found['upper_end'])}"
    return between(found["lower_end"], found["upper_end"])
