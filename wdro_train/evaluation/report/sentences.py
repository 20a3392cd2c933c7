"""What a report says of a network in words, the same in the terminal, on the page and in Markdown."""

from __future__ import annotations

import math

from wdro_train.evaluation.report import search
from wdro_train.evaluation.report.fields import (
    at_least,
    at_most,
    contradicted,
    encloses,
    lower_level,
    short,
    to_float,
)
from wdro_train.evaluation.report.schema import ModelReport, Number, Report
from wdro_train.evaluation.typed_radii import typed_radii
from wdro_train.utils.written import WrittenRadii


def written_radii(report: Report) -> WrittenRadii:
    """How the radii of a report are written.

    Args:
        report: In memory or as read from `report.json`.
    """
    trained = [model["trained_with"] for model in report["models"]]
    return typed_radii(report["config"], trained, report["threat"]["delta"])


def ball(written: WrittenRadii, p: Number, delta: float) -> str:
    """A Wasserstein ball for a text, as `W_2 8/255`."""
    return f"W_{short(p)} {written(delta)}"


def headline(report: Report, model: ModelReport) -> str:
    """Between which accuracies the truth lies in the ball of the threat, in one sentence with the attack's effort."""
    found, certificate = model["interval"], model["certificate"]
    where = ball(written_radii(report), found["p"], found["delta"])
    attack, images = f"{at_most(found['attacked'])} (attack, {effort(model)})", f"{model['images']:,} images"
    if certificate is None:
        return f"accuracy left under {where} is at most {attack}, {images}; how far below, no attack can say"
    if not encloses(model):
        why = f"what {certificate['method']} certifies ({certificate['about']}) does not enclose it"
        why += ", as an attack contradicts it" if contradicted(model) else ""
        return f"accuracy left under {where} is at most {attack}, {images}; {why}"
    sure = "certified" if certificate["level"] == 1 else f"certified, level {short(certificate['level'])}"
    least = f"{at_least(found['certified'])} ({certificate['method']}, {sure})"
    return f"accuracy left under {where} lies between {least} and {attack}, {images}"


def effort(model: ModelReport) -> str:
    """How hard the distances were searched, in words; older reports say only with which settings."""
    attack, found = model["distances"]["attack"], search.effort(model)
    if found:
        return found.removeprefix(", ")
    steps = attack.get("steps")
    return f"{steps} steps" if isinstance(steps, int) else "effort not recorded"


def beyond_the_images(report: Report, model: ModelReport) -> str:
    """What the band says of the distribution of the images in the ball of the threat: of accuracy and ratio."""
    found, band = model["interval"], model["band"]
    jointly = f", for all {band['networks']} networks jointly" if band["networks"] > 1 else ""
    level = f"at {100 * (band['level'] if found['lower_end'] is None else lower_level(report)):.4g} %{jointly}"
    high, ratio = at_most(found["upper_end"]), at_most(found["ratio_upper_end"])
    if found["lower_end"] is None:
        return f"on the distribution of the images at most {high}, ratio to clean accuracy at most {ratio}, {level}"
    low = at_least(found["lower_end"])
    ratios = f"{at_least(found['ratio_lower_end'])} .. {ratio}"
    return f"on the distribution of the images {low} .. {high}, ratio to clean accuracy {ratios}, {level}"


def moved(report: Report, model: ModelReport) -> str:
    """Which images the worst case moves in the ball of the threat, and how far.

    Its marginal distance is infinite where the budget moves whatever can be moved.
    """
    worst, found = model["worst_case"], model["distances"]["histogram"]
    number, farthest, never = worst["images_moved"], to_float(worst["marginal_distance"]), found["not_flipped"]
    if number == 0:
        return "the worst case moves none of the correct images"
    if math.isfinite(farthest):
        far = written_radii(report)(farthest) if math.isinf(to_float(worst["p"])) else short(farthest)
        return f"the worst case moves {number} correct images, nearest first, up to distance {far}"
    if never == 0:
        return f"the worst case moves all {number} correct images, with budget to spare"
    return (
        f"the worst case moves all {number} correct images that an attack flipped, with budget to spare; "
        f"{never} were flipped by none"
    )
