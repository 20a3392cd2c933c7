"""The threat model: a Wasserstein ball of order p and radius delta over images with ground norm s.

Shapes: images and gradients are [B, ...]; everything "per image" is [B]. Norms and radii are in pixel units of
images in [0, 1]. Per-image numbers are float64, images keep their dtype.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from wdro_train.theory.power_mean import merge, moment, power_mean
from wdro_train.utils.distributed import LocalReducer, Reducer
from wdro_train.utils.errors import UserError
from wdro_train.utils.numbers import parse_norm, parse_number


def conjugate(exponent: float) -> float:
    """The e' with 1/e + 1/e' = 1; 1 <-> inf."""
    if math.isinf(exponent):
        return 1.0
    return math.inf if exponent == 1 else exponent / (exponent - 1)


def image_norms(u: Tensor, order: float) -> Tensor:
    """||u_i||_s of every image, scale-free: the largest entry is divided out first.

    Args:
        u: Shape [B, ...].
        order: s in [1, inf].

    Returns:
        Shape [B], float64.
    """
    size = u.detach().flatten(1).abs()
    largest = size.amax(1)
    if math.isinf(order):
        return largest.double()
    ratio = size / _nonzero(largest)[:, None]
    if order == 1:
        total = ratio.sum(1)
    elif order == 2:
        total = torch.linalg.vector_norm(ratio, dim=1)
    else:
        total = ratio.pow(order).sum(1).pow(1 / order)
    return largest.double() * total.double()


def per_image(values: Tensor, like: Tensor) -> Tensor:
    """Per-image numbers [B] as [B, 1, ...], in the dtype of the images they will multiply."""
    return values.to(like.dtype).view(-1, *[1] * (like.dim() - 1))


@dataclass(frozen=True)
class WassersteinBall:
    """B_delta(P) = {Q : W_p(P, Q) <= delta} with ground cost ||x - x'||_s; labels cannot move.

    `p = norm = inf` is the classical pointwise threat. `p = 1` is a valid ball, but its first-order worst case
    is not unique, so the first-order attacks refuse it.

    Attributes:
        p: Wasserstein order in [1, inf].
        norm: Ground norm s in [1, inf].
        delta: Radius, >= 0, in units of the ground norm.

    >>> ball = WassersteinBall(p=2, norm="inf", delta="8/255")
    >>> ball.q, ball.dual, round(ball.delta, 4)
    (2.0, 1.0, 0.0314)
    """

    p: float
    norm: float
    delta: float

    def __post_init__(self) -> None:
        """Parse and check the three numbers.

        Raises:
            UserError: p < 1, norm < 1, delta < 0, or any of them NaN; an infinite delta.
        """
        for name in ("p", "norm", "delta"):
            object.__setattr__(self, name, parse_number(getattr(self, name), f"attack.{name}"))
        if not self.p >= 1:
            raise UserError(f"attack.p={self.p:g} is not a Wasserstein order; choose p in [1, inf]")
        object.__setattr__(self, "norm", parse_norm(self.norm))
        if not 0 <= self.delta < math.inf:
            raise UserError(f"attack.delta={self.delta:g} is not a radius; choose a finite delta >= 0")

    def diameter(self, x: Tensor) -> float:
        """||(1, ..., 1)||_s, the diameter of the box [0, 1]^n, which no displacement inside it exceeds.

        Args:
            x: Images, shape [B, ...], for their n.
        """
        return 1.0 if math.isinf(self.norm) else float(math.prod(x.shape[1:]) ** (1 / self.norm))

    def require_first_order(self, attack: str) -> Self:
        """Itself, if its first-order worst case is unique (p > 1).

        Raises:
            UserError: p = 1, where Q_delta is not unique: any split over the steepest images is optimal.
        """
        if self.p == 1:
            raise UserError(
                f"{attack} cannot run with attack.p=1: the first-order worst case under W_1 is not unique "
                "(all budget goes to the steepest image); choose attack.p > 1, or experiment=worst_case, which needs "
                "no first order"
            )
        return self

    @property
    def q(self) -> float:
        """Conjugate of p: 1/p + 1/q = 1."""
        return conjugate(self.p)

    @property
    def dual(self) -> float:
        """Exponent of the dual norm ||.||_*: 1/s + 1/s' = 1."""
        return conjugate(self.norm)

    def distances(self, u: Tensor) -> Tensor:
        """||u_i||_s of displacements [B, ...], shape [B], float64."""
        return image_norms(u, self.norm)

    def dual_norms(self, g: Tensor) -> Tensor:
        """||g_i||_* of gradients [B, ...], shape [B], float64."""
        return image_norms(g, self.dual)

    def direction(self, g: Tensor) -> Tensor:
        """h(g): unit s-norm with <h(g), g> = ||g||_* (theory, section 2); 0 where g = 0.

        s = inf: sign(g). 1 < s < inf: sign(g) (|g| / ||g||_*)^(s'-1). s = 1: all mass on the coordinates of
        largest |g|, split equally over ties.

        Args:
            g: Gradients, shape [B, ...], finite.

        Returns:
            Directions of the same shape and dtype.
        """
        if math.isinf(self.norm):
            return g.sign()
        ratio = g / per_image(_nonzero(g.flatten(1).abs().amax(1)), g)
        if self.norm == 1:
            ratio = ratio.sign() * (ratio.abs() >= 1)
            return ratio / per_image(_nonzero(image_norms(ratio, 1)), g)
        unit = ratio / per_image(_nonzero(image_norms(ratio, self.dual)), g)
        return unit if self.norm == 2 else unit.sign() * unit.abs().pow(self.dual - 1)

    def shares(self, dual_norms: Tensor, upsilon: Tensor) -> Tensor:
        """(||g_i||_* / Upsilon)^(q-1): each image's share of the budget, whose p-th power mean is 1.

        Args:
            dual_norms: Shape [B].
            upsilon: Scalar; 0 (no gradient anywhere) gives shares of 0.

        Returns:
            Shape [B], float64; at p = inf it is 1, and 0 for images without gradient.
        """
        if math.isinf(self.p):
            return (dual_norms > 0).double()
        ratio = dual_norms.double() / torch.where(upsilon > 0, upsilon, 1.0)
        return ratio.pow(self.q - 1)

    def spent(self, distances: Tensor, weight: Tensor | None = None, reducer: Reducer | None = None) -> Tensor:
        """(E ||x' - x||_s^p)^(1/p), the cost of the identity coupling, an upper bound on W_p(P, Q).

        Args:
            distances: Per-image displacement norms, shape [B].
            weight: Shape [B]; 0 for padding.
            reducer: Joins the ranks; None for one process.

        Returns:
            Scalar, float64; <= delta proves membership in the ball.
        """
        parts = (reducer or LocalReducer()).gather(moment(distances, weight, self.p))
        return power_mean(merge(parts, self.p), self.p)

    def shrinkage(self, moving: Tensor, held: Tensor) -> Tensor:
        """The factor rho <= 1 on the moving displacements that brings the whole set back into the ball.

        rho^p S_moving + S_held = delta^p (w_moving + w_held), with S the sums of ||u||^p. Held images keep what
        they have and the others share what is left; rho = 1 if everything fits.

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

    def shrink(self, u: Tensor, distances: Tensor, radii: Tensor) -> Tensor:
        """The displacements brought to at most `radii`, image by image.

        s = inf: coordinates are clipped (the nearest point, and the one that keeps most of the displacement);
        other norms: scaled by min(1, radius / distance).

        Args:
            u: Displacements, shape [B, ...].
            distances: Their norms, shape [B].
            radii: Allowed norms, shape [B].

        Returns:
            Same shape as u.
        """
        if math.isinf(self.norm):
            bound = per_image(radii, u)
            return torch.maximum(torch.minimum(u, bound), -bound)
        return u * per_image((radii / _nonzero(distances)).clamp(max=1.0), u)


def _nonzero(values: Tensor) -> Tensor:
    """`values` with zeros replaced by one, to divide by."""
    return torch.where(values > 0, values, 1.0)
