"""The mathematics of the metrics, as pure functions."""

from wdro_train.metrics.functional.bounds import (
    FirstOrderQuantities,
    LowerBounds,
    accuracy_ratio,
    first_order_quantities,
    first_order_value,
    lower_bounds,
)

__all__ = [
    "FirstOrderQuantities",
    "LowerBounds",
    "accuracy_ratio",
    "first_order_quantities",
    "first_order_value",
    "lower_bounds",
]
