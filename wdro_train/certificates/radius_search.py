"""How far the margins of an image stay positive, by bounds that can be computed at any radius."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from wdro_train.certificates.largest_root import largest_root
from wdro_train.utils.errors import UserError

Spare = Callable[[Tensor, Tensor], Tensor]
"""From indices [k] of images and radii [k] to what the margins' bounds are more than they must be, [k]; falling in the
radius."""

# Shares by which a radius is shortened, one after the other, until it holds in float64; on the two networks of
# tests/reference (41 images, l_2 and l_inf, crown and ibp) all held as they were.
_RETREAT = (0.0, 1e-4, 1e-3, 1e-2, 0.1)


class RadiusSearch(Protocol):
    """Which radii of a batch of images are tried."""

    def __call__(self, spare: Spare, at_zero: Tensor, guess: Tensor, limit: float) -> Tensor:
        """Radii at which the bounds were seen to be more than they must be.

        Args:
            spare: The bounds.
            at_zero: Their values at radius 0, shape [N].
            guess: Radii to begin with, positive, shape [N].
            limit: The largest radius that means anything.

        Returns:
            Shape [N], float64; 0 where there is none.
        """
        ...

    def retreats(self, found: Tensor) -> Iterator[Tensor]:
        """What to try instead of radii that do not hold in higher precision, one after the other.

        Args:
            found: What the search has found, shape [N].

        Yields:
            Shape [N]; those found first, then shorter ones, 0 where there is none.
        """
        ...


class LargestRadius:
    """The largest radius, up to a tolerance.

    Args:
        tolerance: Relative precision of the radius.
    """

    def __init__(self, tolerance: float = 5e-3) -> None:
        if not 0 < tolerance < 1:
            raise UserError(f"tolerance={tolerance:g} is no relative precision; choose one between 0 and 1")
        self.tolerance = float(tolerance)

    def __call__(self, spare: Spare, at_zero: Tensor, guess: Tensor, limit: float) -> Tensor:
        """See `RadiusSearch`."""
        return largest_root(spare, at_zero, guess, limit, self.tolerance)

    def retreats(self, found: Tensor) -> Iterator[Tensor]:
        """See `RadiusSearch`."""
        for share in _RETREAT:
            yield found * (1 - share)


class GivenRadii:
    """The largest of a few radii: all that a curve at these radii, or one threat at p = inf, asks for.

    Args:
        radii: Positive numbers.
    """

    def __init__(self, radii: Sequence[float]) -> None:
        self.radii = tuple(sorted(float(radius) for radius in radii))
        if not self.radii or not self.radii[0] > 0:
            raise UserError(f"radii={list(radii)} are no radii to certify at; give one or more positive numbers")

    def __call__(self, spare: Spare, at_zero: Tensor, guess: Tensor, limit: float) -> Tensor:
        """See `RadiusSearch`; image by image from the least radius on, up to the first that cannot be certified."""
        found = torch.zeros_like(at_zero)
        rows = (at_zero > 0).nonzero().squeeze(1)
        for radius in self.radii:
            if not len(rows):
                break
            rows = rows[spare(rows, torch.full_like(at_zero[rows], radius)) > 0]
            found[rows] = radius
        return found

    def retreats(self, found: Tensor) -> Iterator[Tensor]:
        """See `RadiusSearch`."""
        for _ in self.radii:
            yield found
            found = self._below(found)

    def _below(self, found: Tensor) -> Tensor:
        """The next shorter of the radii; 0 below the shortest."""
        below = torch.zeros_like(found)
        for radius in self.radii:
            below = torch.where(found > radius, radius, below)
        return below
