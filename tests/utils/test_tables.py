"""Bounds are rounded to the side on which they stay bounds."""

import math
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wdro_train.evaluation.report import fields
from wdro_train.utils.tables import rounded_down, rounded_up

_SHARES = st.integers(1, 10_000).flatmap(lambda n: st.integers(-n, n).map(lambda k: k / n)) | st.floats(-1, 1)
_SUMS = 1e-9  # per cent: what is computed from float64 sums over images is no more exact


@given(_SHARES, st.integers(1, 4))
def test_a_printed_bound_is_one(share, digits):
    low, high = (Decimal(written(share, digits)) for written in (rounded_down, rounded_up))
    assert float(low) <= share + _SUMS
    assert float(high) >= share - _SUMS
    assert high - low <= Decimal(10) ** -digits


@given(_SHARES, _SHARES)
def test_a_printed_interval_contains_the_computed_one(one, other):
    low, high = sorted((one, other))
    ends = [float(end) for end in fields.between(low, high).removesuffix(" %").split(" .. ")]
    assert ends == [float(fields.at_least(low).removesuffix(" %")), float(fields.at_most(high).removesuffix(" %"))]
    assert ends[0] <= 100 * low + _SUMS
    assert ends[1] >= 100 * high - _SUMS


@pytest.mark.parametrize("tenths", range(1001))
def test_what_needs_no_rounding_is_printed_as_it_is(tenths):
    assert fields.at_least(tenths / 1000) == fields.at_most(tenths / 1000) == f"{tenths / 10:.1f} %"


def test_what_is_no_number():
    assert fields.at_least(None) == fields.at_most(math.nan) == fields.between(None, 0.5) == "–"
    assert rounded_up(math.inf) == "inf"
    assert fields.between(-1e-12, 1e-12) == "0.0 .. 0.0 %"
