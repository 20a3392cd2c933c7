"""A certificate and an attack enclose the exact worst case, for every radius and order."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wdro_train.theory.enclosure import Enclosure, nothing_certified
from wdro_train.theory.robustness_curve import RobustnessCurve
from wdro_train.utils.errors import UserError

INF = math.inf
ORDERS = st.sampled_from([1.0, 1.5, 2.0, 10.0, INF])


@given(
    st.lists(st.floats(0, 3), min_size=1, max_size=12),
    st.floats(0, 1),
    st.floats(0, 2),
    st.floats(0, 3),
    ORDERS,
)
def test_the_truth_lies_inside(distances, short, long, delta, p):
    d = np.asarray(distances)
    both = Enclosure(RobustnessCurve(d * short), RobustnessCurve(d * (1 + long)))
    low, high = both.accuracy(delta, p)
    assert low <= RobustnessCurve(d).accuracy(delta, p) + 1e-12
    assert RobustnessCurve(d).accuracy(delta, p) <= high + 1e-12
    assert not both.contradictions
    ratio = both.ratio(delta, p)
    if (d > 0).any():
        assert ratio.low <= RobustnessCurve(d).accuracy(delta, p) / (d > 0).mean() + 1e-12 <= ratio.high + 2e-12
    else:
        assert math.isnan(ratio.low)
        assert math.isnan(ratio.high)


def test_closed_forms():
    """Four images, one wrong: at p = inf counts of distances; under W_1 of radius 1/4 a budget of one distance of 1."""
    both = Enclosure(RobustnessCurve([0, 0.1, 0.3, 1.0]), RobustnessCurve([0, 0.2, 0.4, INF]))
    assert both.accuracy(0.2, INF) == (0.5, 0.5)
    assert both.accuracy(0.3, INF) == (0.25, 0.5)
    assert both.ratio(0.3, INF) == pytest.approx((1 / 3, 2 / 3))
    # Certified: 0.1 + 0.3 are paid, 0.6 of the last one. Attacked: 0.2 + 0.4, and nothing is left to flip.
    assert both.accuracy(0.25, 1) == pytest.approx((0.4 / 4, 0.25))


def test_curves_of_other_images_are_refused():
    with pytest.raises(UserError, match="2 images and an attack on 3"):
        Enclosure(RobustnessCurve([0.1, 0.2]), RobustnessCurve([0.1, 0.2, 0.3]))


def test_a_flip_inside_a_certified_radius_is_counted():
    attacked = RobustnessCurve([0.0, 0.2, 0.3, INF])
    assert Enclosure(RobustnessCurve([0.0, 0.2, 0.31, INF]), attacked).contradictions == 1
    assert Enclosure(RobustnessCurve([0.1, 0.2, 0.3, 5.0]), attacked).contradictions == 1
    assert Enclosure(RobustnessCurve([0.0, 0.2 * (1 + 1e-8), 0.3, 5.0]), attacked).contradictions == 0


def test_without_a_certificate_the_lower_end_is_zero():
    both = Enclosure(nothing_certified(2), RobustnessCurve([0.3, 0.4]))
    assert both.accuracy(0.1, 2) == pytest.approx((0.0, 1 - 0.1**2 / 0.3**2))  # one image of two pays for its share
    assert not both.contradictions
