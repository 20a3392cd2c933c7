"""Accuracy under the worst case that is found: `val/worst_acc` and `val/worst_ratio`; the same under `test/`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from wdro_train.metrics.functional import accuracy_ratio
from wdro_train.theory.ball import WassersteinBall
from wdro_train.theory.robustness_curve import RobustnessCurve


class WorstCaseAccuracy(Metric):
    """A_delta of the whole set, by the exact knapsack over the distances that an attack has found (theory, section 5).

    The true distances to the nearest misclassified points are no larger than those found, so this bounds the true
    A_delta from above.

    Keys:
        worst_acc: The accuracy that is left when the nearest images are moved first, as far as the budget pays.
        worst_ratio: `worst_acc` over the clean accuracy.

    >>> metric = WorstCaseAccuracy(WassersteinBall(p=1, norm="inf", delta=0.5))
    >>> metric.update(torch.tensor([0.0, 1.0, 2.0, 3.0]), torch.ones(4))
    >>> metric.compute()
    {'worst_acc': tensor(0.3750), 'worst_ratio': tensor(0.5000)}

    Args:
        ball: The threat; any p in [1, inf].
        **kwargs: Passed to `torchmetrics.Metric`.
    """

    full_state_update = False
    is_differentiable = False
    found: list[Tensor]

    def __init__(self, ball: WassersteinBall, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.p, self.delta = ball.p, ball.delta
        self.set_dtype(torch.float64)  # what a rank without images brings to the others has this type, too
        self.add_state("found", [], dist_reduce_fx="cat")

    def update(self, flips: Tensor, weight: Tensor) -> None:
        """Add a batch: distance of each image's flip [B], 0 if misclassified and inf if none; weight [B]."""
        self.found.append(flips[weight > 0].double())

    def compute(self) -> dict[str, Tensor]:
        """The worst-case accuracy over the set as one distribution."""
        curve = RobustnessCurve(dim_zero_cat(self.found).cpu().numpy())
        worst = curve.accuracy(self.delta, self.p)
        values = {"worst_acc": worst, "worst_ratio": accuracy_ratio(worst, curve.clean_accuracy)}
        return {key: torch.as_tensor(value, dtype=torch.float32, device=self.device) for key, value in values.items()}
