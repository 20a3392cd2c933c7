"""Two networks on the same images: influences, intervals, and how often they fail on simulated samples."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wdro_train.theory.band import band_width
from wdro_train.theory.enclosure import Enclosure, nothing_certified
from wdro_train.theory.paired_differences import (
    difference_width,
    enclosed_difference,
    enclosed_difference_of_distribution,
    influences,
    paired_difference,
)
from wdro_train.theory.robustness_curve import RobustnessCurve
from wdro_train.utils.errors import UserError

INF = math.inf
ALPHA, REPEATS, N = 0.1, 400, 300
BALLS = [(0.15, 1.0), (0.2, 2.0), (0.3, INF)]
SPREAD = 2 * math.sqrt(ALPHA * (1 - ALPHA) * REPEATS)


def sample(rng, n=N):
    """Distances of two networks: what makes an image hard for one makes it hard for the other."""
    shared, own = rng.random(n), rng.random((2, n))
    a, b = 0.75 * shared + 0.25 * own[0], 0.85 * shared + 0.1 * own[1]
    return np.where(shared < 0.1, 0, a), np.where(shared < 0.12, 0, b)


@pytest.fixture(scope="module")
def truth():
    """The accuracies of both networks on a sample so large that its error does not matter."""
    a, b = (RobustnessCurve(d) for d in sample(np.random.default_rng(9), 500_000))
    return {ball: (a.accuracy(*ball), b.accuracy(*ball)) for ball in BALLS}


def test_simultaneous_width():
    assert difference_width(10_000, 0.05) == pytest.approx(2 * math.sqrt(math.log(4 / 0.05) / 20_000))
    assert difference_width(800, 0.05, networks=5) == 2 * band_width(800, 0.05 / 5)


def test_closed_form_of_the_influences():
    curve = RobustnessCurve([0.0, 1.0, 2.0, 3.0, INF])
    # Five images, budget 5 * 0.5 under W_1: 1.0 is paid and 1.5 of 2.0, so D = 2 and lambda = 1/2.
    assert influences(curve, 0.5, 1).tolist() == [1, 0.5, 0, 0, 0]
    assert influences(curve, 0.75, 1).tolist() == pytest.approx([1, 2 / 3, 1 / 3, 0, 0])
    assert influences(curve, 2.0, INF).tolist() == [1, 1, 1, 0, 0]
    assert influences(curve, 0.0, 2).tolist() == [1, 0, 0, 0, 0]
    assert influences(curve, 100.0, 2).tolist() == [1, 1, 1, 1, 0]  # no budget reaches the last one


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, INF])
def test_influence_is_the_derivative_in_the_weight_of_an_image(p):
    """One more copy of image i among m copies of the set moves 1 - A by (influence_i - their mean) / (N m + 1)."""
    rng = np.random.default_rng(0)
    d = np.where(rng.random(30) < 0.2, 0, rng.random(30))
    delta, copies = 0.35 if p < INF else np.median(d) + 1e-9, 400
    weight = copies * len(d) + 1
    found = influences(RobustnessCurve(d), delta, p)
    before = RobustnessCurve(d).accuracy(delta, p)
    for i in range(len(d)):
        more = RobustnessCurve(np.r_[np.tile(d, copies), d[i]])
        moved = (before - more.accuracy(delta, p)) * weight
        centred = found[i] - (found.mean() if p == INF else _mean_of_dual(d, found, delta, p))
        assert moved == pytest.approx(centred, abs=0.02)


def _mean_of_dual(d, found, delta, p):
    """The constant: 1 - A = lambda delta^p + mean of the influences, and lambda delta^p carries the same weight."""
    return 1 - RobustnessCurve(d).accuracy(delta, p) - RobustnessCurve(d).worst_case(delta, p).multiplier * delta**p


@given(st.integers(0, 10_000), st.sampled_from(BALLS))
def test_the_difference_of_the_truths_is_enclosed(seed, ball):
    rng = np.random.default_rng(seed)
    a, b = sample(rng, 40)
    pair = [
        Enclosure(RobustnessCurve(d * rng.uniform(0.5, 1, 40)), RobustnessCurve(d * rng.uniform(1, 2, 40)))
        for d in (a, b)
    ]
    low, high = enclosed_difference(*pair, *ball)
    assert low - 1e-12 <= RobustnessCurve(a).accuracy(*ball) - RobustnessCurve(b).accuracy(*ball) <= high + 1e-12
    swapped = enclosed_difference(*reversed(pair), *ball)
    assert (swapped.low, swapped.high) == pytest.approx((-high, -low))
    # Attacks alone do not even tell the sign: the difference of upper bounds may lie outside of no enclosure at all.
    bare = [Enclosure(nothing_certified(40), one.attacked) for one in pair]
    assert enclosed_difference(*bare, *ball) == (-bare[1].attacked.accuracy(*ball), bare[0].attacked.accuracy(*ball))


def test_intervals_fail_as_often_as_they_say(truth):
    """The normal interval of the paired influences, and the simultaneous band of the difference of both curves."""
    rng = np.random.default_rng(1)
    missed, missed_band = dict.fromkeys(BALLS, 0), 0
    for _ in range(REPEATS):
        a, b = (RobustnessCurve(d) for d in sample(rng))
        gaps = []
        for ball in BALLS:
            exact = truth[ball][0] - truth[ball][1]
            found = paired_difference(a, b, *ball, ALPHA)
            missed[ball] += not found.interval.low <= exact <= found.interval.high
            gaps.append(abs(found.value - exact))
        missed_band += max(gaps) > difference_width(N, ALPHA)
    for count in missed.values():
        assert ALPHA * REPEATS - 2 * SPREAD <= count <= ALPHA * REPEATS + SPREAD + 0.01 * REPEATS
    assert missed_band <= ALPHA * REPEATS + SPREAD


def test_pairing_is_what_makes_the_interval_short():
    rng = np.random.default_rng(2)
    a, b = (RobustnessCurve(d) for d in sample(rng))
    other = RobustnessCurve(rng.permutation(b.distances))  # the same curve, of other images
    for ball in BALLS:
        paired, unpaired = paired_difference(a, b, *ball, ALPHA), paired_difference(a, other, *ball, ALPHA)
        assert paired.value == pytest.approx(unpaired.value)
        assert paired.standard_error < 0.6 * unpaired.standard_error
        assert paired.interval.high - paired.interval.low < difference_width(N, ALPHA)


@pytest.mark.parametrize("ball", BALLS)
def test_a_bootstrap_over_images_agrees(ball):
    """The spread of the difference over images drawn with replacement, the pairs kept together."""
    rng = np.random.default_rng(3)
    a, b = sample(rng)
    drawn = rng.integers(N, size=(600, N))
    values = [RobustnessCurve(a[i]).accuracy(*ball) - RobustnessCurve(b[i]).accuracy(*ball) for i in drawn]
    found = paired_difference(RobustnessCurve(a), RobustnessCurve(b), *ball, ALPHA)
    assert found.standard_error == pytest.approx(np.std(values), rel=0.12)
    ends = np.quantile(values, [ALPHA / 2, 1 - ALPHA / 2])
    assert ends == pytest.approx(found.interval, abs=0.35 * (found.interval.high - found.interval.low) / 2)


def test_enclosed_differences_hold_on_the_distribution(truth):
    rng = np.random.default_rng(4)
    missed = dict.fromkeys(BALLS, 0)
    for _ in range(150):
        pair = [
            Enclosure(RobustnessCurve(d * rng.uniform(0.97, 1, N)), RobustnessCurve(d * rng.uniform(1, 1.03, N)))
            for d in sample(rng)
        ]
        for ball in BALLS:
            low, high = enclosed_difference_of_distribution(*pair, *ball, ALPHA)
            inner = enclosed_difference(*pair, *ball)
            assert low < inner.low <= inner.high < high
            missed[ball] += not low <= truth[ball][0] - truth[ball][1] <= high
    assert max(missed.values()) <= ALPHA * 150 + 2 * math.sqrt(ALPHA * (1 - ALPHA) * 150)


def test_too_few_images_that_differ_give_no_interval():
    a = RobustnessCurve(np.r_[np.full(95, 1.0), np.full(5, 0.1)])
    b = RobustnessCurve(np.full(100, 1.0))
    found = paired_difference(a, b, 0.5, INF)
    assert found.value == pytest.approx(-0.05)
    assert math.isnan(found.interval.low)
    assert math.isnan(found.interval.high)
    assert math.isnan(paired_difference(a, a, 0.5, 2).interval.low)


def test_other_images_are_refused():
    with pytest.raises(UserError, match="2 images and 3 cannot be paired"):
        paired_difference(RobustnessCurve([1.0, 2.0]), RobustnessCurve([1.0, 2.0, 3.0]), 0.1, 2)
    with pytest.raises(UserError, match=r"alpha=0\.7"):
        paired_difference(RobustnessCurve([1.0]), RobustnessCurve([1.0]), 0.1, 2, 0.7)
