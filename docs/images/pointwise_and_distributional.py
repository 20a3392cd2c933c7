"""One radius, two attackers: the picture of the README.

A pointwise attacker may move every image by at most delta. A distributional one may move the whole distribution by
delta in Wasserstein distance W_2, so it decides how far each image goes. The left half shows both on eight of the 500
Fashion-MNIST test images of `tests/reference`; they are not chosen but stand at evenly spaced ranks of the distance
at which an image flips. The right half shows the accuracy that each attacker leaves on all 500 at every radius.

    python docs/images/pointwise_and_distributional.py

writes `pointwise_and_distributional.png` beside this file, and takes a few seconds. The distances are those of the
attack of 30 steps that `evaluate.py` runs by default, so both accuracies are upper bounds.
"""

import math
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from wdro_train.attacks import WPGD, MinimalDistance
from wdro_train.theory.robustness_curve import RobustnessCurve

HERE = Path(__file__).parent
NAMES = ("T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")
DELTA = 0.1
COLUMNS = 8
POINTWISE, DISTRIBUTIONAL = "#D55E00", "#0072B2"  # of Okabe and Ito's palette, which colour-blind readers tell apart
QUIET = "#555555"


@dataclass(frozen=True)
class Row:
    """The chosen images under one attacker.

    Attributes:
        images: In [0, 1], shape [k, 28, 28].
        predictions: Class of each, shape [k].
        moved: How far each is from its clean image, in the l_inf norm, shape [k].
    """

    images: Tensor
    predictions: Tensor
    moved: Tensor


@dataclass(frozen=True)
class Scene:
    """All that is drawn.

    Attributes:
        labels: Of the chosen images, shape [k].
        distances: At which the chosen images flip, 0 where they are misclassified, shape [k].
        clean: The images as they are.
        pointwise: Under an attacker who moves every image by at most delta.
        distributional: Under the worst distribution within delta in W_2.
        curve: Worst-case accuracy of all images for every radius and order: an attack's upper bound.
    """

    labels: Tensor
    distances: Tensor
    clean: Row
    pointwise: Row
    distributional: Row
    curve: RobustnessCurve


def measure() -> Scene:
    """Both attackers on the reference network and its 500 images."""
    sys.path.insert(0, str(HERE.parents[1] / "tests/helpers"))
    from oracles import reference_images, reference_network

    model, (x, y) = reference_network("adversarial"), reference_images()
    found = MinimalDistance(norm=math.inf)(model, x, y)
    curve = RobustnessCurve(found.distances.numpy())

    # The worst distribution moves an image to its flip or leaves it where it is (at most one image is split).
    moves = torch.from_numpy(curve.worst_case(DELTA, p=2).weights) > 0
    worst = torch.where(moves[:, None, None, None], found.x_adv, x)
    # The pointwise attacker goes as far as it may, or to a flip inside the radius that this misses.
    pgd = WPGD(p=math.inf, norm=math.inf, delta=DELTA, steps=50, random_start=False)(model, x, y).x_adv
    with torch.no_grad():
        missed = (model(pgd).argmax(1) == y) & (found.distances <= DELTA)
    pointwise = torch.where(missed[:, None, None, None], found.x_adv, pgd)

    ranks = [int(len(x) * (k + 0.5) / COLUMNS) for k in range(COLUMNS)]
    chosen = found.distances.argsort(stable=True)[ranks]

    def row(images: Tensor) -> Row:
        with torch.no_grad():
            predictions = model(images[chosen]).argmax(1)
        moved = (images - x)[chosen].abs().flatten(1).amax(1)
        return Row(images[chosen, 0], predictions, moved)

    return Scene(y[chosen], found.distances[chosen], row(x), row(pointwise), row(worst), curve)


def draw(scene: Scene) -> Figure:
    """Bars and images on the left, robustness curves on the right."""
    figure = Figure(figsize=(9, 3.5), dpi=200, facecolor="white")
    left, width = 0.118, 0.0655
    rows = (
        ("clean", "", scene.clean, QUIET),
        ("pointwise\nattacker", f"each ≤ {DELTA:g}", scene.pointwise, POINTWISE),
        ("distributional\nattacker", f"in root mean\nsquare ≤ {DELTA:g}", scene.distributional, DISTRIBUTIONAL),
    )
    for number, (text, limit, row, colour) in enumerate(rows):
        bottom = 0.513 - 0.2265 * number
        bold = {"fontsize": 8.5, "weight": "bold", "linespacing": 1.1}
        figure.text(
            left - 0.009, bottom + (0.105 if limit else 0.078), text, color=colour, ha="right", va="center", **bold
        )
        figure.text(left - 0.009, bottom + 0.05, limit, color=colour, ha="right", va="top", fontsize=7.5)
        for k in range(COLUMNS):
            ax = figure.add_axes((left + k * width, bottom, 0.0605, 0.1556))
            _image(ax, row, k, bool(row.predictions[k] == scene.labels[k]), colour)
    _bars(figure.add_axes((left - 0.0025, 0.695, COLUMNS * width, 0.225)), scene)
    _curves(figure.add_axes((0.702, 0.125, 0.275, 0.795)), scene.curve)
    return figure


