"""Ratios and first-order bounds of the poster (Bai, He, Jiang, Obloj 2023, arXiv 2306.09844), as pure functions.

All arguments are scalars over one whole dataset, never means of batch values. A ratio that is undefined is NaN,
with a warning that names the cause.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass


def accuracy_ratio(robust_accuracy: float, clean_accuracy: float) -> float:
    """R = A_delta / A, in [0, 1].

    With A under Q_delta as first argument it is the upper bound R^u = Q_delta(S) / A.

    Args:
        robust_accuracy: Accuracy left, in [0, 1].
        clean_accuracy: A, in [0, 1].

    >>> accuracy_ratio(0.4, 0.8)
    0.5
    """
    if not clean_accuracy > 0:
        return _undefined(f"the clean accuracy is {clean_accuracy:g}, so no ratio to it is defined")
    return robust_accuracy / clean_accuracy


def first_order_value(v0: float, delta: float, upsilon: float) -> float:
    """V(0) + delta Upsilon, the first-order approximation of the worst-case loss V(delta)."""
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
    """The poster's asymptotic lower bounds on R_delta.

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
        value = _undefined("no image is misclassified, so W(0) and the asymptotic lower bounds are undefined")
        return LowerBounds(value, value, value)
    if not w0 > v0:
        value = _undefined(f"W(0)={w0:g} is not above V(0)={v0:g}, so the asymptotic lower bounds are undefined")
        return LowerBounds(value, value, value)
    attack = (w0 - v_q) / (w0 - v0)
    gradient = (w0 - first_order_value(v0, delta, upsilon)) / (w0 - v0)
    return LowerBounds(attack, gradient, max(0.0, min(attack, gradient)))


@dataclass(frozen=True)
class FirstOrderQuantities:
    """The poster's quantities of the first-order worst case Q_delta, of one loss in one ball, over a whole set.

    Attributes:
        v0: V(0) = E_P[J].
        w0: W(0) = E_P[J | S^c]; NaN if nothing is misclassified.
        v_q: E_{Q_delta}[J].
        upsilon: Upsilon = (E_P ||grad J||_*^q)^(1/q).
        v_first_order: V(0) + delta Upsilon.
        fgsm_acc: Q_delta(S), the accuracy under Q_delta (W-FGSM).
        fgsm_spent: (E ||x' - x||_s^p)^(1/p) of W-FGSM, an upper bound on W_p(P, Q_delta).
        ratio_upper: R^u = Q_delta(S) / A.
        ratio_lower_attack: R~^l, asymptotic.
        ratio_lower_gradient: R-^l, asymptotic.
        ratio_lower: R^l, the smaller of the two and at least 0, asymptotic.
    """

    v0: float
    w0: float
    v_q: float
    upsilon: float
    v_first_order: float
    fgsm_acc: float
    fgsm_spent: float
    ratio_upper: float
    ratio_lower_attack: float
    ratio_lower_gradient: float
    ratio_lower: float


def first_order_quantities(
    *,
    v0: float,
    w0: float,
    v_q: float,
    upsilon: float,
    delta: float,
    clean_acc: float,
    fgsm_acc: float,
    fgsm_spent: float,
) -> FirstOrderQuantities:
    """All of the poster's first-order quantities from the means that were measured (theory, sections 2 and 6).

    Args:
        v0: V(0).
        w0: W(0), NaN if nothing is misclassified.
        v_q: E_{Q_delta}[J].
        upsilon: Upsilon of the whole set.
        delta: Radius.
        clean_acc: A = P(S).
        fgsm_acc: Q_delta(S).
        fgsm_spent: The distance that W-FGSM spent.
    """
    lower = lower_bounds(w0, v0, v_q, delta, upsilon)
    return FirstOrderQuantities(
        v0=v0,
        w0=w0,
        v_q=v_q,
        upsilon=upsilon,
        v_first_order=first_order_value(v0, delta, upsilon),
        fgsm_acc=fgsm_acc,
        fgsm_spent=fgsm_spent,
        ratio_upper=accuracy_ratio(fgsm_acc, clean_acc),
        ratio_lower_attack=lower.attack,
        ratio_lower_gradient=lower.gradient,
        ratio_lower=lower.minimum,
    )


def _undefined(cause: str) -> float:
    """NaN, said aloud."""
    warnings.warn(f"NaN reported: {cause}", stacklevel=3)
    return math.nan
