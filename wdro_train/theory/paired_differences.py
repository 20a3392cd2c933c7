"""Which of two networks keeps more accuracy, judged on the same images (theory, section 12).

Write a and b for the networks, N for the number of images. For all radii and orders at once, with probability at least
1 - alpha,

    | (A_delta^a - A_delta^b)(P) - (A_delta^a - A_delta^b)(P^) | <= 2 sqrt(log(4 / alpha) / (2 N)),

the bands of both at alpha / 2. At one ball far less: by the envelope theorem the influence of image i on 1 - A_delta
is, up to a constant,

    (1 - lambda d_i^p)_+,    at p = inf: 1{d_i <= delta},

so the difference of the two networks' influences has a variance over the images, in which what makes an image hard for
both cancels, and gives a normal interval (asymptotic in N).

With d_i the distances that attacks found, these are statements about the *attacks' upper bounds*, and need distances
that are functions of each image alone. The truths need certificates, too: their difference lies between
certified a - attacked b and attacked a - certified b.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from wdro_train.theory.band import Interval, band_width
from wdro_train.theory.enclosure import Enclosure
from wdro_train.theory.robustness_curve import Floats, RobustnessCurve
from wdro_train.utils.errors import UserError

# Images on which the networks must differ: with fewer the variance of a share is not known well enough for the normal
# distribution (the usual rule for a proportion asks for ten successes).
_LEAST = 10


@dataclass(frozen=True)
class PairedDifference:
    """The difference of two accuracies of one ball on the same images, and its normal interval.

    Attributes:
        value: A_delta of the first network minus that of the second, on the sample.
        interval: Where it lies on the distribution, with probability near the level; NaN where the two networks differ
            on fewer than ten images, which is too few for the normal distribution.
        standard_error: Of `value`.
    """

    value: float
    interval: Interval
    standard_error: float


def influences(curve: RobustnessCurve, delta: float, p: float) -> Floats:
    """The influence of each image on 1 - A_delta, up to a constant: (1 - lambda d_i^p)_+; at p = inf 1{d_i <= delta}.

    Args:
        curve: Of the network, from one distance an image.
        delta: Radius, >= 0.
        p: Wasserstein order in [1, inf].

    Returns:
        Shape [N], in [0, 1], in the order of the images.
    """
    worst = curve.worst_case(delta, p)
    if math.isinf(p):
        return worst.weights
    if math.isinf(worst.marginal_distance):  # the budget moves whatever can be moved, so lambda = 0
        return np.isfinite(curve.distances).astype(np.float64)
    return np.asarray(1 - np.minimum(curve.distances / worst.marginal_distance, 1.0) ** p)


def difference_width(images: int, alpha: float = 0.05, networks: int = 2) -> float:
    """Half-width of the difference of two curves, for all radii and orders at once.

    Twice the width of the networks' joint band, so if the bands hold, all differences between any two of them do.

    Args:
        images: Number N of images, the same for all networks.
        alpha: Probability of error, in (0, 1/2].
        networks: Number of networks that are compared with one another.
    """
    return 2 * band_width(images, alpha, "two", networks)


def paired_difference(
    first: RobustnessCurve, second: RobustnessCurve, delta: float, p: float, alpha: float = 0.05
) -> PairedDifference:
    """The difference of two curves at one ball, with the normal interval of the paired influences.

    Args:
        first: Of one network, each distance a function of its image alone.
        second: Of the other network, on the same images in the same order.
        delta: Radius, >= 0.
        p: Wasserstein order in [1, inf].
        alpha: Probability of error, in (0, 1/2]; half of it beyond each end.

    Raises:
        UserError: The curves have different numbers of images, or no such probability.
    """
    n = len(first)
    if n != len(second):
        raise UserError(f"{n} images and {len(second)} cannot be paired; judge both networks on the same images")
    if not 0 < alpha <= 0.5:
        raise UserError(f"alpha={alpha:g} is no error probability of an interval; choose it in (0, 0.5]")
    value = first.accuracy(delta, p) - second.accuracy(delta, p)
    apart = influences(second, delta, p) - influences(first, delta, p)
    error = float(np.std(apart, ddof=1)) / math.sqrt(n) if n > 1 else math.nan
    if np.count_nonzero(apart) < _LEAST:
        return PairedDifference(value, Interval(math.nan, math.nan), error)
    reach = NormalDist().inv_cdf(1 - alpha / 2) * error
    return PairedDifference(value, Interval(max(-1.0, value - reach), min(1.0, value + reach)), error)


def enclosed_difference(first: Enclosure, second: Enclosure, delta: float, p: float) -> Interval:
    """Where the difference of the true worst-case accuracies on the sample lies.

    Between certified minus attacked and attacked minus certified accuracy, without chance.

    Args:
        first: Of one network.
        second: Of the other network, on the same images in the same order.
        delta: Radius, >= 0.
        p: Wasserstein order in [1, inf].
    """
    a, b = first.accuracy(delta, p), second.accuracy(delta, p)
    return Interval(a.low - b.high, a.high - b.low)


def enclosed_difference_of_distribution(
    first: Enclosure, second: Enclosure, delta: float, p: float, alpha: float = 0.05
) -> Interval:
    """Where the difference of the true worst-case accuracies on the distribution lies, at one ball.

    The lower end of the paired difference certified minus attacked, and the upper end of attacked minus certified, each
    missed with probability alpha / 2 at most (asymptotically).

    Args:
        first: Of one network.
        second: Of the other network, on the same images in the same order.
        delta: Radius, >= 0.
        p: Wasserstein order in [1, inf].
        alpha: Probability of error, in (0, 1/2].
    """
    low = paired_difference(first.certified, second.attacked, delta, p, alpha).interval.low
    high = paired_difference(first.attacked, second.certified, delta, p, alpha).interval.high
    return Interval(low, high)
