"""Accuracy that a certificate guarantees: `val/certified_acc` and `val/certified_ratio`; the same under `test/`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from wdro_train.metrics.functional import accuracy_ratio
from wdro_train.theory.ball import WassersteinBall
from wdro_train.theory.losses import correct
from wdro_train.theory.robustness_curve import RobustnessCurve


class CertifiedAccuracy(Metric):
    """A lower bound on A_delta of the whole set, by the knapsack over certified radii (theory, section 11).

    Certified radii are no larger than the distances to the nearest misclassified points, so what the knapsack leaves
    over them is guaranteed on the images counted, whatever the attack.

    Keys:
        certified_acc: The accuracy that no distribution in the ball undercuts.
        certified_ratio: `certified_acc` over the clean accuracy, a lower bound on R = A_delta / A for this delta.

    >>> metric = CertifiedAccuracy(WassersteinBall(p=1, norm="inf", delta=0.5))
    >>> logits = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    >>> metric.update(logits, torch.zeros(4, dtype=torch.int64), torch.tensor([0.0, 1.0, 2.0, 3.0]), torch.ones(4))
    >>> metric.compute()
    {'certified_acc': tensor(0.3750), 'certified_ratio': tensor(0.5000)}

    Args:
        ball: The threat; any p in [1, inf].
        **kwargs: Passed to `torchmetrics.Metric`.
    """

    full_state_update = False
    is_differentiable = False
    certified: list[Tensor]
    right: list[Tensor]

    def __init__(self, ball: WassersteinBall, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.p, self.delta = ball.p, ball.delta
        self.set_dtype(torch.float64)  # what a rank without images brings to the others has this type, too
        self.add_state("certified", [], dist_reduce_fx="cat")
        self.add_state("right", [], dist_reduce_fx="cat")

    def update(self, clean_logits: Tensor, labels: Tensor, radii: Tensor, weight: Tensor) -> None:
        """Add a batch.

        Args:
            clean_logits: Shape [B, m].
            labels: Shape [B].
            radii: Certified radii, 0 where the image is misclassified or nothing could be certified, shape [B].
            weight: 0 for padding, shape [B].
        """
        counts = weight > 0
        self.certified.append(radii[counts].double())
        self.right.append(correct(clean_logits, labels)[counts].double())

    def compute(self) -> dict[str, Tensor]:
        """The guaranteed accuracy over the set as one distribution."""
        curve = RobustnessCurve(dim_zero_cat(self.certified).cpu().numpy())
        certified, clean = curve.accuracy(self.delta, self.p), float(dim_zero_cat(self.right).mean())
        values = {"certified_acc": certified, "certified_ratio": accuracy_ratio(certified, clean)}
        return {key: torch.as_tensor(value, dtype=torch.float32, device=self.device) for key, value in values.items()}
