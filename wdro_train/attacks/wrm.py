"""The inner problem of WRM: every image pays for its displacement, at a fixed price, and there is no radius."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from wdro_train.attacks.base import Attacked, AttackResult
from wdro_train.attacks.gradient import input_gradient
from wdro_train.attacks.mode import batch_under_attack
from wdro_train.attacks.network_check import check_logits, checked_loss
from wdro_train.theory.ball import WassersteinBall
from wdro_train.theory.box import free_gradient, move
from wdro_train.theory.ground_norm import per_image
from wdro_train.theory.losses import LossFunction, resolve_loss
from wdro_train.theory.sensitivity import upsilon
from wdro_train.utils.distributed import LocalReducer, Reducer
from wdro_train.utils.errors import UserError
from wdro_train.utils.numbers import parse_number


class WRM:
    """Maximise J(x') - gamma ||x' - x||_s^p over x' in [0, 1]^n, image by image, with a fixed price gamma.

    Sinha, Namkoong, Volpi, Duchi 2018 (arXiv 1710.10571, algorithm 1; theory, section 9), who take p = s = 2. Where the
    loss is smooth in the image and gamma exceeds half its gradient's Lipschitz constant, the problem is strongly
    concave, and for every distribution Q with W_p(P, Q)^p <= rho, E_Q[J] <= gamma rho + E[max over x' of (J(x') - gamma
    ||x' - x||_s^p)]. With ReLU the gradient jumps and no gamma is large enough: what the ascent reaches is then a lower
    bound on that maximum, and the right-hand side no certificate. `Lagrangian` has a price that follows a budget
    instead.

    The ascent moves the displacement u towards the one that would be best if the loss were linear,
    u <- (1 - a_t) u + a_t r_t h(g_t), with a_t = step_size / sqrt(t + 1), r_t = (||g_t||_* / (p gamma))^(1/(p-1)) and
    t = 0, 1, ..., and ends each step in the box. For p = s = 2 that is projected gradient ascent on
    (J - gamma ||u||^2) / (2 gamma) with steps a_t, the ascent of the paper; for others it is exact for linear losses.

    Args:
        p: Order of the penalty and of the ball, in (1, inf).
        norm: Ground norm in [1, inf].
        delta: Radius of the ball that the network is judged in; the attack does not look at it.
        gamma: Price of a unit of distance to the power of p, in units of the loss; > 0. The default is the one of the
            authors' code for MNIST, 1 / 2.6; their rule is 0.04 E ||x||_2.
        loss: `ce`, `dlr`, `redlr` or a per-image loss.
        steps: Number of gradient steps; the authors' code takes a full one and 15 shorter ones.
        step_size: First step a_0 in (0, 1].
    """

    def __init__(
        self,
        *,
        p: float | str,
        norm: float | str,
        delta: float | str,
        gamma: float | str = 0.385,
        loss: str | LossFunction = "ce",
        steps: int = 16,
        step_size: float = 1.0,
    ) -> None:
        self.ball = WassersteinBall(p, norm, delta).require_first_order("the attack of WRM")
        if math.isinf(self.ball.p):
            raise UserError("attack.p=inf has no price per distance; use attack=w_pgd, which is its hard ball")
        self.gamma = parse_number(gamma, "attack.gamma")
        if not (0 < self.gamma < math.inf and steps >= 1 and 0 < step_size <= 1):
            raise UserError(
                f"attack: gamma={self.gamma:g}, steps={steps}, step_size={step_size}; choose a finite gamma > 0, "
                "steps >= 1 and step_size in (0, 1]"
            )
        self.loss = resolve_loss(loss)
        self.steps, self.step_size = int(steps), float(step_size)

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
        """Perturb a batch, without a random start; see `Attack`."""
        with batch_under_attack(model, x, y) as (x, y, labels):
            loss = checked_loss(self.loss, labels)
            x_adv = x
            nonfinite = torch.zeros((), dtype=torch.int64, device=x.device)
            for step in range(self.steps):
                here = input_gradient(model, x_adv, y, loss)
                nonfinite += here.nonfinite
                # Where x itself is at the edge its pixel can never move outwards, wherever the iterate is by now.
                slope = free_gradient(here.gradient, x)
                dual_norms = self.ball.ground.dual_norms(slope)
                if step == 0:
                    check_logits(model, x, here.logits, labels)
                    first, first_norms = here, dual_norms
                    total = upsilon(dual_norms, self.ball.q, weight, reducer or LocalReducer())
                radii = self.ball.worthwhile(dual_norms, self.gamma)
                target = self.ball.ground.direction(slope) * per_image(radii, x)
                x_adv = move(x, torch.lerp(x_adv - x, target, self.step_size / math.sqrt(step + 1)))
            return AttackResult(
                x_adv=x_adv,
                distances=self.ball.ground.distances(x_adv - x),
                upsilon=total,
                dual_norms=first_norms,
                losses=first.losses,
                logits=first.logits,
                zero_gradients=(first_norms == 0).sum(),
                nonfinite_gradients=nonfinite,
                attacked=Attacked(model, y),
            )
