"""SABR: train on interval bounds of small boxes, which an attack places inside the ball around each image."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wdro_train.attacks.gradient import input_gradient
from wdro_train.attacks.mode import attack_mode
from wdro_train.objectives.certified import Differences
from wdro_train.objectives.ibp import Ibp
from wdro_train.objectives.training_radii import TrainingRadii
from wdro_train.theory.ground_norm import per_image
from wdro_train.theory.losses import ce
from wdro_train.utils.errors import UserError


class Sabr(Ibp):
    """Training on small boxes in l_inf (SABR, Mueller et al. 2023, arXiv 2210.04871).

    The box of half-size tau eps lies around a point that signed gradient steps have found within (1 - tau) eps of the
    image, so inside the ball of radius eps. It holds fewer images than the ball: the bound is *no* certificate for the
    ball, but steers towards networks that a tighter certificate than interval bounds covers, with more clean accuracy.
    Radii that follow from these bounds are estimates likewise, and what is claimed is what a certificate says
    afterwards.

    Args:
        p: Wasserstein order in [1, inf].
        norm: Ground norm, inf.
        delta: Radius.
        tau: Half-size of the small boxes in units of the radius, in (0, 1]; at 1 this is `Ibp`.
        steps: Steps of the attack, which cost a forward and a backward pass each, for every bound.
        kappa: Weight of the clean loss, in [0, 1].
        radius: How far each image is to be trained; `RadiusOfImage` by default.
    """

    def __init__(
        self,
        *,
        p: float,
        norm: float,
        delta: float,
        tau: float = 0.4,
        steps: int = 4,
        kappa: float = 0.5,
        radius: TrainingRadii | None = None,
    ) -> None:
        super().__init__(p=p, norm=norm, delta=delta, kappa=kappa, radius=radius)
        if not 0 < tau <= 1 or steps < 1:
            raise UserError(f"objective.tau={tau}, objective.steps={steps}: choose tau in (0, 1] and steps >= 1")
        self.tau, self.steps = float(tau), int(steps)

    def differences(self, model: nn.Module, x: Tensor, y: Tensor) -> Differences:
        """Bounds over small boxes around attacked points; see `CertifiedObjective`."""
        bounds = super().differences

        def small(radii: Tensor) -> Tensor:
            centers = self._attack(model, x, y, (1 - self.tau) * radii.to(x))
            return bounds(model, centers, y)(self.tau * radii)

        return small

    def _attack(self, model: nn.Module, x: Tensor, y: Tensor, reach: Tensor) -> Tensor:
        """Points of high loss within `reach` of each image, from the image itself, by a path of twice that length."""
        if self.tau == 1:
            return x
        limit = per_image(reach, x)
        points = x.detach()
        with attack_mode(model):
            for _ in range(self.steps):
                gradient = input_gradient(model, points, y, ce).gradient
                points = points + (2 / self.steps) * limit * self.ball.ground.direction(gradient)
                points = torch.minimum(torch.maximum(points, x - limit), x + limit).clamp(0, 1)
        return points.detach()
