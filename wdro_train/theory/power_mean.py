"""Power means (E v^e)^(1/e) of non-negative numbers that lie in several batches and on several ranks.

Upsilon is the power mean of dual gradient norms with exponent q (theory, section 2), and the cost of a coupling is the
power mean of displacements with exponent p (section 1); both are computed here and nowhere else.

What is passed around is a *moment*, a float64 tensor [3] = (m, s, w) of the largest value m, the sum
s = sum_i w_i (v_i / m)^e and the total weight w = sum_i w_i, from which the power mean is m (s / w)^(1/e). Dividing by
the largest value first keeps 1e-20 and 1e+20 alike from under- and overflow, for any exponent, without a constant that
could dominate.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def moment(values: Tensor, weight: Tensor | None, exponent: float) -> Tensor:
    """What one batch contributes to a power mean.

    Args:
        values: Non-negative numbers, shape [B].
        weight: Non-negative weights, shape [B] (None: all one). Weight 0 leaves a value out altogether.
        exponent: e in (0, inf].

    Returns:
        The moment (m, s, w), float64, shape [3].
    """
    v = values.detach().double()
    w = torch.ones_like(v) if weight is None else weight.detach().to(v)
    v = torch.where(w > 0, v, 0.0)
    largest = v.amax() if v.numel() else v.new_zeros(())
    return torch.stack([largest, (w * _scaled_power(v, largest, exponent)).sum(), w.sum()])


def merge(moments: Tensor, exponent: float) -> Tensor:
    """The moment of the union of disjoint parts, such as batches or ranks.

    Args:
        moments: Moments of disjoint parts, shape [k, 3].
        exponent: The exponent they were built with.

    Returns:
        One moment, shape [3].
    """
    scales, sums, weights = moments.unbind(-1)
    largest = scales.amax()
    return torch.stack([largest, (sums * _scaled_power(scales, largest, exponent)).sum(), weights.sum()])


def power_mean(total: Tensor, exponent: float) -> Tensor:
    """The power mean (E v^e)^(1/e) of a moment: the maximum for e = inf, and 0 when there is nothing to average.

    Args:
        total: A moment, shape [3].
        exponent: The exponent it was built with.

    Returns:
        Scalar tensor, float64.
    """
    largest, scaled, weight = total.unbind(-1)
    if math.isinf(exponent):
        return largest
    mean = torch.where(weight > 0, scaled / torch.where(weight > 0, weight, 1.0), 0.0)
    return largest * mean.pow(1.0 / exponent)


def discount(total: Tensor, factor: float) -> Tensor:
    """The moment with all its weight multiplied by `factor`, as a running estimate forgets what it has seen."""
    return total * total.new_tensor([1.0, factor, factor])


def _scaled_power(values: Tensor, largest: Tensor, exponent: float) -> Tensor:
    """(v / largest)^e with 0 / 0 = 0; for e = inf the indicator of the largest."""
    ratio = values / torch.where(largest > 0, largest, 1.0)
    if math.isinf(exponent):
        return (ratio >= 1.0).to(values)
    return ratio.pow(exponent)
