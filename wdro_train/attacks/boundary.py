"""The exact worst case to train on: every correct image at its own decision boundary, if that is near enough."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from wdro_train.attacks.base import AttackResult
from wdro_train.attacks.gradient import forward, input_gradient
from wdro_train.attacks.marginal import DualAscent, Marginal
from wdro_train.attacks.mode import batch_under_attack
from wdro_train.attacks.network_check import check_logits
from wdro_train.attacks.random_start import random_start
from wdro_train.theory.ball import WassersteinBall
from wdro_train.theory.box import free_gradient, move, projected_step
from wdro_train.theory.ground_norm import per_image
from wdro_train.theory.losses import LossFunction, resolve_loss
from wdro_train.theory.losses import correct as is_correct
from wdro_train.theory.power_mean import moment, power_mean
from wdro_train.utils.distributed import LocalReducer, Reducer
from wdro_train.utils.errors import UserError


class BoundaryAttack:
    """Worst-case-dual attack: correct images move until they flip or reach the marginal distance (theory, section 10).

    grad_theta (1 - A_delta) = -lambda p E[d^(p-1) grad_theta d; 0 < d < D], D = lambda^(-1/p): what lowers the exact
    worst-case accuracy are the images nearer to the boundary than D, at their boundary points. Images stop where they
    flip, and may be pulled back to the boundary by bisection; those that do not stay at distance D, which keeps them
    there; misclassified images stay clean. D follows from the ball and the network through `marginal`.

    The result is a training set, not a point of the ball: images that do not flip cost more than the budget.

    One forward pass over the batch, a forward and a backward pass a step over the images that have not flipped yet,
    and a forward pass a bisection over those that have. One collective under DDP.

    Args:
        p: Wasserstein order in [1, inf].
        norm: Ground norm: 2 or inf (others work where `box.ascend` does).
        delta: Radius.
        loss: What the steps ascend.
        steps: Number of gradient steps.
        step_size: Length of the whole path in units of the reach.
        random_start: Start from uniform noise of so many times delta; 0 starts at the image. Small, as noise that
            does not help to flip takes a near image past its boundary point.
        bisections: Halvings of the segment from the image to its flip; with 0 the flip stays where a step found it.
        weighted: Give every image the importance (d / reach)^(p-1) of the formula; misclassified ones have 1.
        beyond: Importance of the images that did not flip, beside 1 for the others; 0 leaves them out, as margin
            maximisation does.
        marginal: How far to reach; by default dual ascent on the multiplier.
    """

    def __init__(
        self,
        *,
        p: float,
        norm: float,
        delta: float,
        loss: str | LossFunction = "ce",
        steps: int = 8,
        step_size: float = 3.0,
        random_start: float = 0.2,
        bisections: int = 0,
        weighted: bool = False,
        beyond: float = 0.5,
        marginal: Marginal | None = None,
    ) -> None:
        if steps < 1 or bisections < 0:
            raise UserError(f"attack.steps={steps}, attack.bisections={bisections}: choose at least 1 and 0")
        if not 0 <= random_start < math.inf:
            raise UserError(f"attack.random_start={random_start} is no size; choose 0 or more, in units of delta")
        if not step_size > 0:
            raise UserError(f"attack.step_size={step_size} does not ascend; choose a positive one")
        if not 0 <= beyond < math.inf:
            raise UserError(f"attack.beyond={beyond} is no weight; choose 0 or more")
        self.ball = WassersteinBall(p, norm, delta)
        self.loss = resolve_loss(loss)
        self.steps, self.bisections = int(steps), int(bisections)
        self.step_size = float(step_size)
        self.random_start = float(random_start)
        self.weighted, self.beyond = weighted, float(beyond)
        self.marginal: Marginal = marginal if marginal is not None else DualAscent()

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
            weight = torch.ones_like(y, dtype=torch.float64) if weight is None else weight.double()
            with torch.no_grad():
                logits = forward(model, x)
            check_logits(model, x, logits, labels)
            right = is_correct(logits, y)
            reach = self.marginal.reach(self.ball, x)
            # Drawn for the whole global batch, whichever images need it, so that ranks and masks do not change it.
            noise = replace(self.ball, delta=self.random_start * self.ball.delta)
            start = random_start(noise, x, reducer, generator) if noise.delta else x
            search = _FirstFlipSearch(self, model, x, y, start, reach)
            search.run(right.nonzero().squeeze(1))
            search.refine()
            flips = torch.where(right, search.flips, 0.0)
            distances = self.ball.ground.distances(search.points - x)
            parts = reducer.gather(torch.stack([flips, weight, search.dual_norms])).transpose(0, 1).flatten(1)
            self.marginal.update(self.ball, parts[0], parts[1])
            return AttackResult(
                x_adv=search.points,
                distances=distances,
                upsilon=power_mean(moment(parts[2], parts[1], self.ball.q), self.ball.q),
                dual_norms=search.dual_norms,
                losses=self.loss(logits, y),
                logits=logits,
                zero_gradients=(right & (search.dual_norms == 0)).sum(),
                nonfinite_gradients=search.nonfinite,
                importance=self._importance(flips, reach),
                terms={
                    "reach": reach,
                    "flipped": (parts[1] * (parts[0] > 0) * parts[0].isfinite()).sum() / parts[1].sum(),
                    "spent": self.ball.spent(torch.where(parts[0].isfinite(), parts[0], 0.0), parts[1]),
                },
            )

    def state_dict(self) -> dict[str, Any]:
        """The marginal distance."""
        return self.marginal.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from it."""
        self.marginal.load_state_dict(state_dict)

    def _importance(self, flips: Tensor, reach: Tensor) -> Tensor | None:
        """(d / reach)^(p-1) for flips, `beyond` where there is none and 1 for misclassified images, [B].

        At p = inf all flips count the same; at delta = 0 there is no far image, and training is standard.
        """
        if self.ball.delta == 0 or (not self.weighted and self.beyond == 1):
            return None
        importance = torch.ones_like(flips)
        if self.weighted and not math.isinf(self.ball.p):
            relative = (flips / torch.where(reach > 0, reach, 1.0)).clamp(max=1.0).pow(self.ball.p - 1)
            importance = torch.where(flips > 0, relative, importance)
        return torch.where(flips.isfinite(), importance, self.beyond)


