"""The threat: every distribution within Wasserstein distance delta of the data's (theory, sections 1 and 2).

What is said of each image has shape [B]. Radii are in units of the ground norm, of images in [0, 1].
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor

from wdro_train.theory.ground_norm import GroundNorm, conjugate
from wdro_train.theory.power_mean import merge, moment, power_mean
from wdro_train.utils.distributed import LocalReducer, Reducer
from wdro_train.utils.errors import UserError
from wdro_train.utils.numbers import parse_number


@dataclass(frozen=True)
class WassersteinBall:
    """B_delta(P) = {Q : W_p(P, Q) <= delta} with ground cost ||x - x'||_s; labels cannot move.

    `p = norm = inf` is the classical pointwise threat. `p = 1` is a valid ball, but its first-order worst case
    is not unique, so the first-order attacks refuse it.

    Attributes:
        p: Wasserstein order in [1, inf].
        norm: Order s of the ground norm, in [1, inf].
        delta: Radius, >= 0, in units of the ground norm.
        ground: The ground norm itself, which measures displacements and gradients.

    >>> ball = WassersteinBall(p=2, norm="inf", delta="8/255")
    >>> ball.q, ball.ground.dual, round(ball.delta, 4)
    (2.0, 1.0, 0.0314)
    """

    p: float
    norm: float
    delta: float
    ground: GroundNorm = field(init=False, repr=False, compare=False)

    def __init__(self, p: float | str, norm: float | str, delta: float | str) -> None:
        """Parse and check the three numbers, which may be written as people type them: `"inf"`, `"8/255"`.

        Raises:
            UserError: p < 1, norm < 1, delta < 0, or any of them NaN; an infinite delta.
        """
        for name, value in (("p", p), ("norm", norm), ("delta", delta)):
            object.__setattr__(self, name, parse_number(value, f"attack.{name}"))
        if not self.p >= 1:
            raise UserError(f"attack.p={self.p:g} is not a Wasserstein order; choose p in [1, inf]")
        object.__setattr__(self, "ground", GroundNorm(self.norm))
        if not 0 <= self.delta < math.inf:
            raise UserError(f"attack.delta={self.delta:g} is not a radius; choose a finite delta >= 0")

    def require_first_order(self, attack: str) -> Self:
        """Itself, if its first-order worst case is unique (p > 1).

        Raises:
            UserError: p = 1, where Q_delta is not unique: any split over the steepest images is optimal.
        """
        if self.p == 1:
            raise UserError(
                f"{attack} cannot run with attack.p=1: the first-order worst case under W_1 is not unique "
                "(all budget goes to the steepest image); choose attack.p > 1, or method=worst_case, which needs "
                "no first order"
            )
        return self

    @property
    def q(self) -> float:
        """Conjugate of p: 1/p + 1/q = 1."""
        return conjugate(self.p)

    def shares(self, dual_norms: Tensor, upsilon: Tensor) -> Tensor:
        """Each image's share of the budget, (||g_i||_* / Upsilon)^(q-1), whose p-th power mean is 1 (section 2).

        Args:
            dual_norms: ||g_i||_* of the gradients, shape [B].
            upsilon: Scalar; 0 (no gradient anywhere) gives shares of 0.

        Returns:
            Shape [B], float64; at p = inf it is 1, and 0 for images without gradient.
        """
        if math.isinf(self.p):
            return (dual_norms > 0).double()
        ratio = dual_norms.double() / torch.where(upsilon > 0, upsilon, 1.0)
        return ratio.pow(self.q - 1)

    def worthwhile(self, dual_norms: Tensor, price: Tensor | float) -> Tensor:
        """How far each image goes where it pays for its way, argmax over r >= 0 of r ||g_i||_* - price r^p.

        At that distance, (||g_i||_* / (p price))^(1/(p-1)), another unit of distance costs what it wins. For a linear
        loss it is exact: r h(g_i) maximises J(x_i + u) - price ||u||_s^p (theory, section 9).

        Args:
            dual_norms: ||g_i||_* of the gradients, shape [B].
            price: Of a unit of distance to the power of p, > 0, in loss units.

        Returns:
            Shape [B], float64, in units of the ground norm; p must be in (1, inf).
        """
        return (dual_norms.double() / (self.p * price)).pow(1 / (self.p - 1))

    def spent(self, distances: Tensor, weight: Tensor | None = None, reducer: Reducer | None = None) -> Tensor:
        """What displacements cost, (E ||x' - x||_s^p)^(1/p): that of the identity coupling, which is >= W_p(P, Q).

        Args:
            distances: Norms of the displacements, shape [B].
            weight: Shape [B]; 0 for padding.
            reducer: Joins the ranks; None for one process.

        Returns:
            Scalar, float64; <= delta proves membership in the ball.
        """
        parts = (reducer or LocalReducer()).gather(moment(distances, weight, self.p))
        return power_mean(merge(parts, self.p), self.p)

    def shrinkage(self, moving: Tensor, held: Tensor) -> Tensor:
        """The factor rho <= 1 on the moving displacements that brings the whole set back into the ball.

        rho^p S_moving + S_held = delta^p (w_moving + w_held), with S the sums of ||u||^p and w the numbers of images.
        Held images keep what they have and the others share what is left; rho = 1 if everything fits.

        Args:
            moving: Moment of the displacements that may shrink, shape [3], exponent p < inf.
            held: Moment of those that keep theirs.

        Returns:
            Scalar in [0, 1], float64.
        """
        delta = max(self.delta, torch.finfo(torch.float64).tiny)
        left = moving[2] + held[2] - held[1] * (held[0] / delta).pow(self.p)
        room = self.delta * left.clamp_min(0.0).pow(1 / self.p)
        size = moving[0] * moving[1].pow(1 / self.p)
        return torch.where(size > room, room / torch.where(size > 0, size, 1.0), 1.0)
