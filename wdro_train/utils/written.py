"""Radii as people type them: who asks for 4/255 reads 4/255 in every table and figure, and not 0.01569."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any, Self

_TYPED = re.compile(r"\d+(\.\d*)?(e-?\d+)?(/\d+(\.\d*)?)?", re.IGNORECASE)
_DIGITS = 4  # of a radius that nobody has typed
_ROUNDING = 1e-9  # relative: more than a few products and quotients in float64 lose
# Distances of marks on an axis, in units of the fraction's denominator: round ones, and powers of 2, as radii of images
# are. At most so many intervals are legible in a figure a third of a page wide.
_STEPS = (0.1, 0.2, 0.25, 0.5, 1, 2, 4, 5, 8, 10, 16, 20, 25, 32, 40, 50, 64, 80, 100, 128, 160, 200, 256, 400, 512)
_LEAST_INTERVALS, _MOST_INTERVALS = 4, 8


class WrittenRadii:
    """Writes radii as they were typed, and multiples of a typed fraction as fractions of the same denominator.

    Args:
        threat: The radius of the threat, as typed or as a number; None for none.
        typed: Other radii, as typed or as numbers. What is neither is left out.

    >>> written = WrittenRadii("8/255", ["0.0125"])
    >>> written(8 / 255), written(2 / 255), written(0.0125), written(0.123456)
    ('8/255', '2/255', '0.0125', '0.1235')
    >>> [text for _, text in written.marks(16 / 255)]
    ['0', '2/255', '4/255', '6/255', '8/255', '10/255', '12/255', '14/255', '16/255']
    """

    def __init__(self, threat: Any = None, typed: Iterable[Any] = ()) -> None:
        self._texts: dict[str, str] = {}
        units = []
        for one in (threat, *typed):
            text = _text(one)
            if text is not None:
                self._texts.setdefault(_key(_value(text)), text)
                units += [_denominator(text)] if "/" in text else []
        first = _text(threat)
        # Denominator in which radii are written that follow from the threat's, and the one of the marks.
        self._denominator = None if first is None or "/" not in first else _denominator(first)
        self._unit = units[0] if units else None
        self._threat = None if first is None else _value(first)

    def __call__(self, radius: float) -> str:
        """A radius for a text.

        Args:
            radius: A number; NaN is a dash.
        """
        radius = float(radius)
        if math.isnan(radius):
            return "–"
        if math.isinf(radius):
            return "∞"
        typed = self._texts.get(_key(radius))
        if typed is not None:
            return typed
        if self._denominator is not None and radius > 0:
            multiple = radius * self._denominator
            text = f"{multiple:.{_DIGITS}g}"
            if abs(float(text) - multiple) <= _ROUNDING * multiple:
                return f"{text}/{self._denominator:g}"
        return f"{radius:.{_DIGITS}g}"

    def marks(self, highest: float) -> list[tuple[float, str]]:
        """Where an axis from 0 to `highest` has its marks, and what they say; empty if no fraction was typed.

        Args:
            highest: The end of the axis.
        """
        if self._unit is None or not 0 < highest < math.inf:
            return []
        end = highest * self._unit * (1 + _ROUNDING)
        fitting = [step for step in _STEPS if _LEAST_INTERVALS <= end / step < _MOST_INTERVALS + 1]
        if not fitting:
            return []
        threat = 0.0 if self._threat is None else self._threat * self._unit
        step = next((one for one in fitting if threat and _whole(threat / one)), fitting[0])
        multiples = [k * step for k in range(math.floor(end / step) + 1)]
        return [(m / self._unit, f"{m:g}/{self._unit:g}" if m else "0") for m in multiples]


class TypedRadius(float):
    """A number that remembers how it was typed.

    Args:
        number: Its value.
        text: As typed.

    >>> radius = TypedRadius(8 / 255, "8/255")
    >>> radius == 8 / 255, radius.text
    (True, '8/255')
    """

    def __new__(cls, number: float, text: str) -> Self:
        """The number alone is what a float is made of."""
        return super().__new__(cls, number)

    def __init__(self, number: float, text: str) -> None:
        self.text = text


def _text(typed: Any) -> str | None:
    """What was typed, if it is a radius; numbers with as many digits as they have."""
    if isinstance(typed, bool) or not isinstance(typed, int | float | str):
        return None
    text = typed.strip() if isinstance(typed, str) else f"{typed:.12g}"
    return text if _TYPED.fullmatch(text) and math.isfinite(_value(text)) else None


def _value(text: str) -> float:
    """The number, NaN for a fraction over 0."""
    numerator, _, denominator = text.partition("/")
    if not denominator:
        return float(numerator)
    return float(numerator) / float(denominator) if float(denominator) else math.nan


def _denominator(text: str) -> float:
    return float(text.partition("/")[2])


def _key(radius: float) -> str:
    return f"{radius:.12g}"


def _whole(number: float) -> bool:
    return abs(number - round(number)) <= _ROUNDING * max(1.0, abs(number))
