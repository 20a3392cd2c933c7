"""A weighted mean over a whole set."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from wdro_train.metrics.summed import SummedMetric


class Mean(SummedMetric):
    """A weighted mean of values that are not one per image, such as the terms of a training loss.

    `compute` returns it as a scalar.

    >>> metric = Mean()
    >>> metric.update(torch.tensor([1.0, 4.0]), torch.tensor([2.0, 1.0]))
    >>> metric.compute()
    tensor(2.)
    """

    value: Tensor
    total: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_sums(("value", "total"), torch.float64)

    def update(self, values: Tensor, weight: Tensor | None = None) -> None:
        """Add values with their weights.

        Args:
            values: Any shape.
            weight: The same shape; None gives each value the weight 1.
        """
        weight = torch.ones_like(values) if weight is None else weight
        self.value += (values.detach().double() * weight).sum()
        self.total += weight.sum()

    def compute(self) -> Tensor:
        """Sum of weight times value over sum of weights."""
        return (self.value / self.total).float()
