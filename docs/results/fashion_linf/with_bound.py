"""A small certified term beside the loss at boundary points, an attempt of `frontier.md`.

The command of its row in `frontier.jsonl` needs this folder in `PYTHONPATH`.
"""

import math

from torch import Tensor, nn

from wdro_train.objectives import Adversarial, Ibp
from wdro_train.objectives.base import ObjectiveResult
from wdro_train.utils.distributed import Reducer


class WithBound:
    """Minimise the mean loss at the attacked images plus a weight times the loss's interval bound around clean ones.

    Args:
        weight: Of the bound, >= 0.
        radius: How far around each image the bound holds, l_inf.
    """

    needs_adversary = True

    def __init__(self, weight: float, radius: float) -> None:
        self.weight = weight
        self.adversarial, self.bound = Adversarial(), Ibp(p=math.inf, norm=math.inf, delta=radius, kappa=0.0)

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
        """See `Objective`."""
        found = self.adversarial(model, x, x_adv, y, importance=importance, reducer=reducer)
        bound = self.bound(model, x, x, y, reducer=reducer).loss
        return ObjectiveResult(found.loss + self.weight * bound, None, found.adv_logits, {"bound": bound.detach()})
