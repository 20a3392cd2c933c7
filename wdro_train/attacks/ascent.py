"""The formulas of a first-order step, for a distribution that lies in one batch, on several ranks, or on a disk.

W-FGSM takes the step once, W-PGD many times with a projection after each (theory, sections 2 and 4). The images of a
distribution are coupled by two moments only, that of the gradient norms, which gives Upsilon, and that of the
displacements, which gives the projection. So everything here works on a part of the distribution, or on the moments
of all parts: whoever holds the parts forms the moments, joins them, and hands them in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from wdro_train.theory.ball import WassersteinBall
from wdro_train.theory.box import climb, free_gradient, move
from wdro_train.theory.ground_norm import GroundNorm, per_image
from wdro_train.theory.power_mean import merge, moment, power_mean
from wdro_train.theory.sensitivity import Scope
from wdro_train.utils.blocks import by_blocks


def slope_in_box(gradient: Tensor, x: Tensor, *, box: bool, into: Tensor | None = None) -> Tensor:
    """The gradient along which an attack moves: the free one inside [0, 1]^n, or as it is (theory, section 2).

    Args:
        gradient: grad_x J, shape [B, ...].
        x: The images where it was taken, in [0, 1], same shape.
        box: True sets the components that point out of the box to 0; False is the paper's formula.
        into: Memory that the result may be written to, same shape; it may be the gradient's.
    """
    return free_gradient(gradient, x, into) if box else gradient


def steepness(ground: GroundNorm, gradient: Tensor, x: Tensor, *, box: bool) -> tuple[Tensor, Tensor]:
    """The gradient along which an attack moves and its dual norms.

    Args:
        ground: The norm ||.||_s.
        gradient: grad_x J, shape [B, ...]; it may be overwritten.
        x: The images where it was taken, in [0, 1], same shape.
        box: As for `slope_in_box`.

    Returns:
        `slope_in_box`, shape [B, ...], and ||slope_i||_*, shape [B], float64.
    """

    def both(gradient: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        slope = slope_in_box(gradient, x, box=box, into=gradient)
        return slope, ground.dual_norms(slope)

    return by_blocks(both, gradient, x, into=gradient)


def upsilon_in_scope(parts: Tensor, q: float, scope: Scope, step: int) -> Tensor:
    """Upsilon = (E ||g||_*^q)^(1/q) at a step, over all parts of the distribution and the attack's scope.

    Args:
        parts: Moments of the dual gradient norms of all parts, with exponent q, shape [k, 3].
        q: Conjugate of the Wasserstein order.
        scope: Over what the mean is taken.
        step: Number of the step, which keeps the estimates of different iterates apart.

    Returns:
        Scalar, float64, in loss units per unit of the ground norm.
    """
    return power_mean(scope(f"upsilon/{step}", merge(parts, q), q), q)


@dataclass(frozen=True)
class ProjectedStep:
    """One step of W-PGD: x <- project(x + length h(g) (||g||_* / Upsilon)^(q-1)) (theory, section 4).

    Attributes:
        ball: The threat, p > 1.
        length: The p-th power mean of the ascent, in units of the ground norm.
        box: True goes along the free gradient and spends the whole length inside [0, 1]^n; False is the paper's step.
        scope: Over what the spent budget is taken.
    """

    ball: WassersteinBall
    length: float
    box: bool
    scope: Scope

    @torch.no_grad()
    def ascent(
        self,
        x: Tensor,
        x_adv: Tensor,
        slope: Tensor,
        dual_norms: Tensor,
        upsilon: Tensor,
        into: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The displacement after the ascent, before the projection.

        Args:
            x: Clean images in [0, 1], shape [B, ...].
            x_adv: The current iterate, same shape.
            slope: From `slope_in_box` at the iterate, same shape.
            dual_norms: ||slope||_*, shape [B].
            upsilon: Upsilon of the whole distribution at the iterate, scalar.
            into: Memory that the displacement may be written to, same shape; it may be the slope's.

        Returns:
            The displacement u from the clean images, shape [B, ...], and its norms ||u_i||_s, shape [B].
        """
        radii = self.length * self.ball.shares(dual_norms, upsilon)
        return by_blocks(self._ascent, x, x_adv, slope, radii, into is slope, into=into)

    def _ascent(self, x: Tensor, x_adv: Tensor, slope: Tensor, radii: Tensor, overwrite: bool) -> tuple[Tensor, Tensor]:
        """The displacement and its norms, for the images of a block."""
        if self.box:
            u = climb(self.ball.ground, x_adv, slope, radii, into=slope if overwrite else None).sub_(x)
        else:
            u = self.ball.ground.direction(slope).mul_(per_image(radii, x)).add_(x_adv).sub_(x)
        return u, self.ball.ground.distances(u)

    def displacement_moments(self, distances: Tensor, held: Tensor, weight: Tensor | None) -> Tensor:
        """Moments of the displacements that may shrink and of those that are held, shape [2, 3].

        At p = inf the projection is image by image and needs nothing to be joined: the result is all zero.

        Args:
            distances: Norms before the projection, shape [B].
            held: Images that keep the displacement they have, shape [B]: those without gradient.
            weight: Shape [B]; 0 for padding. None: all 1.
        """
        p = self.ball.p
        if math.isinf(p):
            return distances.new_zeros(2, 3)
        w = torch.ones_like(distances) if weight is None else weight.to(distances)
        return torch.stack([moment(distances, w * ~held, p), moment(distances, w * held, p)])

    def allowed(self, distances: Tensor, held: Tensor, parts: Tensor, step: int) -> Tensor:
        """The norms that the projection allows, shape [B].

        Args:
            distances: Norms before the projection, shape [B].
            held: Images that keep what they have, shape [B].
            parts: Displacement moments of all parts of the distribution, shape [k, 2, 3].
            step: Number of the step, for the scope.
        """
        p = self.ball.p
        if math.isinf(p):
            return distances.clamp(max=self.ball.delta)
        joined = torch.stack([merge(parts[:, k], p) for k in (0, 1)])
        rho = self.ball.shrinkage(*self.scope(f"distance/{step}", joined, p))
        return torch.where(held, distances, rho * distances)

    def project(
        self,
        x: Tensor,
        u: Tensor,
        distances: Tensor,
        allowed: Tensor,
        *,
        exact: bool = True,
        into: Tensor | None = None,
    ) -> Tensor:
        """The next iterate: the displacement brought to the allowed norms, inside the box.

        Args:
            x: Clean images in [0, 1], shape [B, ...].
            u: Displacements from `ascent`, same shape.
            distances: Their norms, shape [B].
            allowed: From `allowed`, shape [B].
            exact: True lets no coordinate move further than is allowed, not even by a rounding (see `move`), as an
                iterate must not that is handed out; False rounds to nearest, at a fifth of the arithmetic.
            into: Memory that the iterate may be written to, same shape; it may be the displacements'.
        """
        return by_blocks(self._project, x, u, distances, allowed, exact, into is u, into=into)

    def _project(
        self, x: Tensor, u: Tensor, distances: Tensor, allowed: Tensor, exact: bool, overwrite: bool
    ) -> Tensor:
        """The next iterate of the images of a block."""
        nearer = self.ball.ground.shrink(u, distances, allowed, into=u if overwrite else None)
        return move(x, nearer) if exact else nearer.add_(x).clamp_(0, 1)
