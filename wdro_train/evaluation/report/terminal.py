"""The report as tables for the terminal."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from rich.console import Console

from wdro_train.evaluation.report import comparison
from wdro_train.evaluation.report.fields import (
    at_most,
    by_loss,
    column,
    contradicted,
    lower_level,
    passes_an_image,
    to_float,
    to_floats,
)
from wdro_train.evaluation.report.schema import BandBlock, DifferencesBlock, ModelReport, PosterRow, Report
from wdro_train.evaluation.report.search import convergence
from wdro_train.evaluation.report.sentences import ball, beyond_the_images, headline, moved, written_radii
from wdro_train.theory.robustness_curve import RobustnessCurve
from wdro_train.utils import tables
from wdro_train.utils.written import WrittenRadii

_SHARES = (0.25, 0.5, 1, 2)  # of the threat's radius: where the tables show the curves
_NO_COLUMN = ("loss", "p", "norm", "delta", "pgd_steps")  # they name a row of the first-order table


def show(report: Report, made: Sequence[tuple[str, str]]) -> None:
    """Print what came out, and where the files are: several networks side by side first, then each by itself.

    Args:
        report: In memory or as read from `report.json`.
        made: What was made and where, from `publish`.
    """
    console = Console(markup=False)  # names are printed as they are
    if report["differences"] is not None:
        _show_side_by_side(console, report, report["differences"])
    for model in report["models"]:
        _show_model(console, report, model)
    for what, where in made:
        console.print(f"{what:<9} {where}", soft_wrap=True)


def _show_model(console: Console, report: Report, model: ModelReport) -> None:
    delta, written = report["threat"]["delta"], written_radii(report)
    console.print(
        f"\n{model['name']}: {model['images']} {report['split']} images ({model.get('sample')}) as one distribution, "
        f"l_{to_float(model['norm']):g} norm, clean accuracy {model['clean_accuracy']:.4f}",
        soft_wrap=True,
    )
    curve = RobustnessCurve(to_floats(model["distances"]["values"]))
    orders = to_floats(row["p"] for row in model["curves"])
    _show_curves(
        f"worst-case accuracy (attack, upper bound){_upper_end(model['band'])}",
        curve, orders, delta, written, tables.rounded_up,
    )  # fmt: skip
    sure = model["certificate"]
    if sure is not None:
        title = f"certified worst-case accuracy of {sure['about']} ({sure['method']}, level {sure['level']:g})"
        title += (
            ", contradicted by an attack" if contradicted(model) else _lower_end(model["band"], lower_level(report))
        )
        certified = RobustnessCurve(to_floats(sure["radii"]))
        _show_curves(title, certified, orders, delta, written, tables.rounded_down)
    console.print(f"{ball(written, report['threat']['p'], delta)}: {moved(report, model)}", soft_wrap=True)
    console.print(headline(report, model), soft_wrap=True)
    console.print(beyond_the_images(report, model), soft_wrap=True)
    searched = convergence(model)
    if searched is not None:
        console.print(searched, soft_wrap=True)
    if sure is not None and "exact" in sure:
        asked = sure["exact"]
        console.print(
            f"exact: {asked['decided']} of the {asked['asked']} images that attack and bounds left open at the threat "
            f"are decided, with {asked['budget']:g} s an image",
            soft_wrap=True,
        )
    _show_first_order(model, written)
    _show_published(model, curve, delta, written)
    for peer in model["peers"]:
        console.print(
            f"{peer['name']} at p = inf, radius {written(peer['delta'])}: leaves {peer['accuracy']:.4f} of "
            f"{peer['images']} images, in {peer['seconds']:.1f} s",
            soft_wrap=True,
        )
    passes = passes_an_image(model)
    if passes is not None:
        console.print(passes, soft_wrap=True)
    for warning in model["warnings"]:
        console.print(f"warning: {warning['text']}", soft_wrap=True)


def _show_curves(
    title: str,
    curve: RobustnessCurve,
    orders: Sequence[float],
    delta: float,
    written: WrittenRadii,
    rounded: Callable[[float], str],
) -> None:
    """Accuracies around the threat's radius, one row an order, rounded to the side that keeps a bound one."""
    wanted = [share * delta for share in _SHARES]
    rows = [[f"W_{p:g}", *(rounded(a) for a in curve.accuracies(wanted, p))] for p in orders]
    tables.show(title, ["ball", *(f"delta {written(radius)}" for radius in wanted)], rows)


