"""Quantities of the first-order worst case: `val/v0`, `val/upsilon`, `val/fgsm_acc`, `val/ratio_lower` and others."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from wdro_train.metrics.functional import first_order_quantities
from wdro_train.metrics.summed import SummedMetric, counted
from wdro_train.theory.ball import WassersteinBall
from wdro_train.theory.losses import correct
from wdro_train.theory.power_mean import merge, moment, power_mean
from wdro_train.utils.renamed import renamed_arguments


class FirstOrderBounds(SummedMetric):
    """The poster's quantities of the first-order worst case Q_delta (W-FGSM), over one whole set.

    Upsilon is that of all images shown. The others are those of Q_delta of the whole set if every batch was moved with
    that Upsilon, as `wdro_train.training.adversary` does. The lower bounds are asymptotic: first-order estimates for
    small delta, not certificates for a given one (theory, section 6).

    Keys:
        v0: V(0) = E_P[J], the mean loss of the clean images.
        w0: W(0) = E_P[J | S^c], the mean loss of the misclassified ones; NaN if there are none.
        v_q: E_{Q_delta}[J], the mean loss of the moved images.
        upsilon: (E_P ||grad_x J||_*^q)^(1/q).
        v_first_order: V(0) + delta Upsilon.
        fgsm_acc: Q_delta(S), the accuracy on the moved images.
        fgsm_spent: (E ||x' - x||_s^p)^(1/p), the distance that was spent.
        ratio_upper: R^u = Q_delta(S) / A.
        ratio_lower_attack: R~^l = (W(0) - E_{Q_delta}[J]) / (W(0) - V(0)).
        ratio_lower_gradient: R-^l = (W(0) - V(0) - delta Upsilon) / (W(0) - V(0)).
        ratio_lower: R^l, the smaller of the two, and 0 where that is negative.

    Args:
        ball: The threat.
        **kwargs: Passed to `torchmetrics.Metric`.
    """

    clean_hits: Tensor
    q_hits: Tensor
    total: Tensor
    clean_loss: Tensor
    wrong_loss: Tensor
    q_loss: Tensor
    gradient: Tensor
    displacement: Tensor

    def __init__(self, ball: WassersteinBall, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.p, self.q, self.delta = ball.p, ball.q, ball.delta
        self.add_sums(("clean_hits", "q_hits", "total"), torch.int64)
        self.add_sums(("clean_loss", "wrong_loss", "q_loss"), torch.float64)
        self.add_moment("gradient", ball.q)
        self.add_moment("displacement", ball.p)

    @renamed_arguments(clean_logits="preds", labels="target", q_logits="q_preds")
    def update(
        self,
        preds: Tensor,
        target: Tensor,
        clean_losses: Tensor,
        q_preds: Tensor,
        q_losses: Tensor,
        dual_norms: Tensor,
        q_distances: Tensor,
        weight: Tensor | None = None,
    ) -> None:
        """Count a batch.

        Args:
            preds: Logits of the clean images, shape [B, m].
            target: Labels, shape [B].
            clean_losses: J at the clean images, shape [B].
            q_preds: Logits of the W-FGSM images, shape [B, m].
            q_losses: J at the W-FGSM images, shape [B].
            dual_norms: ||grad J||_* at the clean images, shape [B].
            q_distances: Displacement of the W-FGSM images, shape [B].
            weight: Shape [B], 0 for padding; None counts all images.
        """
        counts = counted(preds, target, weight)
        right = correct(preds, target)
        self.clean_hits += (right & counts).sum()
        self.q_hits += (correct(q_preds, target) & counts).sum()
        self.total += counts.sum()
        self.clean_loss += clean_losses[counts].double().sum()
        self.wrong_loss += clean_losses[counts & ~right].double().sum()
        self.q_loss += q_losses[counts].double().sum()
        slope = moment(dual_norms, weight, self.q)
        self.gradient = merge(torch.stack([self.gradient, slope]), self.q)
        moved = moment(q_distances, weight, self.p)
        self.displacement = merge(torch.stack([self.displacement, moved]), self.p)

    def compute(self) -> dict[str, Tensor]:
        """All quantities of the first-order worst case."""
        quantities = first_order_quantities(
            v0=(self.clean_loss / self.total).item(),
            w0=(self.wrong_loss / (self.total - self.clean_hits)).item(),  # 0 / 0 = NaN if nothing is misclassified
            v_q=(self.q_loss / self.total).item(),
            upsilon=power_mean(self.gradient, self.q).item(),
            delta=self.delta,
            clean_acc=(self.clean_hits / self.total).item(),
            fgsm_acc=(self.q_hits / self.total).item(),
            fgsm_spent=power_mean(self.displacement, self.p).item(),
        )
        return self.scalars(**asdict(quantities))
