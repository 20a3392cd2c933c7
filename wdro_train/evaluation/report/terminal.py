"""The report as tables for the terminal."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from rich.console import Console

from wdro_train.evaluation.report.fields import (
    at_most,
    between,
    beyond_the_images,
    by_loss,
    column,
    contradicted,
    headline,
    lower_level,
    percent,
    to_float,
    to_floats,
)
from wdro_train.evaluation.report.schema import BandBlock, DifferencesBlock, ModelReport, Report
from wdro_train.evaluation.report.search import convergence
from wdro_train.theory.robustness_curve import RobustnessCurve
from wdro_train.utils import tables

_SHARES = (0.25, 0.5, 1, 2)  # of the threat's radius: where the tables show the curves
_NO_COLUMN = ("loss", "p", "norm", "delta")  # they name a row of the poster's table


def show(report: Report, made: Sequence[tuple[str, str]]) -> None:
    """Print what came out for every network, and where the files are.

    Args:
        report: In memory or as read from `report.json`.
        made: What was made and where, from `publish`.
    """
    console = Console()
    for model in report["models"]:
        _show_model(console, report, model)
    if report["differences"] is not None:
        _show_differences(console, report["differences"])
    for what, where in made:
        console.print(f"{what:<9} {where}", soft_wrap=True)


def _show_model(console: Console, report: Report, model: ModelReport) -> None:
    delta, worst = report["threat"]["delta"], model["worst_case"]
    console.print(
        f"\n{model['name']}: {model['images']} {report['split']} images ({model.get('sample')}) as one distribution, "
        f"l_{to_float(model['norm']):g} norm, clean accuracy {model['clean_accuracy']:.4f}",
        soft_wrap=True,
    )
    curve = RobustnessCurve(to_floats(model["distances"]["values"]))
    orders = to_floats(row["p"] for row in model["curves"])
    _show_curves(
        f"worst-case accuracy (attack, upper bound){_upper_end(model['band'])}", curve, orders, delta, tables.rounded_up
    )
    sure = model["certificate"]
    if sure is not None:
        title = f"certified worst-case accuracy of {sure['about']} ({sure['method']}, level {sure['level']:g})"
        title += (
            ", contradicted by an attack" if contradicted(model) else _lower_end(model["band"], lower_level(report))
        )
        _show_curves(title, RobustnessCurve(to_floats(sure["radii"])), orders, delta, tables.rounded_down)
    console.print(
        f"W_{to_float(worst['p']):g}, radius {worst['delta']:.4g}: the worst case moves {worst['images_moved']} "
        f"correct images, up to distance {to_float(worst['marginal_distance']):.4g}",
        soft_wrap=True,
    )
    console.print(headline(model), soft_wrap=True)
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
    _show_first_order(model)
    _show_published(model, curve, delta)
    for peer in model["peers"]:
        console.print(
            f"{peer['name']} at p = inf, radius {peer['delta']:.4g}: leaves {peer['accuracy']:.4f} of "
            f"{peer['images']} images, in {peer['seconds']:.1f} s",
            soft_wrap=True,
        )
    for warning in model["warnings"]:
        console.print(f"warning: {warning['text']}", soft_wrap=True)


def _show_curves(
    title: str, curve: RobustnessCurve, orders: Sequence[float], delta: float, written: Callable[[float], str]
) -> None:
    """Accuracies around the threat's radius, one row an order, rounded to the side that keeps a bound one."""
    wanted = [share * delta for share in _SHARES]
    rows = [[f"W_{p:g}", *(written(a) for a in curve.accuracies(wanted, p))] for p in orders]
    tables.show(title, ["ball", *(f"delta {radius:.4g}" for radius in wanted)], rows)


def _show_first_order(model: ModelReport) -> None:
    """The poster's values, a table a loss and a column a ball."""
    for loss, rows in by_loss(model).items():
        keys = [key for key in rows[0] if key not in _NO_COLUMN]
        tables.show(
            f"first-order values and W-PGD, {loss} (ratio_lower* are asymptotic)",
            ["", *(f"W_{to_float(row['p']):g} {row['delta']:.4g}" for row in rows)],
            [[key, *map(tables.four_decimals, column(rows, key))] for key in keys],
        )


def _show_differences(console: Console, found: DifferencesBlock) -> None:
    """Networks against one another on the same images, and what holds for attacks only."""
    ball = f"W_{to_float(found['p']):g} {found['delta']:.4g}"
    for row in found["rows"]:
        attacks = between(row["attacked_low"], row["attacked_high"])
        truths = (
            "; how the truths differ, no attack can say"
            if row["enclosed_low"] is None
            else f"; the truths by {between(row['enclosed_low'], row['enclosed_high'])} (distribution: "
            f"{between(row['lower_end'], row['upper_end'])})"
        )
        console.print(
            f"{row['first']} minus {row['second']} under {ball}, same images: the attacks' upper bounds differ by "
            f"{percent(row['attacked'])} (distribution: {attacks}){truths}",
            soft_wrap=True,
        )
    if found["rows"]:
        console.print(
            f"intervals on the distribution are normal ones of the images in pairs, all {len(found['rows'])} of a kind "
            f"jointly at {100 * found['level']:.4g} %; for all radii, orders and pairs at once they are "
            f"within {at_most(found['width'])} of what is seen here (attacks' upper bounds)",
            soft_wrap=True,
        )
    for sentence in found["left_out"]:
        console.print(sentence, soft_wrap=True)


def _show_published(model: ModelReport, curve: RobustnessCurve, delta: float) -> None:
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
    tables.show(f"published beside ours, radius {delta:.4g}", head, body)


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
