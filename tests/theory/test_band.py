"""What may be said about the distribution: closed forms, and how often it fails on simulated samples."""

import math

import numpy as np
import pytest

from wdro_train.theory.band import Band, Interval, band_width, level_with_certificates
from wdro_train.theory.enclosure import Enclosure
from wdro_train.theory.robustness_curve import RobustnessCurve
from wdro_train.utils.errors import UserError

INF = math.inf
ALPHA, REPEATS, N = 0.1, 300, 100
MOST = ALPHA * REPEATS + 2 * math.sqrt(ALPHA * (1 - ALPHA) * REPEATS)  # failures, allowing for the finite repeats
ORDERS = (1.0, 2.0, INF)
DELTAS = np.linspace(0, 0.5, 21)
WRONG = 0.2


def truth(deltas, p):
    """A_delta where a fifth of the images are wrong and the distances of the others are uniform on [0, 1].

    Images up to D move, at a cost of 0.8 D^(p+1) / (p+1) = delta^p.
    """
    reach = deltas if p == INF else ((p + 1) * deltas**p / (1 - WRONG)) ** (1 / (p + 1))
    return (1 - WRONG) * (1 - np.minimum(reach, 1))


def sample(rng, n=N):
    """Distances of that distribution."""
    return np.where(rng.random(n) < WRONG, 0, rng.random(n))


def test_widths():
    assert band_width(10_000, 0.05) == pytest.approx(math.sqrt(math.log(40) / 20_000)) == pytest.approx(0.013581, 1e-4)
    assert band_width(10_000, 0.05, "upper") == pytest.approx(math.sqrt(math.log(20) / 20_000))
    assert band_width(500, 0.05, networks=3) == band_width(500, 0.05 / 3)
    assert band_width(500, 0.05, "lower", networks=4) == band_width(500, 0.05 / 4, "lower")
    band = RobustnessCurve(np.ones(500)).band(0.05, networks=3)
    assert (band.width, band.level, band.networks) == (band_width(500, 0.05 / 3), 0.95, 3)
    assert level_with_certificates(0.95, [1.0, 1.0]) == 0.95
    assert level_with_certificates(0.95, [0.999, 1.0, 0.99]) == pytest.approx(0.939)
    assert level_with_certificates(0.5, [0.4]) == 0


@pytest.mark.parametrize(("arguments", "word"), [((5, 0.0), "alpha=0"), ((0, 0.1), "images=0")])
def test_bad_input(arguments, word):
    with pytest.raises(UserError, match=word):
        band_width(*arguments)
    with pytest.raises(UserError, match="networks=0"):
        band_width(5, 0.1, networks=0)


def test_ratio_of_the_distribution():
    band = Band(0.1, 0.95, "two")
    assert band.ratio(Interval(0.3, 0.4), 0.8) == pytest.approx((0.2 / 0.9, 0.5 / 0.7))
    assert band.ratio(Interval(0.05, 0.8), 0.8) == pytest.approx(
        (0.0, 1.0)
    )  # no accuracy is negative, no ratio above 1
    assert band.ratio(Interval(0.0, 0.05), 0.1) == (0.0, 1.0)  # A may be 0
    # One end of the clean accuracy is unknown: 1 above, 0 below.
    assert Band(0.1, 0.95, "lower").ratio(Interval(0.3, 0.4), 0.8) == pytest.approx((0.2, 1.0))
    assert Band(0.1, 0.95, "upper").ratio(Interval(0.3, 0.4), 0.8) == (0.0, 1.0)


@pytest.mark.parametrize("sided", ["two", "lower", "upper"])
def test_ends_around_attacks_and_certificates_fail_no_more_often_than_they_say(sided):
    """Upper end around A(d^), lower end around A(r), for all radii and orders at once, and the ratio with them."""
    rng = np.random.default_rng(0)
    failures, tightest = 0, 0
    for _ in range(REPEATS):
        d = sample(rng)
        both = Enclosure(RobustnessCurve(d * rng.uniform(0.9, 1, N)), RobustnessCurve(d * rng.uniform(1, 1.1, N)))
        band = both.attacked.band(ALPHA, sided)
        failed = False
        for p in ORDERS:
            exact = truth(DELTAS, p)
            low, high = (curve.accuracies(DELTAS, p) for curve in (both.certified, both.attacked))
            ends = np.array([(band.lower_end(a), band.upper_end(b)) for a, b in zip(low, high, strict=True)])
            ratios = [band.ratio(Interval(a, b), both.attacked.clean_accuracy) for a, b in zip(low, high, strict=True)]
            failed |= bool((exact < ends[:, 0] - 1e-12).any() or (exact > ends[:, 1] + 1e-12).any())
            if not failed:  # the ratio spends no further probability: it holds whenever the band does
                ratio = exact / (1 - WRONG)
                assert all(r.low - 1e-12 <= one <= r.high + 1e-12 for r, one in zip(ratios, ratio, strict=True))
        failures += failed
        exact = truth(DELTAS, INF)
        below, above = (f(both.attacked.accuracies(DELTAS, INF) - exact) for f in (np.min, np.max))
        tightest += {"two": max(-below, above), "lower": above, "upper": -below}[sided] > band.width / 2
    assert failures <= MOST
    assert tightest > REPEATS / 4  # and half the width would fail often: the simulation is able to see a wrong band


def test_a_lower_end_around_an_attack_is_not_valid():
    """A network whose gradients are hidden has infinite distances: nothing below its attack's accuracy is known."""
    rng = np.random.default_rng(1)
    d = sample(rng)
    attacked = RobustnessCurve(np.where(d > 0, INF, 0))
    band = attacked.band(ALPHA)
    assert attacked.accuracy(0.3, 2) - band.width > truth(np.array([0.3]), 2)[0]
    nothing = Enclosure(RobustnessCurve(np.zeros(N)), attacked)
    low, high = nothing.accuracy(0.3, 2)
    assert band.lower_end(low) == 0 <= truth(np.array([0.3]), 2)[0] <= band.upper_end(high)


@pytest.mark.slow
def test_several_networks_jointly():
    """Bands at alpha / k hold for all networks at once; bands at alpha, each by itself, would not."""
    rng = np.random.default_rng(2)
    k, joint, single = 6, 0, 0
    for _ in range(REPEATS):
        gaps = []
        for _ in range(k):
            curve = RobustnessCurve(sample(rng, 60))
            gaps.append(max(np.abs(curve.accuracies(DELTAS, p) - truth(DELTAS, p)).max() for p in ORDERS))
        joint += max(gaps) > band_width(60, ALPHA, networks=k)
        single += max(gaps) > band_width(60, ALPHA)
    assert joint <= MOST
    assert single > MOST


def test_a_certificate_that_may_fail_lowers_the_level():
    """With probability beta all radii of a sample are nonsense: the lower end fails no more often than alpha + beta."""
    rng = np.random.default_rng(3)
    beta, failures = 0.2, 0
    for _ in range(REPEATS):
        radii = sample(rng) * (1e9 if rng.random() < beta else 1.0)
        curve = RobustnessCurve(radii)
        band = curve.band(ALPHA, "lower")
        exact = [(p, truth(DELTAS, p)) for p in ORDERS]
        failures += any((curve.accuracies(DELTAS, p) - band.width > one + 1e-12).any() for p, one in exact)
    level = level_with_certificates(1 - ALPHA, [1 - beta])
    assert level == pytest.approx(0.7)
    spread = 2 * math.sqrt(level * (1 - level) * REPEATS)
    assert failures <= (1 - level) * REPEATS + spread
    assert failures > MOST  # the certificate's failures are seen: the band's own level would be wrong
