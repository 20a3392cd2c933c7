"""One radius, two attackers: the picture of the README.

A pointwise attacker may move every image by at most delta. A distributional one may move the whole distribution by
delta in Wasserstein distance W_2, so it decides how far each image goes. The left half shows both on eight of the 500
Fashion-MNIST test images of `tests/reference`; they are not chosen but stand at evenly spaced ranks of the distance
at which an image flips. The right half shows the accuracy that each attacker leaves on all 500 at every radius.

    python docs/images/pointwise_and_distributional.py

writes `pointwise_and_distributional.png` beside this file, and takes a few minutes on two CPU cores.
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
RIGHT, QUIET = "#767676", "#555555"


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
        clean: The images as they are.
        pointwise: Under an attacker who moves every image by at most delta.
        distributional: Under the worst distribution within delta in W_2.
        curve: Worst-case accuracy of all images for every radius and order: an attack's upper bound.
    """

    labels: Tensor
    clean: Row
    pointwise: Row
    distributional: Row
    curve: RobustnessCurve


def measure() -> Scene:
    """Both attackers on the reference network and its 500 images."""
    sys.path.insert(0, str(HERE.parents[1] / "tests/helpers"))
    from oracles import reference_images, reference_network

    torch.manual_seed(0)
    model, (x, y) = reference_network("adversarial"), reference_images()
    efforts = ({}, {"steps": 50, "restarts": 2, "targets": 3})
    found = [MinimalDistance(norm=math.inf, **effort)(model, x, y) for effort in efforts]
    curve = RobustnessCurve.pool([attack.distances.numpy() for attack in found])
    nearest = torch.stack([attack.distances for attack in found]).argmin(0)
    flips = torch.stack([attack.x_adv for attack in found])[nearest, torch.arange(len(x))]

    # The worst distribution moves an image to its flip or leaves it where it is (at most one image is split).
    moves = torch.from_numpy(curve.worst_case(DELTA, p=2).weights) > 0
    worst = torch.where(moves[:, None, None, None], flips, x)
    # The pointwise attacker goes as far as it may, whether that flips the image or not.
    pointwise = WPGD(p=math.inf, norm=math.inf, delta=DELTA, loss="dlr", keep="best")(model, x, y).x_adv

    ranks = [int(len(x) * (k + 0.5) / COLUMNS) for k in range(COLUMNS)]
    chosen = torch.from_numpy(curve.distances).argsort(stable=True)[ranks]

    def row(images: Tensor) -> Row:
        with torch.no_grad():
            predictions = model(images[chosen]).argmax(1)
        moved = (images - x)[chosen].abs().flatten(1).amax(1)
        return Row(images[chosen, 0], predictions, moved)

    return Scene(y[chosen], row(x), row(pointwise), row(worst), curve)


def draw(scene: Scene) -> Figure:
    """Bars and images on the left, robustness curves on the right."""
    figure = Figure(figsize=(9, 3.45), dpi=200)
    figure.set_facecolor("white")
    left, width = 0.112, 0.0655
    for k in range(COLUMNS):
        for row, attacked, colour in (
            (0, scene.clean, QUIET),
            (1, scene.pointwise, POINTWISE),
            (2, scene.distributional, DISTRIBUTIONAL),
        ):
            ax = figure.add_axes((left + k * width, 0.515 - row * 0.247, 0.059, 0.154))
            _image(ax, attacked, k, scene.labels[k], colour)
    for row, (text, colour) in enumerate(
        (("clean", QUIET), ("pointwise\nattacker", POINTWISE), ("distributional\nattacker", DISTRIBUTIONAL))
    ):
        figure.text(
            0.104, 0.592 - row * 0.247, text, color=colour, ha="right", va="center", fontsize=7.5, weight="bold"
        )
    _bars(figure.add_axes((left, 0.735, COLUMNS * width - 0.0065, 0.16)), scene)
    _curves(figure.add_axes((0.715, 0.13, 0.275, 0.765)), scene.curve)
    return figure


def _image(ax: Axes, row: Row, k: int, label: Tensor, colour: str) -> None:
    """One image, framed where it is misclassified, with what the network says."""
    ax.imshow(row.images[k], cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
    ax.set(xticks=[], yticks=[])
    wrong = bool(row.predictions[k] != label)
    for spine in ax.spines.values():
        spine.set(color=colour if wrong else "#CCCCCC", linewidth=2 if wrong else 0.6)
    name = NAMES[int(row.predictions[k])]
    ax.set_xlabel(
        f"✗ {name}" if wrong else name,
        fontsize=6.5,
        labelpad=2.5,
        color=colour if wrong else RIGHT,
        weight="bold" if wrong else "normal",
    )


def _bars(ax: Axes, scene: Scene) -> None:
    """How far each image goes."""
    places = torch.arange(COLUMNS) + 0.5
    for shift, row, colour in ((-0.17, scene.pointwise, POINTWISE), (0.17, scene.distributional, DISTRIBUTIONAL)):
        ax.bar(places + shift, row.moved, width=0.32, color=colour)
        for place, height in zip(places + shift, row.moved, strict=True):
            text = f"{height:.2f}" if height else "0"
            ax.text(place, height + 0.006, text, ha="center", fontsize=6, color=colour)
    ax.axhline(DELTA, color="black", linewidth=0.7, linestyle=(0, (4, 3)), zorder=0)
    ax.set(xlim=(0, COLUMNS), ylim=(0, 0.2), xticks=[], yticks=[])
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.set_title(f"how far each image is moved (both within radius {DELTA:g})", fontsize=8.5, loc="left")


def _curves(ax: Axes, curve: RobustnessCurve) -> None:
    """Accuracy left by either attacker."""
    radii = torch.linspace(0, 0.2, 401).numpy()
    for p, colour, name in (
        (math.inf, POINTWISE, "pointwise, $W_\\infty$"),
        (2, DISTRIBUTIONAL, "distributional, $W_2$"),
    ):
        ax.plot(radii, 100 * curve.accuracies(radii, p), color=colour, linewidth=1.8, label=name)
        left = 100 * curve.accuracy(DELTA, p)
        ax.plot([DELTA], [left], "o", color=colour, markersize=4.5)
        ax.annotate(
            f"{left:.1f} %", (DELTA, left), (5, 4), textcoords="offset points", fontsize=9, color=colour, weight="bold"
        )
    ax.axvline(DELTA, color="black", linewidth=0.7, linestyle=(0, (4, 3)), zorder=0)
    ax.set(xlim=(0, 0.2), ylim=(0, 100), xticks=[0, 0.05, 0.1, 0.15, 0.2], yticks=[0, 25, 50, 75, 100])
    ax.tick_params(labelsize=7, length=2, pad=2)
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_xlabel("radius, $\\ell_\\infty$", fontsize=7.5, labelpad=1)
    ax.set_title("accuracy left on 500 images (%)", fontsize=8.5, loc="left")
    ax.legend(fontsize=7.5, frameon=False, loc="upper right", borderaxespad=0)


if __name__ == "__main__":
    draw(measure()).savefig(HERE / "pointwise_and_distributional.png", facecolor="white")
