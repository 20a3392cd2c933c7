"""The mathematics of the metrics, as pure functions of scalars over one whole dataset."""

from wdro_train.metrics.functional.accuracy_ratio import accuracy_ratio
from wdro_train.metrics.functional.first_order_bounds import LowerBounds, first_order_value, lower_bounds
from wdro_train.metrics.functional.first_order_quantities import FirstOrderQuantities, first_order_quantities

__all__ = [
    "FirstOrderQuantities",
    "LowerBounds",
    "accuracy_ratio",
    "first_order_quantities",
    "first_order_value",
    "lower_bounds",
]
