"""Accuracy under the validation attack: `val/adv_acc`, with `val/ratio` and `val/spent`; the same under `test/`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from wdro_train.metrics.functional import accuracy_ratio
from wdro_train.metrics.summed import SummedMetric, counted
from wdro_train.theory.ball import WassersteinBall
from wdro_train.theory.losses import correct
from wdro_train.theory.power_mean import merge, moment, power_mean
from wdro_train.utils.renamed import renamed_arguments


class AdversarialAccuracy(SummedMetric):
    """How much accuracy an attack leaves, as a share of the images and as a share of the clean accuracy.

    The attack returns one point of every image, so what it leaves bounds the worst-case accuracy A_delta from above,
    if the distance that it spent is within the ball.

    Keys:
        adv_acc: Share of images whose label's logit is strictly the largest at the attack's point.
        ratio: `adv_acc` over the clean accuracy, an upper bound on R = A_delta / A (theory, section 6).
        spent: (E ||x' - x||_s^p)^(1/p), the cost of the identity coupling and so an upper bound on the Wasserstein
            distance between clean and perturbed images (theory, section 2), in the ground norm's units.

    Args:
        ball: The threat; gives p.
        **kwargs: Passed to `torchmetrics.Metric`.
    """

    higher_is_better = True
    plot_lower_bound = 0.0
    clean_hits: Tensor
    adv_hits: Tensor
    total: Tensor
    displacement: Tensor

    def __init__(self, ball: WassersteinBall, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.p = ball.p
        self.add_sums(("clean_hits", "adv_hits", "total"), torch.int64)
        self.add_moment("displacement", ball.p)

    @renamed_arguments(clean_logits="preds", labels="target", adv_logits="adv_preds")
    def update(
        self, preds: Tensor, target: Tensor, adv_preds: Tensor, distances: Tensor, weight: Tensor | None = None
    ) -> None:
        """Count a batch.

        Args:
            preds: Logits of the clean images, shape [B, m].
            target: Labels, shape [B].
            adv_preds: Logits of the perturbed images, shape [B, m].
            distances: ||x' - x||_s of each image, shape [B].
            weight: Shape [B], 0 for padding; None counts all images.
        """
        counts = counted(preds, target, weight)
        self.clean_hits += (correct(preds, target) & counts).sum()
        self.adv_hits += (correct(adv_preds, target) & counts).sum()
        self.total += counts.sum()
        part = moment(distances, weight, self.p)
        self.displacement = merge(torch.stack([self.displacement, part]), self.p)

    def compute(self) -> dict[str, Tensor]:
        """Accuracy and ratio in [0, 1], and the distance spent."""
        adv_acc = (self.adv_hits / self.total).item()
        return self.scalars(
            adv_acc=adv_acc,
            ratio=accuracy_ratio(adv_acc, (self.clean_hits / self.total).item()),
            spent=power_mean(self.displacement, self.p),
        )
