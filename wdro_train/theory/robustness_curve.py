"""Exact worst-case accuracy over a Wasserstein ball, from per-image distances (theory, section 5).

With d_i the distance from image i to the nearest misclassified point (0 if it is misclassified itself), for every
radius delta and every order p < inf

    1 - A_delta = max { (1/N) sum a_i : 0 <= a_i <= 1, (1/N) sum a_i d_i^p <= delta^p }                   (primal)
                = min over lambda >= 0 of  lambda delta^p + (1/N) sum (1 - lambda d_i^p)_+                   (dual)

a fractional knapsack: the cheapest images are moved first and at most one is split. For p = inf,
1 - A_delta = (1/N) #{d_i <= delta}. Strong duality: Gao and Kleywegt 2016 (arXiv 1604.02199), Blanchet and Murthy 2019.

Distances found by an attack are upper bounds on d_i and give an upper bound on A_delta; certified radii are lower
bounds and give a certified lower bound.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wdro_train.theory import curve_views
from wdro_train.theory.band import Band, Sided, band_width
from wdro_train.utils.errors import UserError
from wdro_train.utils.numbers import parse_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class WorstCase:
    """The worst-case distribution inside one ball, and the dual value that proves it is the worst.

    Attributes:
        accuracy: A_delta, in [0, 1].
        weights: a_i, the share of image i's mass that moves to its boundary point, shape [N], in [0, 1].
        multiplier: The optimal lambda of the dual (0 where the budget is not used up; inf where floating point ends;
            NaN at p = inf).
        marginal_distance: D = lambda^(-1/p), distance of the image that is split (inf if none is).
        dual: The dual's value of 1 - A_delta.
        spent: ((1/N) sum a_i d_i^p)^(1/p), at most delta.
    """

    accuracy: float
    weights: Floats
    multiplier: float
    marginal_distance: float
    dual: float
    spent: float


class RobustnessCurve:
    """Worst-case accuracy A_delta for every radius delta and every order p, from one vector of distances.

    Radii and orders may be written as people type them: `"8/255"`, `"inf"`.

    Args:
        distances: d_i, shape [N]: non-negative, 0 for misclassified images, inf where no flip is known.

    >>> curve = RobustnessCurve([0.0, 1.0, 2.0, 3.0])
    >>> curve.accuracy(1.0, p=math.inf), curve.accuracy(0.5, p=1), curve.clean_accuracy
    (0.5, 0.375, 0.75)
    >>> curve
    RobustnessCurve(4 images, clean accuracy 0.7500, halved at radius 0.866 under W_2 and at 2 under W_inf, \
no image without a flip)
    """

    def __init__(self, distances: ArrayLike) -> None:
        d = np.asarray(distances, dtype=np.float64)
        if d.ndim != 1 or not d.size or np.isnan(d).any() or (d < 0).any():
            raise UserError(f"distances of shape {d.shape}: give at least one number >= 0 for each image, none NaN")
        self.distances = d
        self._order = np.argsort(d, kind="stable")
        self._sorted = d[self._order]

    @classmethod
    def pool(cls, candidates: Iterable[ArrayLike]) -> RobustnessCurve:
        """The curve of the smallest distance of each image over several attacks, never above any of theirs."""
        return cls(np.minimum.reduce([np.asarray(c, dtype=np.float64) for c in candidates]))

    def __len__(self) -> int:
        """Number of images."""
        return int(self.distances.size)

    def __repr__(self) -> str:
        """The set in one line: its size, its clean accuracy, and the radii that halve it."""
        halved = {p: self.budget(self.clean_accuracy / 2, p) for p in (2.0, math.inf)}
        return curve_views.in_one_line(self.distances, self.clean_accuracy, halved)

    @property
    def clean_accuracy(self) -> float:
        """Clean accuracy A, the share of images that are not misclassified to begin with."""
        return float((self.distances > 0).mean())

    def accuracy(self, delta: float | str, p: float | str) -> float:
        """Worst-case accuracy A_delta in one ball.

        Args:
            delta: Radius, >= 0.
            p: Wasserstein order in [1, inf].
        """
        return float(self.accuracies([parse_number(delta, "delta")], p)[0])

    def accuracies(self, deltas: ArrayLike, p: float | str) -> Floats:
        """Worst-case accuracies A_delta on a grid of radii.

        Args:
            deltas: Radii, shape [k].
            p: Wasserstein order in [1, inf].

        Returns:
            Shape [k], in [0, 1].
        """
        grid, p = np.atleast_1d(np.asarray(deltas, dtype=np.float64)), parse_number(p, "p")
        _check(grid, p)
        return np.asarray([1 - sum(self._moved(float(delta), p)) / len(self) for delta in grid])

    def worst_case(self, delta: float | str, p: float | str) -> WorstCase:
        """The worst case inside one ball: weights, multiplier and dual value.

        Args:
            delta: Radius, >= 0.
            p: Wasserstein order in [1, inf].
        """
        delta, p = parse_number(delta, "delta"), parse_number(p, "p")
        _check(np.asarray([delta]), p)
        n = len(self)
        whole, split = self._moved(delta, p)
        weights = np.zeros(n)
        weights[self._order[:whole]] = 1.0
        accuracy = 1 - (whole + split) / n
        if math.isinf(p):
            spent = float(self._sorted[whole - 1]) if whole else 0.0
            return WorstCase(accuracy, weights, math.nan, delta, 1 - accuracy, spent)
        marginal = math.inf
        if whole < n and math.isfinite(self._sorted[whole]):
            weights[self._order[whole]] = split
            marginal = float(self._sorted[whole])
        with np.errstate(over="ignore", under="ignore"):
            multiplier = float(np.float64(marginal) ** -p)  # 0 where marginal = inf
        moved = weights > 0
        scale = float(self.distances[moved].max(initial=0.0)) or 1.0
        cost = float((weights[moved] * (self.distances[moved] / scale) ** p).sum()) / n
        return WorstCase(
            accuracy, weights, multiplier, marginal, self._dual(delta, p, marginal), scale * cost ** (1 / p)
        )

    def budget(self, accuracy: float, p: float | str) -> float:
        """The smallest radius that brings the accuracy down to `accuracy`; inf if no radius is known to.

        Args:
            accuracy: Target in [0, 1].
            p: Wasserstein order in [1, inf].
        """
        if not 0 <= accuracy <= 1:
            raise UserError(f"accuracy={accuracy:g} is not a share; choose one in [0, 1]")
        p = parse_number(p, "p")
        _check(np.zeros(1), p)
        n = len(self)
        mass = _whole_if_rounded(n * (1 - accuracy), n)
        if mass == 0:
            return 0.0
        if math.isinf(p):
            return float(self._sorted[math.ceil(mass) - 1])
        whole = math.floor(mass)
        rest = mass - whole
        used = self._sorted[: whole + (rest > 0)]
        scale = float(used[-1])
        if scale == 0 or math.isinf(scale):
            return scale
        cost = (used / scale) ** p
        cost[whole:] *= rest
        radius = scale * math.pow(float(cost.sum()) / n, 1 / p)
        # Below the least normal number a product may be rounded down by half of itself, to a radius that is too small.
        return radius if radius >= sys.float_info.min else math.nextafter(radius, math.inf)

    def band(self, alpha: float = 0.05, sided: Sided = "two", networks: int = 1) -> Band:
        """How far the curve of the sample may be from that of its distribution (theory, sections 7 and 12).

        With probability >= 1 - alpha over N i.i.d. test images, |A_delta(P) - A_delta(P^)| <= sqrt(log(2/alpha) / 2N)
        for every delta and p (one-sided: log(1/alpha)), by the Dvoretzky-Kiefer-Wolfowitz-Massart inequality.

        Args:
            alpha: Probability of error, in (0, 1/2].
            sided: `lower`, `upper` or `two`. Which ends are valid depends on where the distances come from: see `Band`.
            networks: Number of networks whose bands are to hold jointly; each gets alpha / networks.
        """
        return Band(band_width(len(self), alpha, sided, networks), 1 - alpha, sided, networks)

    def shifted(self, delta: float | str, epsilon: float, p: float | str) -> float:
        """The paper's out-of-sample bound: A_{delta+eps}(P^) <= A_delta(P) whenever W_p(P^, P) <= eps (section 7).

        The paper's probability of that premise, 1 - K exp(-K N eps^n) with n the number of pixels, says nothing for
        images, so eps is the caller's assumption; `band` needs none.

        Args:
            delta: Radius.
            epsilon: Assumed distance between the sample and its distribution.
            p: Wasserstein order in [1, inf].
        """
        if not epsilon >= 0:
            raise UserError(f"epsilon={epsilon:g} is not a distance; choose epsilon >= 0")
        return self.accuracy(parse_number(delta, "delta") + epsilon, p)

    def to_dict(
        self, deltas: Sequence[float | str] | None = None, orders: Sequence[float | str] = curve_views.ORDERS
    ) -> dict[str, list[float]]:
        """The curve as columns of a table with one row for each order and radius, for any library of tables.

        Args:
            deltas: Radii; None: 41 from 0 to the radius that leaves nothing under W_inf, as far as it is known.
            orders: Wasserstein orders.

        Returns:
            The columns `p`, `delta` and `accuracy`.
        """
        return curve_views.columns(*self._lines(deltas, orders))

    def to_frame(
        self, deltas: Sequence[float | str] | None = None, orders: Sequence[float | str] = curve_views.ORDERS
    ) -> Any:
        """The table of `to_dict` as a `pandas.DataFrame`.

        Raises:
            UserError: pandas is not installed.
        """
        return curve_views.frame(self.to_dict(deltas, orders))

    def plot(
        self,
        deltas: Sequence[float | str] | None = None,
        orders: Sequence[float | str] = curve_views.ORDERS,
        ax: Axes | None = None,
    ) -> Axes:
        """Draw accuracy against the radius, one line for each order.

        Args:
            deltas: As for `to_dict`.
            orders: Wasserstein orders.
            ax: Where to draw; None makes a figure.

        Returns:
            The axes, whose `figure` can be saved.
        """
        return curve_views.draw(*self._lines(deltas, orders), ax)

    def _lines(
        self, deltas: Sequence[float | str] | None, orders: Sequence[float | str]
    ) -> tuple[dict[float, Floats], list[float]]:
        """Accuracies by the order, and the radii that they are at."""
        grid = curve_views.radii(deltas, self.distances)
        return {order: self.accuracies(grid, order) for order in (parse_number(p, "p") for p in orders)}, grid

    def _moved(self, delta: float, p: float) -> tuple[int, float]:
        """How many of the nearest images move as a whole, and the share of the next one that still fits."""
        if math.isinf(p) or delta == 0:
            return int(np.searchsorted(self._sorted, delta, side="right")), 0.0
        n = len(self)
        with np.errstate(over="ignore"):
            cost = (self._sorted / delta) ** p  # relative to the radius: no order p under- or overflows what matters
        spent = np.cumsum(cost)
        whole = int(np.searchsorted(spent, n, side="right"))
        if whole == n or not np.isfinite(cost[whole]):
            return whole, 0.0
        before = spent[whole - 1] if whole else 0.0
        return whole, min(max(float((n - before) / cost[whole]), 0.0), 1.0)

    def _dual(self, delta: float, p: float, marginal: float) -> float:
        """The dual objective at lambda = marginal^(-p), in ratios of distances, so that no power overflows."""
        if math.isinf(marginal):
            return float(np.isfinite(self.distances).mean())
        relative = np.minimum(self.distances / marginal, 1.0)
        return float((delta / marginal) ** p + np.mean(1 - relative**p))


def _whole_if_rounded(mass: float, n: int) -> float:
    """A number of images in [0, n] without rounding errors: n (1 - k / n) is the integer n - k only up to those.

    Each of the three operations is off by at most n eps / 2, so 4 n eps covers them.
    """
    nearest = round(mass)
    return float(nearest) if abs(mass - nearest) <= 4 * n * np.finfo(np.float64).eps else mass


def _check(deltas: Floats, p: float) -> None:
    if not p >= 1:
        raise UserError(f"p={p:g} is not a Wasserstein order; choose p in [1, inf]")
    radii = (deltas >= 0) & np.isfinite(deltas)
    if not radii.all():
        raise UserError(f"delta={deltas[~radii][0]:g} is not a radius; choose a finite delta >= 0")
