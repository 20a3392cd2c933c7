"""Standard training: minimise the mean loss on clean images."""

from __future__ import annotations

from torch import Tensor, nn

from wdro_train.objectives.base import ObjectiveResult
from wdro_train.theory.losses import ce
from wdro_train.utils.distributed import Reducer


class Standard:
    """Minimise V(0) = E_P[CE(f(x), y)], without an adversary."""

    needs_adversary = False

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
        """Cross-entropy on x; see `Objective`."""
        logits = model(x)
        return ObjectiveResult(ce(logits, y).mean(), logits, None, {})
