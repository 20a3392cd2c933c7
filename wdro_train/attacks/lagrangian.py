"""The penalised worst case: every image pays for its displacement, at one price for all images."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from wdro_train.attacks.base import Attacked, AttackResult
from wdro_train.attacks.gradient import input_gradient
from wdro_train.attacks.mode import batch_under_attack
from wdro_train.attacks.network_check import check_logits, checked_loss
from wdro_train.attacks.random_start import random_start
from wdro_train.theory.ball import WassersteinBall
from wdro_train.theory.box import free_gradient, projected_step
from wdro_train.theory.losses import LossFunction, resolve_loss
from wdro_train.theory.sensitivity import upsilon
from wdro_train.utils.distributed import LocalReducer, Reducer
from wdro_train.utils.errors import UserError
from wdro_train.utils.learnt import learnt_number


class Lagrangian:
    """Maximise J(x') - lambda (||x' - x||_s - r)_+^p over x', image by image, with r = free delta.

    This is the Lagrangian of the Wasserstein ball (Sinha, Namkoong, Duchi 2018, arXiv 1710.10571; theory, section 9),
    with a price lambda that follows the budget instead of being fixed: by dual ascent, log lambda <- log lambda + rate
    (spent - budget^p) / budget^p, with spent = E (||x' - x||_s - r)_+^p over the global batch and budget =
    (1 - free) delta. With free > 0 displacements up to r cost nothing and only the excess is charged, in the spirit of
    the soft ball of unified distributional robustness (Bui et al. 2022, arXiv 2202.13437), though not by its formulas.
    Either way, what keeps to its budget is inside the ball of radius delta.

    A step goes up the loss and comes back to the radius at which, to first order, another unit of distance costs what
    it wins: r + (||g||_* / (p lambda))^(1/(p-1)).

    Args:
        p: Order of the penalty and of the ball, in (1, inf).
        norm: Ground norm in [1, inf].
        delta: Radius of the ball.
        loss: `ce`, `dlr`, `redlr` or a per-image loss.
        steps: Number of gradient steps.
        step_size: Length of the whole path in units of each image's radius.
        free: Share of delta that costs nothing, in [0, 1).
        random_start: Start from uniform noise of size delta.
        rate: Step of the dual ascent.
        limit: Largest displacement, as a share of the diameter of the box.
    """

    def __init__(
        self,
        *,
        p: float | str,
        norm: float | str,
        delta: float | str,
        loss: str | LossFunction = "ce",
        steps: int = 8,
        step_size: float = 1.875,
        free: float = 0.0,
        random_start: bool = True,
        rate: float = 0.05,
        limit: float = 0.6,
    ) -> None:
        self.ball = WassersteinBall(p, norm, delta).require_first_order("the Lagrangian attack")
        if math.isinf(self.ball.p):
            raise UserError("attack.p=inf has no price per distance; use attack=w_pgd, which is its hard ball")
        sane = steps >= 1 and step_size > 0 and rate >= 0 and 0 < limit <= 1 and 0 <= free < 1
        if not sane or self.ball.delta == 0:
            raise UserError(
                f"attack: steps={steps}, step_size={step_size}, rate={rate}, limit={limit}, free={free}, "
                f"delta={delta}; choose steps >= 1, step_size > 0, rate >= 0, limit in (0, 1], free in [0, 1) and "
                "delta > 0"
            )
        self.free = float(free)
        self.loss = resolve_loss(loss)
        self.steps, self.step_size = int(steps), float(step_size)
        self.random_start = random_start
        self.rate, self.limit = float(rate), float(limit)
        self._log_price: Tensor | None = None

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
        reducer = reducer or LocalReducer()
        with batch_under_attack(model, x, y) as (x, y, labels):
            loss = checked_loss(self.loss, labels)
            x_adv = random_start(self.ball, x, reducer, generator) if self.random_start else x
            nonfinite = torch.zeros((), dtype=torch.int64, device=x.device)
            for step in range(self.steps):
                here = input_gradient(model, x_adv, y, loss)
                nonfinite += here.nonfinite
                slope = free_gradient(here.gradient, x_adv)
                dual_norms = self.ball.ground.dual_norms(slope)
                if step == 0:
                    check_logits(model, x, here.logits, labels)
                    first, first_norms = here, dual_norms
                    total = upsilon(dual_norms, self.ball.q, weight, reducer)
                    self._start_price(total)
                radii = self._radii(dual_norms, x)
                x_adv = projected_step(self.ball.ground, x, x_adv, slope, self.step_size / self.steps * radii, radii)
            distances = self.ball.ground.distances(x_adv - x)
            excess = self.ball.spent((distances - self.free * self.ball.delta).clamp_min(0.0), weight, reducer)
            price = self._price().exp()
            self._pay(excess)
            return AttackResult(
                x_adv=x_adv,
                distances=distances,
                upsilon=total,
                dual_norms=first_norms,
                losses=first.losses,
                logits=first.logits,
                zero_gradients=(first_norms == 0).sum(),
                nonfinite_gradients=nonfinite,
                terms={"price": price, "excess": excess},
                attacked=Attacked(model, y),
            )

    def state_dict(self) -> dict[str, Any]:
        """The logarithm of the price lambda, for a checkpoint."""
        return {} if self._log_price is None else {"log_price": self._log_price}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue with the price of a checkpoint."""
        self._log_price = learnt_number(state_dict, "log_price", "price of transport")

    def _budget(self) -> float:
        """How large the excess over the free radius may be, (E excess^p)^(1/p), in units of the norm."""
        return (1 - self.free) * self.ball.delta

    def _price(self) -> Tensor:
        assert self._log_price is not None
        return self._log_price

    def _start_price(self, sensitivity: Tensor) -> None:
        """The first price is the one at which W-FGSM spends the budget: p lambda budget^(p-1) = Upsilon."""
        if self._log_price is None and sensitivity > 0:
            self._log_price = (sensitivity / (self.ball.p * self._budget() ** (self.ball.p - 1))).log()
        elif self._log_price is None:
            self._log_price = torch.zeros_like(sensitivity)
        self._log_price = self._log_price.to(sensitivity.device)

    def _radii(self, dual_norms: Tensor, x: Tensor) -> Tensor:
        """The distances at which another unit of distance costs what it wins, shape [B].

        Raises:
            UserError: No image may move as far as delta, so that the budget cannot be spent.
        """
        most = self.limit * self.ball.ground.diameter(x)
        if most <= self.ball.delta:
            raise UserError(
                f"attack.limit={self.limit:g} keeps every image within {most:g}, not more than "
                f"attack.delta={self.ball.delta:g}, so the budget cannot be spent; choose a larger limit"
            )
        worth = self.ball.worthwhile(dual_norms, self._price().exp())
        return (self.free * self.ball.delta + worth).clamp(max=most)

    def _pay(self, excess: Tensor) -> None:
        """One step of dual ascent on the price, which is at most multiplied by e.

        While the price is far too low the excess may be many budgets, and its p-th power would lift the price far above
        the right one. The smallest rate of 1e-6 stands for a rate of 0, at which the price stays.
        """
        overspent = ((excess / self._budget()).pow(self.ball.p) - 1).clamp(max=1 / max(self.rate, 1e-6))
        self._log_price = self._price() + self.rate * overspent
