"""What attacks found at what cost: as a table, as JSON and as a figure of distance against passes."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, PercentFormatter

from wdro_train.evaluation.report.matplotlib_figures import save
from wdro_train.theory.ball import WassersteinBall
from wdro_train.theory.robustness_curve import RobustnessCurve
from wdro_train.utils import tables
from wdro_train.utils.files import write_json, write_text
from wdro_train.utils.versions import git_revision, package_version

# Okabe and Ito's colours, as in reports, and markers, so that lines are told apart without colour.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8f8f8f", "#000000")
_MARKERS = "osv^D<>Pp*hX"


@dataclass(frozen=True)
class Outcome:
    """What one attack found on the correct images, and what it cost.

    Attributes:
        name: The attack.
        distances: Re-measured, shape [N], 0 for misclassified images and inf where the point does not flip.
        forward: Images forward, per correct image.
        backward: Images backward, per correct image.
        seconds: Wall-clock time.
        package: Where it comes from.
    """

    name: str
    distances: np.ndarray[Any, np.dtype[np.float64]]
    forward: float
    backward: float
    seconds: float
    package: str = "wdro-train"

    @property
    def median(self) -> float:
        """Median distance of the correct images; inf where fewer than half were flipped."""
        return float(np.median(self.distances[self.distances > 0]))

    @property
    def passes(self) -> float:
        """Cost in pairs of one forward and one backward pass, per correct image."""
        return (self.forward + self.backward) / 2

    @property
    def full_name(self) -> str:
        """The attack and the package."""
        return self.name if self.package == "wdro-train" else f"{self.name} ({self.package.replace('_', '-')})"

    def left(self, delta: float, p: float) -> float:
        """Accuracy left in a ball by the knapsack over the distances: an upper bound on the worst case.

        Args:
            delta: Radius.
            p: Wasserstein order.
        """
        return RobustnessCurve(self.distances).accuracy(delta, p)


def orders(ball: WassersteinBall) -> list[float]:
    """The orders under which accuracies are shown: the pointwise one, W_2, and the threat's own."""
    return list(dict.fromkeys([math.inf, 2.0, ball.p]))


def header(ball: WassersteinBall) -> list[str]:
    """The head of the table."""
    return ["attack", "median", *(f"W_{p:g}" for p in orders(ball)), "gradients", "forwards", "time"]


def rows(outcomes: Sequence[Outcome], ball: WassersteinBall) -> list[list[str]]:
    """One row an attack: median distance, accuracies left, cost; time relative to the first."""
    return [
        [
            found.full_name,
            f"{found.median:.4f}" if math.isfinite(found.median) else "-",
            *(tables.four_decimals(found.left(ball.delta, p)) for p in orders(ball)),
            f"{found.backward:.1f}",
            f"{found.forward:.1f}",
            f"{found.seconds / outcomes[0].seconds:.2f}",
        ]
        for found in outcomes
    ]


