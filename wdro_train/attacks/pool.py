"""Several attacks on one ball, joined into one that is at least as strong as each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from wdro_train.attacks.base import Attack, AttackResult
from wdro_train.attacks.gradient import forward
from wdro_train.attacks.mode import attack_mode
from wdro_train.attacks.selection import CheapestFlips
from wdro_train.theory.ball import WassersteinBall
from wdro_train.theory.losses import ce
from wdro_train.utils.contract import check_batch
from wdro_train.utils.distributed import LocalReducer, Reducer
from wdro_train.utils.errors import UserError


class Pool:
    """All attacks of a list, of whose points the cheapest misclassified one of each image is kept.

    The budget pays for these points, cheapest first (see `CheapestFlips`), so that the pool flips at least as many
    images as each of its attacks.

    Args:
        attacks: Attacks on the same ball.
    """

    def __init__(self, attacks: Sequence[Attack]) -> None:
        if not attacks or any(attack.ball != attacks[0].ball for attack in attacks):
            raise UserError(f"a pool needs attacks on one ball, got {[a.ball for a in attacks]}")
        self.attacks = list(attacks)

    @property
    def ball(self) -> WassersteinBall:
        """The ball in which every attack of the pool stays."""
        return self.attacks[0].ball

    @ball.setter
    def ball(self, ball: WassersteinBall) -> None:
        for attack in self.attacks:
            attack.ball = ball

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
        """Perturb a batch; what the result says of the first iterate is that of the first attack. See `Attack`."""
        reducer = reducer or LocalReducer()
        x, y, _ = check_batch(x, y)
        results = [attack(model, x, y, weight=weight, reducer=reducer, generator=generator) for attack in self.attacks]
        with attack_mode(model), torch.no_grad():
            x, y = x.clone().float(), y.clone().long()
            keeper = CheapestFlips(self.ball, x, y, weight, reducer)
            for point, known in [(x, None), *((r.x_adv, r.adv_logits) for r in results)]:
                logits = forward(model, point) if known is None else known
                keeper.offer(point, logits, ce(logits, y))
            x_adv = keeper.choose()
            return replace(
                results[0],
                x_adv=x_adv,
                distances=self.ball.ground.distances(x_adv - x),
                nonfinite_gradients=torch.stack([r.nonfinite_gradients for r in results]).sum(),
                adv_logits=keeper.logits,
                best_mean_loss=None,
            )