class _FirstFlipSearch:
    """The state of one batch: where every image is, and how far its flip."""

    def __init__(
        self, attack: BoundaryAttack, model: nn.Module, x: Tensor, y: Tensor, start: Tensor, reach: Tensor
    ) -> None:
        self.attack, self.ground, self.model = attack, attack.ball.ground, model
        self.x, self.y, self.start, self.reach = x, y, start, reach
        self.points = x.clone()
        self.flips = torch.full((len(x),), math.inf, dtype=torch.float64, device=x.device)
        self.dual_norms = torch.zeros_like(self.flips)
        self.nonfinite = torch.zeros((), dtype=torch.int64, device=x.device)

    def run(self, rows: Tensor) -> None:
        """Move the images `rows` until they flip (one transfer to the host a step: how many are left)."""
        point = self.start[rows]
        step_length = self.attack.step_size / self.attack.steps * self.reach
        for step in range(self.attack.steps):
            if not len(rows):
                return
            here = input_gradient(self.model, point, self.y[rows], self.attack.loss)
            self.nonfinite += here.nonfinite
            slope = free_gradient(here.gradient, point)
            if step == 0:
                self.dual_norms[rows] = self.ground.dual_norms(slope)
            left = self._settle(rows, point, here.logits)
            rows, point, slope = rows[left], point[left], slope[left]
            lengths, radii = step_length.expand(len(rows)), self.reach.expand(len(rows))
            point = projected_step(self.ground, self.x[rows], point, slope, lengths, radii)
        if len(rows):
            with torch.no_grad():
                self._settle(rows, point, forward(self.model, point))
            self.points[rows] = point

    def _settle(self, rows: Tensor, point: Tensor, logits: Tensor) -> Tensor:
        """Put down the images that have flipped; returns the places of the others."""
        flipped = ~is_correct(logits, self.y[rows])
        distances = self.ground.distances(point - self.x[rows])
        self.flips[rows] = torch.where(flipped, distances, math.inf)
        self.points[rows] = point
        return (~flipped).nonzero().squeeze(1)

    @torch.no_grad()
    def refine(self) -> None:
        """Pull flips back along the segment to their image, as far as they stay flips."""
        rows = self.flips.isfinite().nonzero().squeeze(1)
        if not len(rows) or not self.attack.bisections:
            return
        x, u = self.x[rows], self.points[rows] - self.x[rows]
        low = torch.zeros(len(rows), dtype=torch.float64, device=x.device)
        high = torch.ones_like(low)
        for _ in range(self.attack.bisections):
            middle = (low + high) / 2
            point = move(x, per_image(middle, x) * u)
            flipped = ~is_correct(forward(self.model, point), self.y[rows])
            high, low = torch.where(flipped, middle, high), torch.where(flipped, low, middle)
        self.points[rows] = move(x, per_image(high, x) * u)
        self.flips[rows] = self.ground.distances(self.points[rows] - x)
