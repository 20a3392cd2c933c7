"""Accuracy that a certificate guarantees: `val/certified_acc` and `val/certified_ratio`; the same under `test/`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat

from wdro_train.metrics.functional import accuracy_ratio
from wdro_train.metrics.summed import SetMetric, counted
from wdro_train.theory.ball import WassersteinBall
from wdro_train.theory.losses import correct
from wdro_train.theory.robustness_curve import RobustnessCurve
from wdro_train.utils.renamed import renamed_arguments


class CertifiedAccuracy(SetMetric):
    """A lower bound on A_delta of the whole set, by the knapsack over certified radii (theory, section 11).

    Certified radii are no larger than the distances to the nearest misclassified points, so what the knapsack leaves
    over them is guaranteed on the images counted, whatever the attack.

    Keys:
        certified_acc: The accuracy that no distribution in the ball undercuts.
        certified_ratio: `certified_acc` over the clean accuracy, a lower bound on R = A_delta / A for this delta.

    >>> metric = CertifiedAccuracy(WassersteinBall(p=1, norm="inf", delta=0.5))
    >>> logits = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    >>> metric.update(logits, torch.zeros(4, dtype=torch.int64), torch.tensor([0.0, 1.0, 2.0, 3.0]))
    >>> metric.compute()
    {'certified_acc': tensor(0.3750), 'certified_ratio': tensor(0.5000)}

    Args:
        ball: The threat; any p in [1, inf].
        **kwargs: Passed to `torchmetrics.Metric`.
    """

    higher_is_better = True
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0
    certified: list[Tensor]
    right: list[Tensor]

    def __init__(self, ball: WassersteinBall, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.p, self.delta = ball.p, ball.delta
        self.set_dtype(torch.float64)  # what a rank without images brings to the others has this type, too
        self.add_state("certified", [], dist_reduce_fx="cat")
        self.add_state("right", [], dist_reduce_fx="cat")

    @renamed_arguments(clean_logits="preds", labels="target")
    def update(self, preds: Tensor, target: Tensor, radii: Tensor, weight: Tensor | None = None) -> None:
        """Add a batch.

        Args:
            preds: Logits of the clean images, shape [B, m].
            target: Labels, shape [B].
            radii: Certified radii, 0 where the image is misclassified or nothing could be certified, shape [B].
            weight: Shape [B], 0 for padding; None counts all images.
        """
        counts = counted(preds, target, weight)
        self.certified.append(radii[counts].double())
        self.right.append(correct(preds, target)[counts].double())

    def compute(self) -> dict[str, Tensor]:
        """The guaranteed accuracy over the set as one distribution."""
        curve = RobustnessCurve(dim_zero_cat(self.certified).cpu().numpy())
        certified, clean = curve.accuracy(self.delta, self.p), float(dim_zero_cat(self.right).mean())
        values = {"certified_acc": certified, "certified_ratio": accuracy_ratio(certified, clean)}
        return {key: torch.as_tensor(value, dtype=torch.float32, device=self.device) for key, value in values.items()}
