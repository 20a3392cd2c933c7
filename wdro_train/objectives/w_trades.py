"""W-TRADES: minimise the clean loss and the distance between clean and worst-case predictions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wdro_train.objectives.base import ObjectiveResult, checked_weight, weighted_mean
from wdro_train.theory.losses import ce, kl_divergence
from wdro_train.utils.distributed import Reducer


class WTrades:
    """Minimise E[CE(f(x), y)] + beta E KL(f(x) || f(x')), x' the Q_delta image of x (theory, section 9).

    TRADES (Zhang et al. 2019, arXiv 1901.08573, whose beta of 6 is the default) in a Wasserstein ball, in the spirit of
    arXiv 2502.09352. The attack needs a loss of the label or a random start, since the KL has no gradient at x' = x.

    Args:
        beta: Weight of the KL term, >= 0.
    """

    needs_adversary = True

    def __init__(self, beta: float = 6.0) -> None:
        self.beta = checked_weight(beta)

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
        """Both images in one forward pass, so that BatchNorm sees one batch; see `Objective`."""
        clean, adv = model(torch.cat([x, x_adv.to(x.dtype)])).chunk(2)
        kl = weighted_mean(kl_divergence(clean, adv), importance)
        natural = ce(clean, y).mean()
        return ObjectiveResult(natural + self.beta * kl, clean, adv, {"ce": natural.detach(), "kl": kl.detach()})
