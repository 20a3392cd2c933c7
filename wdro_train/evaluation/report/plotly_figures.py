"""Interactive figures of a report, as plain data for plotly.js."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from itertools import pairwise
from typing import Any

from wdro_train.evaluation.report import fields, search
from wdro_train.evaluation.report.fields import colour, column, to_float, to_floats
from wdro_train.evaluation.report.schema import CurveBlock, ModelReport, Report
from wdro_train.evaluation.report.sentences import written_radii

Plot = dict[str, Any]


def robustness_curves(report: Report) -> list[Plot]:
    """Worst-case accuracy, enclosed, with its band: one plot for one model, a plot an order for several."""
    models, orders = report["models"], fields.orders(report)
    alone = len(models) == 1
    groups = [[(models[0], p) for p in orders]] if alone else [[(model, p) for model in models] for p in orders]
    plots = []
    for group in groups:
        traces: list[Plot] = []
        for k, (model, p) in enumerate(group):
            curve = fields.curve_of(model, p)
            if curve is not None:
                name = _order(p) if alone else escape(fields.label(model["name"]))
                traces += _curve(curve, colour(k), name, model)
        title = models[0]["name"] if alone else f"order p = {fields.short(group[0][1])}"
        layout = _layout(_radius(report), "worst-case accuracy A<sub>δ</sub>")
        _mark_radii(layout, report, [x for trace in traces for x in trace["x"]])
        layout["yaxis"] |= {"range": [-0.02, 1.02], "tickformat": ".0%"}
        plots.append({"title": title, "data": traces, "layout": layout})
    return plots


def distance_histogram(report: Report, model: ModelReport) -> Plot:
    """How far the correct images are from their nearest flip; the worst case moves those left of the line."""
    found = model["distances"]["histogram"]
    edges = to_floats(found["edges"])
    bars = {
        "type": "bar",
        "x": [(low + high) / 2 for low, high in pairwise(edges)],
        "width": [high - low for low, high in pairwise(edges)],
        "y": found["counts"],
        "marker": {"color": colour(0)},
        "hovertemplate": "d ≈ %{x:.4g}: %{y} images<extra></extra>",
    }
    layout = _layout(f"distance to the nearest flip found ({_unit(model['norm'])})", "number of correct images")
    layout |= {"bargap": 0, "showlegend": False}
    _mark_radii(layout, report, edges)
    marginal = to_float(model["worst_case"]["marginal_distance"])
    if math.isfinite(marginal):
        line = {"color": colour(1), "dash": "dash"}
        layout["shapes"] = [
            {"type": "line", "x0": marginal, "x1": marginal, "y0": 0, "y1": 1, "yref": "paper", "line": line}
        ]
    return {"title": model["name"], "data": [bars], "layout": layout}


def convergence(report: Report, model: ModelReport) -> Plot | None:
    """Accuracy left in the ball of the threat against the passes of the search, a dot a round; None for one search."""
    passes, accuracies = search.convergence_line(model)
    if not passes:
        return None
    line = _trace(passes, accuracies, model["name"], mode="lines+markers", line={"color": colour(0)})
    worst = model["worst_case"]
    where = f"{_order(worst['p'])}, δ = {written_radii(report)(worst['delta'])}"
    layout = _layout("passes (forward and backward) an image", f"accuracy left in {where}") | {"showlegend": False}
    layout["yaxis"]["tickformat"] = ".1%"
    return {"title": model["name"], "data": [line], "layout": layout}


def first_order(report: Report, model: ModelReport) -> list[Plot]:
    """First-order approximation of the W-DRO value against the radius, a plot a loss."""
    plots = []
    for loss in fields.losses(report):
        traces: list[Plot] = []
        for k, (p, rows) in enumerate(fields.first_order_lines(model, loss)):
            v0, last = to_float(rows[0]["v0"]), rows[-1]
            deltas = [0.0, *column(rows, "delta")]
            line, name = {"color": colour(k)}, _order(p)
            ends = [v0, to_float(last["v_first_order"])]
            slope = f"{name}: V(0) + δΥ, Υ = {fields.short(last['upsilon'], 3)}"
            traces.append(_trace([0.0, deltas[-1]], ends, slope, line=line, mode="lines"))
            for key, label, dash, symbol in (
                ("v_q", "E<sub>Q<sub>δ</sub></sub>[J], W-FGSM", "dot", "square"),
                ("v_pgd", "V(δ) by W-PGD, from below", "dash", "circle"),
            ):
                values = [v0, *column(rows, key)]
                style = {"line": line | {"dash": dash}, "marker": {"symbol": symbol, "size": 8}}
                traces.append(_trace(deltas, values, f"{name}: {label}", mode="lines+markers", **style))
        title = f"{model['name']}: {fields.loss_name(loss)}, {fields.upsilon_name(report)}"
        if traces:
            layout = _layout(_radius(report), f"mean loss V(δ) ({fields.unit_of(loss)})")
            _mark_radii(layout, report, [x for trace in traces for x in trace["x"]])
            plots.append({"title": title, "data": traces, "layout": layout})
    return plots


def ratios(report: Report) -> list[Plot]:
    """R^u and R^l against R over networks and radii, a plot a loss; R^l above R is marked."""
    plots = []
    for loss in fields.losses(report):
        traces: list[Plot] = []
        ringed: list[tuple[float, float]] = []
        values: list[float] = []
        for k, model in enumerate(report["models"]):
            rows = fields.by_loss(model).get(loss, [])
            prefix = f"{escape(model['name'])}: " if len(report["models"]) > 1 else ""
            r = column(rows, "ratio")
            values += r
            where = [f"{_order(row['p'])}, δ = {written_radii(report)(row['delta'])}" for row in rows]
            for key, name, symbol in (
                ("ratio_upper", "R<sup>u</sup>, upper bound (W-FGSM)", "triangle-up"),
                ("ratio_lower", "R<sup>l</sup>, asymptotic lower bound", "triangle-down"),
            ):
                y = column(rows, key)
                marker = {"symbol": symbol, "size": 10, "color": colour(k)}
                traces.append(_trace(r, y, prefix + name, mode="markers", marker=marker, text=where))
                ringed += [(a, b) for a, b in zip(r, y, strict=True) if key == "ratio_lower" and b > a]
        if ringed:
            x, y = (list(side) for side in zip(*ringed, strict=True))
            ring = {"symbol": "circle-open", "size": 18, "color": "#d62728", "line": {"width": 2}}
            traces.append(_trace(x, y, "R<sup>l</sup> > R: no certificate", mode="markers", marker=ring))
        finite = [v for v in values if math.isfinite(v)] or [0.0]
        ends = [min(finite), max(finite)]
        diagonal = _trace(ends, ends, "equal to R", mode="lines", line={"color": "#8f8f8f", "width": 1})
        name = f"{report['models'][0]['name']}: " if len(report["models"]) == 1 else ""
        title = f"{name}{fields.loss_name(loss)}, {fields.upsilon_name(report)}"
        layout = _layout("ratio R = A<sub>δ</sub>/A (attack: an upper bound)", "bounds on the ratio R")
        plots.append({"title": title, "data": [diagonal, *traces], "layout": layout})
    return plots


def _curve(curve: CurveBlock, shade: str, name: str, model: ModelReport) -> list[Plot]:
    """Attack curve with the band above it, certified curve with the band below it, and the area between them.

    The area is drawn where the truth lies in it. A certificate of another classifier than the one that is attacked
    (smoothing) has its curve and band, and no area; one that an attack contradicts has its curve alone. All are
    switched on and off together.
    """
    deltas, group = to_floats(curve["deltas"]), {"legendgroup": name}
    edge = {"mode": "lines", "line": {"width": 0, "color": shade}, "showlegend": False, "hoverinfo": "skip"} | group
    fill = {"fill": "tonexty", "fillcolor": shade + "22"}
    traces = [
        _trace(deltas, to_floats(curve["upper"]), name, **edge),
        _trace(deltas, to_floats(curve["accuracy"]), name, mode="lines", line={"color": shade}, **fill, **group),
    ]
    if curve["certified"] is not None:
        lower = _trace(deltas, to_floats(curve["certified_lower"] or []), name, **edge)
        enclosed = fields.encloses(model)
        line = {"color": shade, "dash": "dash" if enclosed else "dot"}
        called = f"{name}, {fields.certified_name(model)}"
        sure = _trace(deltas, to_floats(curve["certified"]), called, mode="lines", line=line, **group)
        if enclosed:  # each area goes up to the line before it
            traces += [sure | {"fill": "tonexty", "fillcolor": shade + "55"}, lower | fill]
        else:
            traces += [sure] if curve["certified_lower"] is None else [lower, sure | fill]
    return traces


def _trace(x: list[float], y: list[float], name: str, **style: Any) -> Plot:
    """A scatter trace; undefined and infinite values are gaps."""
    gaps = [v if math.isfinite(v) else None for v in y]
    return {"type": "scatter", "x": [v if math.isfinite(v) else None for v in x], "y": gaps, "name": name} | style


def _layout(x: str, y: str) -> Plot:
    """Transparent, so that the page's light or dark ground shows; colours of text and lines are the page's."""
    return {
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "margin": {"l": 56, "r": 12, "t": 30, "b": 48},
        "xaxis": {"title": {"text": x}, "zeroline": False, "automargin": True},
        "yaxis": {"title": {"text": y}, "zeroline": False, "automargin": True},
        "legend": {"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0},
        "font": {"family": "system-ui, sans-serif", "size": 13},
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": "#8f8f8f", "activecolor": "#5b6670"},
    }


def _order(p: Any) -> str:
    return f"W<sub>{fields.short(p)}</sub>"


def _norm(norm: Any) -> str:
    return f"ℓ<sub>{fields.short(norm)}</sub>"


def _unit(norm: Any) -> str:
    """What distances are measured in."""
    return f"{_norm(norm)} norm, pixels in [0, 1]"


def _radius(report: Report) -> str:
    return f"radius δ ({_unit(report['threat']['norm'])})"


def _mark_radii(layout: Plot, report: Report, x: Sequence[float | None]) -> None:
    """Mark the axis of radii in the fractions that the user typed, if any."""
    highest = max((one for one in x if one is not None), default=0.0)
    marks = written_radii(report).marks(highest)
    if marks:
        layout["xaxis"]["range"] = [0.0, 1.01 * highest]  # with room for the last mark
        layout["xaxis"] |= {"tickvals": [place for place, _ in marks], "ticktext": [text for _, text in marks]}
