"""The first-order quantities of the poster (Bai, He, Jiang, Obloj 2023, arXiv 2306.09844) from measured means."""

from __future__ import annotations

from dataclasses import dataclass

from wdro_train.metrics.functional.accuracy_ratio import accuracy_ratio
from wdro_train.metrics.functional.first_order_bounds import first_order_value, lower_bounds


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
