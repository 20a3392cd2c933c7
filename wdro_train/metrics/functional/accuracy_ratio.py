"""The share of a network's accuracy that an adversary leaves."""

from __future__ import annotations

from wdro_train.metrics.functional.undefined import undefined


def accuracy_ratio(robust_accuracy: float, clean_accuracy: float) -> float:
    """R = A_delta / A (theory, section 6), in [0, 1] for an accuracy that is no larger than the clean one.

    With the accuracy under Q_delta as first argument it is the upper bound R^u = Q_delta(S) / A.

    Args:
        robust_accuracy: Accuracy that is left, in [0, 1].
        clean_accuracy: A, in [0, 1].

    Returns:
        The ratio; NaN, with a warning, where the clean accuracy is 0 or NaN.

    >>> accuracy_ratio(0.4, 0.8)
    0.5
    """
    if not clean_accuracy > 0:
        return undefined(f"the clean accuracy is {clean_accuracy:g}, so no ratio to it is defined")
    return robust_accuracy / clean_accuracy
