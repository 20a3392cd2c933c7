"""Where falling functions cross zero, in few evaluations, each of them of many functions at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# Relaxed margins of the two networks of tests/reference (41 images, l_2 and l_inf, both methods, a tolerance of 5e-3)
# took 5 to 8 evaluations in the median and at most 12. After 15 false position has failed and bisection takes over,
# which needs another 15 at most for brackets of up to 2^15 tolerances.
_EVALUATIONS, _PATIENCE = 30, 15
_EDGE = 0.02  # trials keep this share of the bracket away from its ends, so that each shortens it
_GROWTH = 4.0  # how much farther the next trial is at most while no radius is known to be too large


def largest_root(
    spare: Callable[[Tensor, Tensor], Tensor], at_zero: Tensor, guess: Tensor, limit: float, tolerance: float
) -> Tensor:
    """Where falling functions cross zero, approached from below: by false position, and in the end by bisection.

    A relaxed margin falls steeply once the bounds of deeper layers have become loose, so negative values enter as
    -log(1 - value / value at 0). Each step aims past the root of the chord by 0.45 of the tolerance, away from the end
    of the bracket that was moved last, so that both ends close in on the crossing. While no radius is known to be too
    large, the chord is that from radius 0, whose root is too large for a function that falls ever more steeply.

    Args:
        spare: Takes indices [k] and radii [k] and gives the functions' values [k].
        at_zero: The functions' values at 0, shape [N].
        guess: First radii to try, positive, shape [N].
        limit: The largest radius to try.
        tolerance: Relative precision.

    Returns:
        Radii at which the functions were seen to be positive, float64, shape [N]; 0 where none was.
    """
    low, high = torch.zeros_like(guess), torch.full_like(guess, torch.inf)
    at_low, at_high = torch.ones_like(guess), torch.zeros_like(guess)
    trial = guess.clamp(max=limit)
    rows = (at_zero > 0).nonzero().squeeze(1)
    for step in range(_EVALUATIONS):
        if not len(rows):
            break
        value = spare(rows, trial[rows]) / at_zero[rows]
        fits = value > 0
        inside, outside = rows[fits], rows[~fits]
        low[inside], at_low[inside] = trial[inside], value[fits]
        high[outside], at_high[outside] = trial[outside], -torch.log1p(-value[~fits])
        wide = (high[rows] - low[rows] > tolerance * low[rows]) & (low[rows] < limit)
        rows, fits = rows[wide], fits[wide]
        a, b = low[rows], high[rows]
        share = at_low[rows] / (at_low[rows] - at_high[rows])
        beyond = 1 + torch.where(fits, 0.45, -0.45) * tolerance
        share = torch.where(b < torch.inf, (beyond * (a + (b - a) * share) - a) / (b - a), 0.0).clamp(_EDGE, 1 - _EDGE)
        inner = a + (b - a) * (share if step < _PATIENCE else 0.5)
        outer = a * (beyond / (1 - at_low[rows]).clamp(min=1 / _GROWTH)).clamp(min=1 + _EDGE, max=_GROWTH)
        trial[rows] = torch.where(b < torch.inf, inner, outer.clamp(max=limit))
    return low