def _image(ax: Axes, row: Row, k: int, right: bool, colour: str) -> None:
    """One image and what the network says, framed and crossed where that is wrong."""
    ax.imshow(row.images[k], cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
    ax.set(xticks=[], yticks=[])
    for spine in ax.spines.values():
        spine.set(color="#CCCCCC" if right else colour, linewidth=0.6 if right else 2)
    name = NAMES[int(row.predictions[k])]
    text, weight = (name, "normal") if right else (f"✗ {name}", "bold")
    ax.set_xlabel(text, fontsize=7.5 if right else 7.2, labelpad=2, color=QUIET if right else colour, weight=weight)


def _bars(ax: Axes, scene: Scene) -> None:
    """How far each image goes, and why."""
    places = torch.arange(COLUMNS) + 0.5
    for shift, row, colour in ((-0.19, scene.pointwise, POINTWISE), (0.19, scene.distributional, DISTRIBUTIONAL)):
        ax.bar(places + shift, row.moved, width=0.34, color=colour)
        for place, height in zip(places + shift, row.moved, strict=True):
            text = f"{height:.2f}" if height else "0"
            ax.text(place, height + 0.006, text, ha="center", fontsize=7, color=colour)
    for text, members in _groups(scene).items():
        first, last = members[0] + 0.08, members[-1] + 0.92
        ax.plot([first, last], [0.2, 0.2], color=QUIET, linewidth=0.7)
        ax.text((first + last) / 2, 0.206, text, ha="center", fontsize=7.5, color=QUIET)
    ax.axhline(DELTA, color="black", linewidth=0.7, linestyle=(0, (4, 3)), zorder=0)
    ax.set(xlim=(0, COLUMNS), ylim=(0, 0.235), xticks=[], yticks=[])
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.set_title(f"how far each image is moved, radius {DELTA:g} for both", fontsize=9, loc="left")
    ax.text(-0.1, 0.06, "distance", ha="right", fontsize=7.5, color=QUIET)


def _groups(scene: Scene) -> dict[str, list[int]]:
    """Why each image is moved as far as it is: neighbours in the order of their distances."""
    wrong, near, bought = scene.distances == 0, scene.distances <= DELTA, scene.distributional.moved > 0
    groups: dict[str, list[int]] = {}
    for k in range(COLUMNS):
        text = "farther: paid with what is saved" if bought[k] else "hopeless"
        text = "wrong" if wrong[k] else "near" if near[k] else text
        groups.setdefault(text, []).append(k)
    return groups


def _curves(ax: Axes, curve: RobustnessCurve) -> None:
    """Accuracy left by either attacker."""
    radii = torch.linspace(0, 0.2, 401).numpy()
    names = (
        (math.inf, POINTWISE, "pointwise, $W_\\infty$", (0.015, 91)),
        (2, DISTRIBUTIONAL, "distributional, $W_2$", (0.004, 18)),
    )
    for p, colour, name, place in names:
        ax.plot(radii, 100 * curve.accuracies(radii, p), color=colour, linewidth=1.8)
        ax.text(*place, name, color=colour, fontsize=8.5)
        left = 100 * curve.accuracy(DELTA, p)
        ax.plot([DELTA], [left], "o", color=colour, markersize=4.5)
        offset = {"xytext": (5, 4), "textcoords": "offset points"}
        ax.annotate(f"{left:.1f} %", (DELTA, left), **offset, fontsize=10, color=colour, weight="bold")
    ax.axvline(DELTA, color="black", linewidth=0.7, linestyle=(0, (4, 3)), zorder=0)
    ax.set(xlim=(0, 0.2), ylim=(0, 100), xticks=[0, 0.05, 0.1, 0.15, 0.2], yticks=[0, 25, 50, 75, 100])
    ax.set_xticklabels(["0", "0.05", "0.1", "0.15", "0.2"])
    ax.tick_params(labelsize=7.5, length=2, pad=2)
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_xlabel("radius, $\\ell_\\infty$", fontsize=8.5, labelpad=1)
    ax.set_title(f"accuracy left on {len(curve)} images (%)", fontsize=9, loc="left")


if __name__ == "__main__":
    draw(measure()).savefig(HERE / "pointwise_and_distributional.png")
