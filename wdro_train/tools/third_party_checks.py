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


def checks(
    network: PublishedNetwork, model: ModelReport, found: Enclosed, clean_of_all: float | None = None
) -> list[Check]:
    """All that is published about a network, held against one evaluation.

    Args:
        network: What is published.
        model: The network's part of a report.
        found: Its intervals at the published radius.
        clean_of_all: Our clean accuracy on all images that the published one is about; None for that of the evaluation.
    """
    made = [Check(network.name, f"an attack flipped an image nearer than {_method(model)} certifies it", False)]
    made = made if contradicted(model) else []
    if not network.figures:
        return [*made, Check(network.name, "no accuracy is published", None)]
    reason = _other_images(network, model)
    for figure in network.figures:
        if figure.kind == "clean" and (clean_of_all is not None or not reason):
            made.append(_check_clean(network, figure, found.clean if clean_of_all is None else clean_of_all))
        elif not reason:
            made.append(_check_interval(network, figure, found))
    return [*made, Check(network.name, reason, None)] if reason else made


def _other_images(network: PublishedNetwork, model: ModelReport) -> str:
    """Why the figures are about other images; empty if they are not."""
    if not network.images.original:
        return f"published figures are about other images than {network.images.name}"
    if model["images"] != network.images.number:
        return f"published figures are about {network.images.number:,} images, ours about {model['images']:,}"
    return ""


def _check_clean(network: PublishedNetwork, figure: Figure, clean: float) -> Check:
    close = max(CLEAN_TOLERANCE, figure.rounding)
    says = f"{figure} is published, ours is {100 * clean:.2f} on the same images: they may differ by {close:g}"
    return Check(network.name, says, abs(100 * clean - figure.value) <= close + _SUMMATION)


def _check_interval(network: PublishedNetwork, figure: Figure, found: Enclosed) -> Check:
    low = 0.0 if found.certified is None else 100 * found.certified[math.inf]
    high = 100 * found.attacked[math.inf]
    slack = figure.rounding + _SUMMATION
    below = figure.kind == "at least" or low <= figure.value + slack  # what is certified is not above it
    above = figure.kind == "at most" or high >= figure.value - slack  # what the attack leaves is not below it
    says = f"{figure} is published, ours is {rounded_down(low, 2)} .. {rounded_up(high, 2)} at radius {network.radius}"
    return Check(network.name, says, below and above)


def _method(model: ModelReport) -> str:
    return "" if model["certificate"] is None else model["certificate"]["method"]