def _show_first_order(model: ModelReport, written: WrittenRadii) -> None:
    """First-order values, a table a loss and a column a ball."""
    for loss, rows in by_loss(model).items():
        keys = [key for key in rows[0] if key not in _NO_COLUMN]
        tables.show(
            f"first-order values and W-PGD{_steps(rows)}, {loss} (ratio_lower* are asymptotic)",
            ["", *(ball(written, row["p"], row["delta"]) for row in rows)],
            [[key, *(tables.logged(key, value) for value in column(rows, key))] for key in keys],
        )


def _steps(rows: Sequence[PosterRow]) -> str:
    """How many steps W-PGD took; reports of earlier versions do not say it."""
    steps = sorted({row["pgd_steps"] for row in rows if "pgd_steps" in row})
    return f" of {', '.join(map(str, steps))} steps" if steps else ""


def _show_side_by_side(console: Console, report: Report, found: DifferencesBlock) -> None:
    """Networks beside one another, and what they differ by on the same images."""
    head, *rows = comparison.side_by_side(report)
    tables.show(
        f"\n{len(report['models'])} networks on {report['split']} images",
        head,
        rows,
        "left of the accuracy in each ball: at most what an attack leaves, or between a certificate and an attack",
    )
    paired = comparison.paired_differences(report)
    if paired is not None:
        console.print()
        tables.show(
            "differences on the same images",
            paired[0],
            paired[1:],
            "those of the attacks' upper bounds say nothing of the truths; those of the truths need certificates (a "
            "dash: there is none). Intervals on the distribution are normal ones of the images in pairs, those of a "
            f"row jointly at {100 * found['level']:.4g} %; for all radii, orders and pairs at once the attacks' bounds "
            f"differ by what is seen here within {at_most(found['width'])}",
        )
    for sentence in found["left_out"]:
        console.print(sentence, soft_wrap=True)


def _show_published(model: ModelReport, curve: RobustnessCurve, delta: float, written: WrittenRadii) -> None:
    """Published accuracies beside those of this evaluation."""
    rows = model.get("published")
    if not rows:
        return
    body = []
    for row in rows:
        error = f" +-{row['error']:g}" if row["error"] else ""
        p = to_float(row["p"])
        ours = [
            tables.four_decimals(curve.accuracy(row["delta"], p)),
            tables.four_decimals(_pgd(model, p, row["delta"])),
        ]
        body.append([f"W_{p:g}", tables.four_decimals(row["accuracy"]) + error, *ours, row["source"]])
    head = ["ball", "published", "ours, worst case", "ours, W-PGD ReDLR", "source"]
    tables.show(f"published beside ours, radius {written(delta)}", head, body)


def _pgd(model: ModelReport, p: float, delta: float) -> float:
    """Accuracy under W-PGD with ReDLR in a ball; NaN if it was not run."""
    rows = by_loss(model).get("redlr", [])
    return next((row["pgd_acc"] for row in rows if (to_float(row["p"]), row["delta"]) == (p, delta)), math.nan)


def _upper_end(band: BandBlock) -> str:
    """What an attack's accuracy says about the population."""
    if band["sided"] == "lower":
        return ""
    width = tables.rounded_up(band["width"])
    return f"; on the distribution at most {width} more, at {100 * band['level']:g} %{_jointly(band)}"


def _lower_end(band: BandBlock, level: float) -> str:
    """What a certified accuracy says about the population, at the level that certificates leave."""
    if band["sided"] == "upper":
        return ""
    return (
        f"; on the distribution at most {tables.rounded_up(band['width'])} less, at {100 * level:.4g} %{_jointly(band)}"
    )


def _jointly(band: BandBlock) -> str:
    return f" for all {band['networks']} networks jointly" if band["networks"] > 1 else ""
