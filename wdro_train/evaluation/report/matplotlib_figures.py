"""The figures of a report as PNG, PDF and SVG files, made from `report.json` and the pictures that go with it alone."""

from __future__ import annotations

import logging
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from wdro_train.evaluation.report import fields, search
from wdro_train.evaluation.report.fields import colour, column, to_float, to_floats
from wdro_train.evaluation.report.image_pairs import Pairs
from wdro_train.evaluation.report.schema import CurveBlock, ModelReport, PosterRow, Report, WorstCaseBlock
from wdro_train.evaluation.report.sentences import written_radii
from wdro_train.utils.files import replacing
from wdro_train.utils.image_grid import draw_pairs

_PANEL = (5.6, 4.2)  # inches of a panel: three side by side fill a page of a paper, with legible text
_DPI = 150  # a panel is then 840 pixels wide: three fill a wide screen, and print sharply at half their size
# Matplotlib embeds fonts into PDF by fontTools, which logs every table of every font.
logging.getLogger("fontTools").setLevel(logging.WARNING)
# By format, what it would otherwise say of the day, so that the same report gives the same file.
_FORMATS: dict[str, dict[str, Any]] = {"png": {}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}


def write(report: Report, pictures: Sequence[Pairs | None], folder: Path) -> list[Path]:
    """Draw every figure that the report has numbers for.

    Args:
        report: As `report.json` holds it.
        pictures: One entry a model: its movers' images, or None.
        folder: Where the files go.

    Returns:
        The files, each figure as PNG, PDF and SVG.
    """
    figures: dict[str, Figure] = {
        "robustness_curves": robustness_curves(report),
        "distances": distance_histograms(report),
    }
    if any(search.convergence_line(model)[0] for model in report["models"]):
        figures["convergence"] = convergence(report)
    if fields.losses(report):
        figures["first_order"] = first_order(report)
        figures["ratios"] = ratios(report)
    for k, (model, pairs) in enumerate(zip(report["models"], pictures, strict=True)):
        if pairs is not None:
            name = "moved_first" + (f"_{k + 1}" if len(pictures) > 1 else "")
            figures[name] = moved_first(report, model, pairs)
    return [path for name, figure in figures.items() for path in save(figure, folder / name)]


def save(figure: Figure, path: Path) -> list[Path]:
    """Write a figure as PNG, to look at, and as PDF and SVG, for papers and pages.

    Args:
        figure: What is drawn.
        path: Of the files, without a suffix.

    Returns:
        The three files.
    """
    paths = []
    # Publishers ask for TrueType fonts (42) in PDF files; the salt gives the parts of an SVG the same names every time.
    for kind, metadata in _FORMATS.items():
        paths.append(path.with_name(f"{path.name}.{kind}"))
        with replacing(paths[-1]) as file, rc_context({"pdf.fonttype": 42, "svg.hashsalt": "wdro_train"}):
            figure.savefig(file, format=kind, dpi=_DPI, metadata=metadata)
    return paths


def robustness_curves(report: Report) -> Figure:
    """Worst-case accuracy against the radius: attack and certificate, the area between them, the band beyond them.

    One model: one panel, a colour an order. Several: a panel an order, a colour a model.
    """
    models, orders = report["models"], fields.orders(report)
    alone = len(models) == 1
    figure, panels = _panels(1 if alone else len(orders))
    for j, p in enumerate(orders):
        ax = panels[0] if alone else panels[j]
        for k, model in enumerate(models):
            curve = fields.curve_of(model, p)
            if curve is not None:
                name = _order(p) if alone else _plain(model["name"])
                _curve(ax, curve, colour(j if alone else k), name, model)
        if not alone:
            ax.set_title(_order(p), fontsize=10)
    if alone:
        panels[0].set_title(_plain(models[0]["name"]), fontsize=10)
    level = fields.lower_level(report)
    for ax in panels:
        ax.set(xlabel=_radius(report), ylabel=r"worst-case accuracy $A_\delta$ (share of images)", ylim=(-0.02, 1.02))
        ax.yaxis.set_major_formatter(PercentFormatter(1.0))
        _mark_radii(ax, report)
    _legend(figure, panels)
    note = fields.certificate_note(report)
    lines = ["solid: attack, an upper bound on the sample"]
    lines += [] if note is None else [f"dashed: {note}"]
    lines += [f"pale: where the distribution's may lie beyond, {100 * level:.4g} %, all radii and orders at once"]
    figure.suptitle("\n".join(textwrap.fill(line, int(13 * figure.get_figwidth())) for line in lines), fontsize=9)
    return figure


