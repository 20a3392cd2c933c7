"""Radii are written as they were typed, and what follows from a fraction as a fraction of the same denominator."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wdro_train.utils.written import WrittenRadii


@pytest.mark.parametrize(
    ("threat", "radius", "text"),
    [
        ("4/255", 4 / 255, "4/255"),
        ("4/255", 1 / 255, "1/255"),
        ("1/255", 0.25 / 255, "0.25/255"),
        ("4/255", 0.1, "25.5/255"),
        ("4/255", 0.123456789, "0.1235"),  # no short multiple
        ("0.0123456", 0.0123456, "0.0123456"),
        (0.0123456, 0.0123456, "0.0123456"),
        ("1e-3", 0.001, "1e-3"),
        (" 8/255 ", 8 / 255, "8/255"),
        (None, 4 / 255, "0.01569"),
        ("<b>", 0.5, "0.5"),
        ("1/0", 1.0, "1"),
        ("8/255", 0.0, "0"),
        ("8/255", math.inf, "∞"),
        ("8/255", math.nan, "–"),
    ],
)
def test_text(threat, radius, text):
    assert WrittenRadii(threat)(radius) == text


def test_other_radii_that_were_typed():
    written = WrittenRadii("0.1", ["3/255", 0.125, True, None, "inf"])
    assert [written(radius) for radius in (0.1, 3 / 255, 0.125, 6 / 255)] == ["0.1", "3/255", "0.125", "0.02353"]
    assert written.marks(0.1)[1][1].endswith("/255")  # the axis can be marked all the same


@given(st.integers(1, 64), st.sampled_from([1, 10, 255, 256, 1020]))
def test_a_fraction_and_its_halves_are_what_they_say(numerator, denominator):
    written = WrittenRadii(f"{numerator}/{denominator}")
    for share in (0.25, 0.5, 1, 2):
        radius = share * (numerator / denominator)
        top, _, bottom = written(radius).partition("/")
        assert float(top) / float(bottom or 1) == pytest.approx(radius, rel=1e-9)


@given(st.integers(1, 64), st.floats(0.3, 40))
def test_marks_say_where_they_are(numerator, times):
    highest = times * numerator / 255
    marks = WrittenRadii(f"{numerator}/255").marks(highest)
    assert len(marks) <= 9
    assert marks == [] or (marks[0] == (0.0, "0") and len(marks) >= 4)
    for place, text in marks:
        top, _, bottom = text.partition("/")
        assert place == pytest.approx(float(top) / float(bottom or 1))
        assert place <= highest * (1 + 1e-6)


def test_the_threat_is_marked_where_round_marks_allow_it():
    for threat in ("1/255", "2/255", "3/255", "8/255", "10/255", "16/255", "128/255"):
        top, _, bottom = threat.partition("/")
        assert threat in [text for _, text in WrittenRadii(threat).marks(2 * int(top) / int(bottom))]


def test_decimals_have_no_marks():
    assert WrittenRadii("0.1").marks(0.2) == []
    assert WrittenRadii("8/255").marks(math.inf) == WrittenRadii("8/255").marks(0.0) == []
