"""The mean loss of a whole set: `val/loss` and `test/loss`, logged where there is no adversary."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from wdro_train.metrics.summed import SummedMetric
from wdro_train.theory.losses import ce


class MeanLoss(SummedMetric):
    """Mean cross-entropy of the clean images, in nats.

    Keys: `loss`.

    >>> metric = MeanLoss()
    >>> metric.update(torch.tensor([[0.0, 0.0], [0.0, 0.0]]), torch.tensor([0, 1]), torch.ones(2))
    >>> metric.compute()
    {'loss': tensor(0.6931)}
    """

    value: Tensor
    total: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_sums(("value", "total"), torch.float64)

    def update(self, clean_logits: Tensor, labels: Tensor, weight: Tensor) -> None:
        """Count a batch: logits [B, m], labels [B], weight [B]."""
        counts = weight > 0
        self.value += torch.where(counts, ce(clean_logits, labels).detach().double(), 0.0).sum()
        self.total += counts.sum()

    def compute(self) -> dict[str, Tensor]:
        """The mean over the set."""
        return {"loss": (self.value / self.total).float()}