def distance_histograms(report: Report) -> Figure:
    """How far the correct images are from their nearest flip, one panel a model."""
    figure, panels = _panels(len(report["models"]))
    for ax, model in zip(panels, report["models"], strict=True):
        found = model["distances"]["histogram"]
        ax.stairs(found["counts"], found["edges"], fill=True, color=colour(0), alpha=0.75)
        marginal = to_float(model["worst_case"]["marginal_distance"])
        if math.isfinite(marginal):
            where = _ball(report, model["worst_case"])
            ax.axvline(marginal, color=colour(1), linestyle="--", label=f"moved in {where}: left")
            ax.legend(fontsize=8)
        ax.set(xlabel=f"distance to the nearest flip found ({_unit(model['norm'])})", ylabel="number of correct images")
        _mark_radii(ax, report)
        ax.set_title(
            f"{_plain(model['name'])}\n{found['misclassified']} misclassified, {found['not_flipped']} not flipped",
            fontsize=9,
        )
    return figure


def convergence(report: Report) -> Figure:
    """How far the accuracy in the ball of the threat fell while flips were searched: a line a model, a dot a round."""
    figure, (ax,) = _panels(1)
    for k, model in enumerate(report["models"]):
        passes, accuracies = search.convergence_line(model)
        if passes:
            ax.plot(passes, accuracies, "o-", markersize=3, color=colour(k), label=_plain(model["name"]))
    where = _ball(report, report["models"][0]["worst_case"])
    ax.set(xlabel="passes (forward and backward) an image", ylabel=f"accuracy left in {where}")
    ax.yaxis.set_major_formatter(PercentFormatter(1.0))
    _legend(figure, [ax])
    return figure


def first_order(report: Report) -> Figure:
    """First-order approximation of the W-DRO value against the radius: a row a model, a panel a loss."""
    models, losses = report["models"], fields.losses(report)
    figure, panels = _panels(len(losses) * len(models), columns=len(losses))
    for i, model in enumerate(models):
        for j, loss in enumerate(losses):
            ax = panels[i * len(losses) + j]
            for k, (p, rows) in enumerate(fields.first_order_lines(model, loss)):
                _first_order_lines(ax, p, rows, colour(k))
            title = f"{fields.loss_name(loss)}, {fields.upsilon_name(report)}"
            ax.set_title(f"{_plain(model['name'])}\n{title}", fontsize=9)
            ax.set(xlabel=_radius(report), ylabel=rf"mean loss $V(\delta)$ ({fields.unit_of(loss)})")
            if ax.has_data():
                _mark_radii(ax, report)
                ax.legend(fontsize=8)
    return figure


def ratios(report: Report) -> Figure:
    """The bounds R^u and R^l against R = A_delta / A, over networks and radii: a panel a loss.

    R^l is a first-order bound, not a certificate: where it exceeds R it is marked.
    """
    losses = fields.losses(report)
    figure, panels = _panels(len(losses))
    for ax, loss in zip(panels, losses, strict=True):
        ends: list[float] = []
        for k, model in enumerate(report["models"]):
            rows = fields.by_loss(model).get(loss, [])
            r, upper, lower = (column(rows, key) for key in ("ratio", "ratio_upper", "ratio_lower"))
            prefix = f"{_plain(model['name'])}: " if len(report["models"]) > 1 else ""
            ax.scatter(r, upper, marker="^", s=30, color=colour(k), label=prefix + "$R^u$, upper bound (W-FGSM)")
            ax.scatter(
                r, lower, marker="v", s=30, color=colour(k), alpha=0.6, label=prefix + "$R^l$, asymptotic lower bound"
            )
            ends += [v for v in r if math.isfinite(v)]
            above = [(a, b) for a, b in zip(r, lower, strict=True) if b > a]
            if above:
                ring: dict[str, Any] = {"s": 110, "facecolors": "none", "edgecolors": "crimson"}
                ax.scatter(*zip(*above, strict=True), **ring, label="$R^l > R$: no certificate")
        if ends:
            ax.plot([min(ends), max(ends)], [min(ends), max(ends)], color="0.6", linewidth=1, label="equal to $R$")
        ax.set(xlabel=r"ratio $R = A_\delta / A$ (attack: an upper bound)", ylabel="bounds on the ratio $R$")
        title = f"{fields.loss_name(loss)}, {fields.upsilon_name(report)}, {_norm(report['threat']['norm'])}"
        alone = len(report["models"]) == 1
        ax.set_title(f"{_plain(report['models'][0]['name'])}\n{title}" if alone else title, fontsize=9)
    _legend(figure, panels)
    return figure


