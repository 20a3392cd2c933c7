"""Distributional adversarial training: minimise the mean loss under the worst-case distribution."""

from __future__ import annotations

from torch import Tensor, nn

from wdro_train.objectives.base import ObjectiveResult, weighted_mean
from wdro_train.theory.losses import ce
from wdro_train.utils.distributed import Reducer


class Adversarial:
    """Minimise E_{Q_delta}[CE(f(x'), y)], with Q_delta the law of the images that the attack returns.

    Theory, section 9. Where the attack weighs its images, as `BoundaryAttack` does, their losses are multiplied by the
    weights.
    """

    needs_adversary = True

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
        """Cross-entropy on x_adv; see `Objective`."""
        logits = model(x_adv)
        return ObjectiveResult(weighted_mean(ce(logits, y), importance), None, logits, {})