def draw(runs: Mapping[int, Sequence[Outcome]], ball: WassersteinBall, title: str, radius: str) -> Figure:
    """Median distance, and accuracy left under the threat, against the passes that an image took.

    Args:
        runs: By the number of steps of MinimalDistance, what every attack found at that many gradients.
        ball: The threat.
        title: Stands above it.
        radius: As it was typed.
    """
    figure = Figure(figsize=(11.2, 5.0), layout="constrained")
    left, right = figure.subplots(1, 2)
    names = list(dict.fromkeys(found.full_name for outcomes in runs.values() for found in outcomes))
    order, norm = (r"\infty" if math.isinf(e) else f"{e:g}" for e in (ball.p, ball.norm))
    for k, name in enumerate(names):
        mine = [found for outcomes in runs.values() for found in outcomes if found.full_name == name]
        mine.sort(key=lambda found: found.passes)
        style: dict[str, Any] = {"color": _COLOURS[k % len(_COLOURS)], "marker": _MARKERS[k % len(_MARKERS)]}
        style |= {"linestyle": "-" if k < len(_COLOURS) else "--"}
        style |= {"linewidth": 2.4 if k == 0 else 1.2, "markersize": 5, "zorder": 3 if k == 0 else 2}
        passes = [found.passes for found in mine]
        left.plot(passes, [found.median if math.isfinite(found.median) else math.nan for found in mine], **style)
        right.plot(passes, [found.left(ball.delta, ball.p) for found in mine], label=name, **style)
    left.set(ylabel=rf"median distance ($\ell_{{{norm}}}$ norm, pixels in [0, 1])")
    right.set(ylabel=rf"accuracy left under $W_{{{order}}}$, $\delta$ = {radius} (upper bound)")
    right.yaxis.set_major_formatter(PercentFormatter(1.0))
    for ax in (left, right):
        ax.set(xlabel="passes (forward and backward) per correct image, counted", xscale="log")
        ax.grid(alpha=0.3, which="both")
    logarithmic = [left.xaxis, right.xaxis]
    if any(0 < found.median < math.inf for outcomes in runs.values() for found in outcomes):
        left.set_yscale("log")
        logarithmic.append(left.yaxis)
    for axis in logarithmic:
        axis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        axis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.set_minor_formatter(NullFormatter())
    figure.legend(loc="outside lower center", ncols=4, fontsize=8)
    figure.suptitle(title, fontsize=10)
    return figure


def as_data(
    runs: Mapping[int, Sequence[Outcome]], ball: WassersteinBall, about: Mapping[str, Any], left_out: Sequence[str]
) -> dict[str, Any]:
    """Everything the table and the figure show, and how it was made, as plain data.

    Args:
        runs: By the number of steps of MinimalDistance.
        ball: The threat.
        about: What was attacked.
        left_out: Which attacks did not run, and why.
    """
    packages = ("wdro-train", "torch", "foolbox", "pyautoattack", "adv-lib")
    return {
        "command": command(sys.argv[1:]),
        **about,
        "threat": {"p": ball.p, "norm": ball.norm, "delta": ball.delta},
        "git_revision": git_revision(dirty=True),
        "versions": {name: package_version(name) for name in packages},
        "left_out": list(left_out),
        "runs": [
            {
                "steps": steps,
                "attacks": [
                    {
                        "name": found.name,
                        "package": found.package,
                        "median_distance": found.median,
                        "flipped": float(np.isfinite(found.distances).mean()),
                        "accuracy": {f"W_{p:g}": found.left(ball.delta, p) for p in orders(ball)},
                        "gradients": found.backward,
                        "forwards": found.forward,
                        "relative_time": found.seconds / outcomes[0].seconds,
                    }
                    for found in outcomes
                ],
            }
            for steps, outcomes in runs.items()
        ],
    }


def command(arguments: Sequence[str]) -> str:
    """The command line without the folders of this machine: of an absolute path only the last part.

    >>> command(["model.weights=/home/me/net.pt", "--steps", "30"])
    'python -m wdro_train.tools.compare_attacks model.weights=net.pt --steps 30'
    """
    shown = []
    for argument in arguments:
        key, found, value = argument.partition("=")
        path = PurePath(value if found else argument)
        shown.append(f"{key}{found}{path.name}" if found and path.is_absolute() else argument)
        if not found and path.is_absolute():
            shown[-1] = path.name
    return " ".join(["python -m wdro_train.tools.compare_attacks", *shown])


def write(folder: Path, table: str, data: Mapping[str, Any], figure: Figure) -> list[Path]:
    """Write `table.md`, `attacks.json` and the figure as PNG, PDF and SVG.

    Args:
        folder: Where they go; it is made if need be.
        table: In Markdown.
        data: From `as_data`.
        figure: From `draw`.

    Returns:
        The files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "table.md", table)
    write_json(folder / "attacks.json", dict(data), indent=1)
    return [folder / "table.md", folder / "attacks.json", *save(figure, folder / "distance_against_passes")]
