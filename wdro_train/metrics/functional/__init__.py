"""The mathematics of the metrics, as pure functions of scalars over one whole dataset."""

from wdro_train.metrics.functional.accuracy_ratio import accuracy_ratio
from wdro_train.metrics.functional.first_order_bounds import LowerBounds, first_order_value, lower_bounds

__all__ = ["LowerBounds", "accuracy_ratio", "first_order_value", "lower_bounds"]
