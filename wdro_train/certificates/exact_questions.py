"""At which radius to ask next whether an image is robust, given the interval that holds its distance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class Question(Protocol):
    """Chooses the radii at which an exact method is asked.

    Attributes:
        share: The share of the time left that one question may take.
    """

    @property
    def share(self) -> float:
        """See the attributes."""
        ...

    def __call__(self, low: float, high: float) -> float | None:
        """The next radius to ask at.

        Args:
            low: Certified radius of the image.
            high: Distance to the nearest flip, or to what could not be answered; inf if there is neither.

        Returns:
            A radius in [low, high); None if the interval is narrow enough.
        """
        ...


@dataclass(frozen=True)
class AtRadius:
    """One question, at one radius: all that matters under W_inf.

    Attributes:
        radius: Where.
        share: All of the time.
    """

    radius: float
    share: float = 1.0

    def __call__(self, low: float, high: float) -> float | None:
        """The radius, if it is neither certified nor known to be too large."""
        return self.radius if low <= self.radius < high else None


@dataclass(frozen=True)
class Bisection:
    """The middle of the interval, again and again.

    Attributes:
        largest: The knapsack does not tell distances above it apart, so none is asked about.
        tolerance: Width, relative to the upper end, at which an interval is narrow enough.
        share: Half of the time left, so that one question that is too hard leaves time for easier ones.
    """

    largest: float
    tolerance: float
    share: float = 0.5

    def __call__(self, low: float, high: float) -> float | None:
        """The middle of the part of the interval that matters, if that is wide."""
        top = min(high, self.largest)
        return (low + top) / 2 if top - low > self.tolerance * top else None
