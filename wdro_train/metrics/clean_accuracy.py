"""Accuracy on the clean images: `val/clean_acc`, `test/clean_acc`, `train/clean_acc`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from wdro_train.metrics.summed import SummedMetric, counted
from wdro_train.theory.losses import correct
from wdro_train.utils.renamed import renamed_arguments


class CleanAccuracy(SummedMetric):
    """A = P(S): share of images whose label's logit is strictly the largest (a tie is wrong).

    Keys: `clean_acc`.

    >>> metric = CleanAccuracy()
    >>> metric.update(torch.tensor([[2.0, 1.0], [0.0, 0.0]]), torch.tensor([0, 1]))
    >>> metric.compute()
    {'clean_acc': tensor(0.5000)}
    """

    higher_is_better = True
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0
    hits: Tensor
    total: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_sums(("hits", "total"), torch.int64)

    @renamed_arguments(clean_logits="preds", labels="target")
    def update(self, preds: Tensor, target: Tensor, weight: Tensor | None = None) -> None:
        """Count a batch.

        Args:
            preds: Logits of the clean images, shape [B, m].
            target: Labels, shape [B].
            weight: Shape [B], 0 for padding; None counts all images.
        """
        counts = counted(preds, target, weight)
        self.hits += (correct(preds, target) & counts).sum()
        self.total += counts.sum()

    def compute(self) -> dict[str, Tensor]:
        """The accuracy, in [0, 1]."""
        return self.scalars(clean_acc=self.hits / self.total)
