"""The mean loss of a whole set: `val/loss` and `test/loss`, logged where there is no adversary."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from wdro_train.metrics.summed import SummedMetric, counted
from wdro_train.theory.losses import ce
from wdro_train.utils.renamed import renamed_arguments


class MeanLoss(SummedMetric):
    """Mean cross-entropy of the clean images, in nats.

    Keys: `loss`.

    >>> metric = MeanLoss()
    >>> metric.update(torch.tensor([[0.0, 0.0], [0.0, 0.0]]), torch.tensor([0, 1]))
    >>> metric.compute()
    {'loss': tensor(0.6931)}
    """

    higher_is_better = False
    plot_lower_bound = 0.0
    value: Tensor
    total: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_sums(("value", "total"), torch.float64)

    @renamed_arguments(clean_logits="preds", labels="target")
    def update(self, preds: Tensor, target: Tensor, weight: Tensor | None = None) -> None:
        """Count a batch.

        Args:
            preds: Logits of the clean images, shape [B, m].
            target: Labels, shape [B].
            weight: Shape [B], 0 for padding; None counts all images.
        """
        counts = counted(preds, target, weight)
        self.value += torch.where(counts, ce(preds, target).detach().double(), 0.0).sum()
        self.total += counts.sum()

    def compute(self) -> dict[str, Tensor]:
        """The mean over the set."""
        return {"loss": (self.value / self.total).float()}
