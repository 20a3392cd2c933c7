"""Accuracy on the clean images: `val/clean_acc`, `test/clean_acc`, `train/clean_acc`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from wdro_train.metrics.summed import SummedMetric, check_finite
from wdro_train.theory.losses import correct


class CleanAccuracy(SummedMetric):
    """A = P(S): share of images whose label's logit is strictly the largest (a tie is wrong).

    Keys: `clean_acc`.

    >>> metric = CleanAccuracy()
    >>> metric.update(torch.tensor([[2.0, 1.0], [0.0, 0.0]]), torch.tensor([0, 1]), torch.ones(2))
    >>> metric.compute()
    {'clean_acc': tensor(0.5000)}
    """

    hits: Tensor
    total: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_sums(("hits", "total"), torch.int64)

    def update(self, clean_logits: Tensor, labels: Tensor, weight: Tensor) -> None:
        """Count a batch: logits [B, m], labels [B], weight [B]."""
        counts = weight > 0
        check_finite(clean_logits, counts)
        self.hits += (correct(clean_logits, labels) & counts).sum()
        self.total += counts.sum()

    def compute(self) -> dict[str, Tensor]:
        """The accuracy, in [0, 1]."""
        return self.scalars(clean_acc=self.hits / self.total)
