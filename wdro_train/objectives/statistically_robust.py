"""SR-WDRO: minimise the loss under attack for the worst weights of the batch, against robust overfitting."""

from __future__ import annotations

import math

from torch import Tensor, nn

from wdro_train.objectives.base import ObjectiveResult
from wdro_train.theory.losses import ce
from wdro_train.theory.statistical_error import worst_weights
from wdro_train.utils.distributed import LocalReducer, Reducer
from wdro_train.utils.errors import UserError


class StatisticallyRobust:
    """Minimise max over a with KL(P^ || a) <= r of sum_i a_i CE(f(x'_i), y_i), with x'_i the attack's images.

    Statistically robust WDRO (Liu et al. 2025, arXiv 2503.04315; theory, section 9): an adversary moves the images
    inside a Wasserstein ball, and, for the error of a finite sample, weighs them inside a ball of relative entropy.
    As in the authors' code the sample is the batch, here the global one of all ranks; by the envelope theorem the
    weights are held fixed for the gradient. They follow from the losses by a root of one number, where that code
    solves a cone program.

    Args:
        kl_radius: r >= 0, in nats; 0 is `Adversarial`. The default is that of the authors' code.
    """

    needs_adversary = True

    def __init__(self, kl_radius: float = 0.1) -> None:
        if not 0 <= kl_radius < math.inf:
            raise UserError(f"objective.kl_radius={kl_radius} is no relative entropy; choose a finite one of 0 or more")
        self.kl_radius = float(kl_radius)

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        x_adv: Tensor,
        y: Tensor,
        *,
        importance: Tensor | None = None,
        reducer: Reducer | None = None,
    ) -> ObjectiveResult:
        """The worst weighted mean of the cross-entropies on x_adv; see `Objective`."""
        reducer = reducer or LocalReducer()
        logits = model(x_adv)
        losses = ce(logits, y)
        if importance is not None:
            losses = losses * importance.to(losses)
        everyone = reducer.gather(losses.detach().double())
        weights = worst_weights(everyone.flatten(), self.kl_radius).view_as(everyone)
        loss = (
            weights[reducer.rank].to(losses) * losses
        ).mean()  # the mean of the ranks' losses is that of the global batch
        terms = {"ce": losses.detach().mean(), "largest_weight": weights.amax().float()}
        return ObjectiveResult(loss, None, logits, terms)
