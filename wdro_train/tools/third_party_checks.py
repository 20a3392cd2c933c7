"""Do our figures agree with what is published about the same network? Clean accuracies equal, no interval excludes one.

A published accuracy of all images says nothing about a hundred of them, nor about the same images after JPEG: figures
are compared only where both are about the same images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from wdro_train.evaluation.report.fields import contradicted
from wdro_train.evaluation.report.schema import ModelReport
from wdro_train.tools.enclosure_table import Enclosed
from wdro_train.tools.published_networks import Figure, PublishedNetwork
from wdro_train.utils.tables import rounded_down, rounded_up

CLEAN_TOLERANCE = 0.02
"""Points of clean accuracy: two of 10,000 images, whose logits are as good as tied."""
_SUMMATION = 1e-9  # of a percentage, which is a mean over images


@dataclass(frozen=True)
class Check:
    """One published figure beside ours.

    Attributes:
        network: Its name.
        says: What is published and what we found, in words.
        holds: Whether they agree; None where they cannot be compared.
    """

    network: str
    says: str
    holds: bool | None

    def __str__(self) -> str:
        """In a line."""
        mark = {True: "holds", False: "FAILS", None: "not compared"}[self.holds]
        return f"{mark}: {self.network}, {self.says}"


def checks(network: PublishedNetwork, model: ModelReport, found: Enclosed) -> list[Check]:
    """All that is published about a network, held against one evaluation.

    Args:
        network: What is published.
        model: The network's part of a report.
        found: Its intervals at the published radius.
    """
    made = [Check(network.name, f"an attack flipped an image nearer than {_method(model)} certifies it", False)]
    made = made if contradicted(model) else []
    if not network.figures:
        return [*made, Check(network.name, "no accuracy is published", None)]
    if reason := _other_images(network, model):
        return [*made, Check(network.name, reason, None)]
    return made + [_check(network, figure, found) for figure in network.figures]


def _other_images(network: PublishedNetwork, model: ModelReport) -> str:
    """Why the figures are about other images; empty if they are not."""
    if not network.images.original:
        return f"published figures are about other images than {network.images.name}"
    if model["images"] != network.images.number:
        return f"published figures are about {network.images.number:,} images, ours about {model['images']:,}"
    return ""


def _check(network: PublishedNetwork, figure: Figure, found: Enclosed) -> Check:
    if figure.kind == "clean":
        ours = 100 * found.clean
        close = max(CLEAN_TOLERANCE, figure.rounding)
        says = f"{figure} is published, ours is {ours:.2f}: they may differ by {close:g}"
        return Check(network.name, says, abs(ours - figure.value) <= close + _SUMMATION)
    low = 0.0 if found.certified is None else 100 * found.certified[math.inf]
    high = 100 * found.attacked[math.inf]
    slack = figure.rounding + _SUMMATION
    below = figure.kind == "at least" or low <= figure.value + slack  # what is certified is not above it
    above = figure.kind == "at most" or high >= figure.value - slack  # what the attack leaves is not below it
    says = f"{figure} is published, ours is {rounded_down(low, 2)} .. {rounded_up(high, 2)} at radius {network.radius}"
    return Check(network.name, says, below and above)


def _method(model: ModelReport) -> str:
    return "" if model["certificate"] is None else model["certificate"]["method"]
