"""The exact worst case to train on: every correct image at its own decision boundary, if that is near enough."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from wdro_train.attacks.base import Attacked, AttackResult
from wdro_train.attacks.gradient import forward, input_gradient
from wdro_train.attacks.marginal import DualAscent, Marginal
from wdro_train.attacks.mode import batch_under_attack
from wdro_train.attacks.nearest_flips import NearestFlips
from wdro_train.attacks.network_check import check_logits
from wdro_train.attacks.random_start import random_start
from wdro_train.theory.ball import WassersteinBall
from wdro_train.theory.box import free_gradient, projected_step
from wdro_train.theory.losses import LossFunction, resolve_loss
from wdro_train.theory.losses import correct as is_correct
from wdro_train.theory.power_mean import moment, power_mean
from wdro_train.utils.distributed import LocalReducer, Reducer
from wdro_train.utils.errors import UserError


class BoundaryAttack:
    """Images at their boundary points: correct ones move until they flip or have gone the marginal distance D.

    grad_theta (1 - A_delta) = -lambda p E[d^(p-1) grad_theta d; 0 < d < D] with D = lambda^(-1/p) (theory, section 10):
    worst-case accuracy rises with the distances of the images that are nearer to the boundary than D, and these rise
    when the loss at their boundary points falls. So images stop where they flip, and may be pulled back to the boundary
    by bisection; images that do not flip within D are trained on at distance D, which keeps their boundary that far
    away; misclassified images stay clean. D follows from the ball and the network through `marginal`.

    The result is a training set and no point of the ball: images that do not flip may cost more than the budget.

    It takes one forward pass over the batch, a forward and a backward pass a step over the images that have not flipped
    yet, and a forward pass a bisection over those that have; under DDP one collective.

    The defaults were chosen on Fashion-MNIST; docs/results/fashion_linf/ablations.md has what others lead to.

    Args:
        p: Wasserstein order in [1, inf].
        norm: Ground norm in [1, inf].
        delta: Radius.
        loss: What the steps ascend.
        steps: Number of gradient steps.
        step_size: Length of the whole path in units of the reach.
        random_start: Start from noise of so many times delta; 0 starts at the image. It should be small, since noise
            that does not help to flip takes near images past their boundary points.
        bisections: Halvings of the segment from the image to its flip; with 0 the flip stays where a step found it.
        weighted: Give every image the importance (d / reach)^(p-1) of the formula; misclassified ones have 1.
        beyond: Importance of the images that did not flip, where the others have 1; 0 leaves them out, as margin
            maximisation does.
        marginal: How far to reach; by default dual ascent on the multiplier.
    """

    def __init__(
        self,
        *,
        p: float | str,
        norm: float | str,
        delta: float | str,
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
            # Drawn for all images, also those that need none, so that nobody's noise depends on whose image is correct.
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
                attacked=Attacked(model, y),
                importance=self._importance(flips, reach),
                terms={
                    "reach": reach,
                    "flipped": (parts[1] * (parts[0] > 0) * parts[0].isfinite()).sum() / parts[1].sum(),
                    "spent": self.ball.spent(torch.where(parts[0].isfinite(), parts[0], 0.0), parts[1]),
                },
            )

    def state_dict(self) -> dict[str, Any]:
        """The state of the marginal distance."""
        return self.marginal.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a checkpoint's marginal distance."""
        self.marginal.load_state_dict(state_dict)

    def _importance(self, flips: Tensor, reach: Tensor) -> Tensor | None:
        """The weight of each image in the loss, [B]; None where all are 1.

        Images that did not flip have `beyond`, flips (d / reach)^(p-1) if weights are asked for, and all others 1, as
        flips have at p = inf. At delta = 0 nothing is weighted, and training is standard.
        """
        if self.ball.delta == 0 or (not self.weighted and self.beyond == 1):
            return None
        importance = torch.ones_like(flips)
        if self.weighted and not math.isinf(self.ball.p):
            relative = (flips / torch.where(reach > 0, reach, 1.0)).clamp(max=1.0).pow(self.ball.p - 1)
            importance = torch.where(flips > 0, relative, importance)
        return torch.where(flips.isfinite(), importance, self.beyond)


class _FirstFlipSearch:
    """The search for the first flip of each image of a batch on a path of gradient steps.

    Attributes:
        points: Where each image is: at its flip, at the end of its path, or where it was; shape [B, ...].
        flips: Distance of each flip, inf where there is none, float64, shape [B].
        dual_norms: ||grad J||_* at the start, 0 for images that were not moved, float64, shape [B].
        nonfinite: Number of gradients that were not finite, int64 scalar.
    """

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
        """Move images until they flip; a step takes one transfer to the host, of how many are left.

        Args:
            rows: Which images of the batch to move, int64, shape [k].
        """
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
        """Record where images are and which have flipped; returns the places in `rows` of those that have not."""
        flipped = ~is_correct(logits, self.y[rows])
        distances = self.ground.distances(point - self.x[rows])
        self.flips[rows] = torch.where(flipped, distances, math.inf)
        self.points[rows] = point
        return (~flipped).nonzero().squeeze(1)

    @torch.no_grad()
    def refine(self) -> None:
        """Pull flips back towards their images along the segment between them, as far as they stay flips."""
        rows = self.flips.isfinite().nonzero().squeeze(1)
        if not len(rows) or not self.attack.bisections:
            return
        known = NearestFlips(self.ground, self.model, self.x[rows], self.y[rows], None)
        known.points, known.distances = self.points[rows], self.flips[rows]
        known.pull_back(self.attack.bisections)
        self.points[rows], self.flips[rows] = known.points, known.distances