def moved_first(report: Report, model: ModelReport, pairs: Pairs) -> Figure:
    """The images the worst case moves first, and what they become."""
    movers = model["worst_case"]["movers"]
    labels = torch.tensor([mover["label"] for mover in movers])
    becomes = torch.tensor([mover["becomes"] for mover in movers])
    title = f"{_plain(model['name'])}: what the worst case in {_ball(report, model['worst_case'])} moves first"
    return draw_pairs(pairs.clean, pairs.adversarial, labels, labels, becomes, title)


def _curve(ax: Axes, curve: CurveBlock, shade: str, name: str, model: ModelReport) -> None:
    deltas = to_floats(curve["deltas"])
    band: dict[str, Any] = {"color": shade, "alpha": 0.13, "linewidth": 0}
    ax.fill_between(deltas, to_floats(curve["accuracy"]), to_floats(curve["upper"]), **band)
    ax.plot(deltas, to_floats(curve["accuracy"]), color=shade, label=name)
    if curve["certified"] is None:
        return
    sure, enclosed = to_floats(curve["certified"]), fields.encloses(model)
    if curve["certified_lower"] is not None:
        ax.fill_between(deltas, to_floats(curve["certified_lower"]), sure, **band)
    if enclosed:
        ax.fill_between(deltas, sure, to_floats(curve["accuracy"]), **band | {"alpha": 0.35})
    ax.plot(
        deltas, sure, color=shade, linestyle="--" if enclosed else ":", label=f"{name}, {fields.certified_name(model)}"
    )


def _first_order_lines(ax: Axes, p: Any, rows: list[PosterRow], shade: str) -> None:
    v0, last = to_float(rows[0]["v0"]), rows[-1]
    deltas = [0.0, *column(rows, "delta")]
    slope = rf"{_order(p)}: $V(0) + \delta\Upsilon$, $\Upsilon$ = {to_float(last['upsilon']):.3g}"
    ax.plot([0.0, deltas[-1]], [v0, to_float(last["v_first_order"])], color=shade, label=slope)
    for key, style, label in (
        ("v_q", "s:", r"$E_{Q_\delta}[J]$ (W-FGSM)"),
        ("v_pgd", "o--", r"$V(\delta)$ by W-PGD, from below"),
    ):
        values = [v0, *column(rows, key)]
        ax.plot(deltas, values, style, color=shade, markersize=5, label=f"{_order(p)}: {label}")


def _panels(count: int, columns: int | None = None) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels, row by row, with at most three in a row if not said otherwise."""
    columns = columns or (2 if count == 4 else min(count, 3))
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(_PANEL[0] * columns, _PANEL[1] * rows + 0.3), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for ax in axes[count:]:
        ax.remove()
    return figure, axes[:count]


def _legend(figure: Figure, panels: list[Axes]) -> None:
    """One legend for all panels, below them."""
    entries = {text: handle for ax in panels for handle, text in zip(*ax.get_legend_handles_labels(), strict=True)}
    if entries:
        longest = max(len(text.replace("$", "").replace("{", "").replace("}", "")) for text in entries)
        columns = max(1, int(figure.get_figwidth() / (0.6 + 0.075 * longest)))
        figure.legend(
            entries.values(), entries.keys(), loc="outside lower center", ncols=min(columns, len(entries)), fontsize=8
        )


def _plain(name: str) -> str:
    """A name as text: no mathematics in it, and no underscore in front, which hides a label."""
    text = fields.label(name).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def _order(p: Any) -> str:
    return r"$W_\infty$" if math.isinf(to_float(p)) else f"$W_{{{to_float(p):g}}}$"


def _norm(norm: Any) -> str:
    return r"$\ell_\infty$" if math.isinf(to_float(norm)) else rf"$\ell_{{{to_float(norm):g}}}$"


def _unit(norm: Any) -> str:
    """What distances are measured in."""
    return f"{_norm(norm)} norm, pixels in [0, 1]"


def _radius(report: Report) -> str:
    return rf"radius $\delta$ ({_unit(report['threat']['norm'])})"


def _mark_radii(ax: Axes, report: Report) -> None:
    """Mark the axis of radii in the fractions that the user typed, if any."""
    marks = written_radii(report).marks(ax.get_xlim()[1])
    if marks:
        ax.set_xticks([place for place, _ in marks], [text for _, text in marks])


def _ball(report: Report, block: WorstCaseBlock) -> str:
    return rf"{_order(block['p'])}, $\delta$ = {written_radii(report)(block['delta'])}"
