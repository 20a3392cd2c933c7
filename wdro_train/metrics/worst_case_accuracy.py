"""Accuracy under the worst case that is found: `val/worst_acc` and `val/worst_ratio`; the same under `test/`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat

from wdro_train.metrics.functional import accuracy_ratio
from wdro_train.metrics.summed import SetMetric, everything
from wdro_train.theory.ball import WassersteinBall
from wdro_train.theory.robustness_curve import RobustnessCurve
from wdro_train.utils.errors import UserError


class WorstCaseAccuracy(SetMetric):
    """A_delta of the whole set, by the exact knapsack over the distances that an attack has found (theory, section 5).

    The true distances to the nearest misclassified points are no larger than those found, so this bounds the true
    A_delta from above.

    Keys:
        worst_acc: The accuracy that is left when the nearest images are moved first, as far as the budget pays.
        worst_ratio: `worst_acc` over the clean accuracy.

    >>> metric = WorstCaseAccuracy(WassersteinBall(p=1, norm="inf", delta=0.5))
    >>> metric.update(torch.tensor([0.0, 1.0, 2.0, 3.0]))
    >>> metric.compute()
    {'worst_acc': tensor(0.3750), 'worst_ratio': tensor(0.5000)}

    Args:
        ball: The threat; any p in [1, inf].
        **kwargs: Passed to `torchmetrics.Metric`.
    """

    higher_is_better = True
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0
    found: list[Tensor]

    def __init__(self, ball: WassersteinBall, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.p, self.delta = ball.p, ball.delta
        self.set_dtype(torch.float64)  # what a rank without images brings to the others has this type, too
        self.add_state("found", [], dist_reduce_fx="cat")

    def update(self, flips: Tensor, weight: Tensor | None = None) -> None:
        """Add a batch.

        Args:
            flips: Distance from each image to the nearest misclassified point that was found, 0 if the image itself is
                misclassified and inf if none was found, shape [B]; `MinimalDistance` gives it as `distances`.
            weight: Shape [B], 0 for padding; None counts all images.

        Raises:
            UserError: Another shape, as of logits.
        """
        if flips.dim() != 1:
            raise UserError(
                f"flips have shape {tuple(flips.shape)}; give one distance an image, such as "
                "MinimalDistance(...)(model, x, y).distances"
            )
        self.found.append(flips[everything(flips) if weight is None else weight > 0].double())

    def compute(self) -> dict[str, Tensor]:
        """The worst-case accuracy over the set as one distribution."""
        curve = RobustnessCurve(dim_zero_cat(self.found).cpu().numpy())
        worst = curve.accuracy(self.delta, self.p)
        values = {"worst_acc": worst, "worst_ratio": accuracy_ratio(worst, curve.clean_accuracy)}
        return {key: torch.as_tensor(value, dtype=torch.float32, device=self.device) for key, value in values.items()}
