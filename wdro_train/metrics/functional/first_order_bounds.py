"""First-order value and bounds of the poster (Bai, He, Jiang, Obloj 2023, arXiv 2306.09844; theory, sections 2 and 6).

All arguments are scalars over one whole dataset, never means of batch values. A bound that is undefined is NaN, with a
warning that names the cause.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from wdro_train.metrics.functional.undefined import undefined


def first_order_value(v0: float, delta: float, upsilon: float) -> float:
    """V(0) + delta Upsilon, the first-order approximation of the worst-case loss V(delta) (theory, section 2).

    Args:
        v0: V(0) = E_P[J], the mean loss of the clean images.
        delta: Radius of the ball, in the ground norm's units.
        upsilon: (E_P ||grad_x J||_*^q)^(1/q).

    >>> first_order_value(v0=0.5, delta=0.1, upsilon=2.0)
    0.7
    """
    return v0 + delta * upsilon


@dataclass(frozen=True)
class LowerBounds:
    """Asymptotic lower bounds on R: first-order estimates, not certificates for a given delta.

    Attributes:
        attack: R~^l = (W(0) - E_{Q_delta}[J]) / (W(0) - V(0)), as the formula gives it: it may be negative.
        gradient: R-^l = (W(0) - V(0) - delta Upsilon) / (W(0) - V(0)), likewise.
        minimum: R^l = min of the two, in [0, 1]: a ratio of accuracies is never below 0, so a negative value says no
            more than 0 does.
    """

    attack: float
    gradient: float
    minimum: float


def lower_bounds(w0: float, v0: float, v_q: float, delta: float, upsilon: float) -> LowerBounds:
    """The poster's asymptotic lower bounds on R_delta = A_delta / A (theory, section 6).

    Args:
        w0: W(0) = E_P[J | S^c], mean loss of the misclassified images (0 by definition under ReDLR).
        v0: V(0) = E_P[J].
        v_q: E_{Q_delta}[J].
        delta: Radius.
        upsilon: Upsilon of the whole set.

    Returns:
        The bounds; NaN where W(0) is undefined or not above V(0).

    >>> lower_bounds(w0=0.0, v0=-0.5, v_q=-0.4, delta=0.1, upsilon=1.5)
    LowerBounds(attack=0.8, gradient=0.7, minimum=0.7)
    """
    if math.isnan(w0):
        value = undefined("no image is misclassified, so W(0) and the asymptotic lower bounds are undefined")
        return LowerBounds(value, value, value)
    if not w0 > v0:
        value = undefined(f"W(0)={w0:g} is not above V(0)={v0:g}, so the asymptotic lower bounds are undefined")
        return LowerBounds(value, value, value)
    attack = (w0 - v_q) / (w0 - v0)
    gradient = (w0 - first_order_value(v0, delta, upsilon)) / (w0 - v0)
    return LowerBounds(attack, gradient, max(0.0, min(attack, gradient)))
