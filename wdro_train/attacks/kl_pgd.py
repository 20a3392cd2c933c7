"""KL-PGD, the attack inside TRADES: away from the network's own prediction instead of away from the label."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from wdro_train.attacks.base import AttackResult
from wdro_train.attacks.gradient import forward
from wdro_train.attacks.mode import attack_mode
from wdro_train.attacks.w_pgd import WPGD
from wdro_train.theory.ball import WassersteinBall
from wdro_train.theory.losses import kl_divergence
from wdro_train.theory.sensitivity import Scope
from wdro_train.utils.distributed import Reducer
from wdro_train.utils.errors import UserError


class KLPGD:
    """W-PGD on J(x') = KL(f(x) || f(x')), with f(x) the network's prediction on the clean image.

    Zhang et al. 2019 (TRADES, arXiv 1901.08573), here in any Wasserstein ball. It takes one forward pass more than
    W-PGD. The KL has no gradient at x' = x, so the start is always random.

    Args:
        **threat: Arguments of `WPGD` (p, norm, delta, steps, step_size, ...) but `loss`, `keep`, `random_start` and
            `batch_size`.
    """

    def __init__(self, **threat: Any) -> None:
        if threat.get("batch_size") is not None:
            raise UserError("attack.batch_size: KLPGD compares whole batches of predictions; leave it out")
        self._attack = WPGD(**threat, random_start=True, keep="last")

    @property
    def ball(self) -> WassersteinBall:
        """The threat."""
        return self._attack.ball

    @ball.setter
    def ball(self, ball: WassersteinBall) -> None:
        self._attack.ball = ball

    @property
    def scope(self) -> Scope:
        """What Upsilon is taken over; a running estimate goes into checkpoints."""
        return self._attack.scope

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        weight: Tensor | None = None,
        reducer: Reducer | None = None,
        generator: torch.Generator | None = None,
    ) -> AttackResult:
        """Perturb a batch; see `Attack`."""
        with attack_mode(model, self._attack.batch_norm), torch.no_grad():
            prediction = forward(model, x.clone().float())
        attack = copy.copy(self._attack)
        attack.loss = lambda logits, labels: kl_divergence(prediction, logits)
        return attack(model, x, y, weight=weight, reducer=reducer, generator=generator)
