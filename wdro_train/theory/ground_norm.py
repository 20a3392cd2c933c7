"""How long displacements and gradients are: the ground norm ||.||_s of images, and its dual norm ||.||_*.

Shapes: images, displacements and gradients are [B, ...]; what is said of each image is [B]. Lengths are float64, in
units of the norm (pixels in [0, 1]); images keep their type. Everything is scale-free: the largest entry of an image is
divided out before powers are taken, so that neither 1e-20 nor 1e+20 under- or overflows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from wdro_train.utils import devices
from wdro_train.utils.blocks import by_blocks
from wdro_train.utils.numbers import parse_norm

# The distance between two float32 images is known up to this factor: a pixel rounds to within 3e-8, which is 1e-6 of
# l_inf distances of 8/255, and of far smaller ones in other norms. A point that was meant to lie at delta counts as
# lying there.
DISTANCE_ROUNDING = 1 + 1e-6
# Norms between these are computed, and divided by, without scaling: entries whose squares underflow do not matter
# beside such a norm, and no square of an entry overflows.
_SMALL, _LARGE = 2.0**-40, 2.0**60


def conjugate(exponent: float) -> float:
    """The e' with 1/e + 1/e' = 1 (theory, section 1); 1 and infinity are each other's."""
    if math.isinf(exponent):
        return 1.0
    return math.inf if exponent == 1 else exponent / (exponent - 1)


def image_norms(u: Tensor, order: float) -> Tensor:
    """The l_s norm of every image, ||u_i||_s = (sum_j |u_ij|^s)^(1/s).

    Args:
        u: Shape [B, ...].
        order: s in [1, inf].

    Returns:
        Shape [B], float64.
    """
    flat = u.detach().flatten(1)
    plain = _plain_norms(flat, order)
    if plain is not None:
        return plain.double()
    largest = torch.maximum(flat.amax(1), -flat.amin(1))
    if math.isinf(order):
        return largest.double()
    # Ratios must not exceed 1 where powers are taken that could overflow.
    scale = _power_of_two(largest) if order in (1, 2) else _nonzero(largest)
    ratio = flat / scale[:, None]
    if order == 1:
        total = ratio.abs_().sum(1)
    elif order == 2:
        total = torch.linalg.vector_norm(ratio, dim=1)
    else:
        total = ratio.abs_().pow(order).sum(1).pow(1 / order)
    return scale.double() * total.double()


def _plain_norms(flat: Tensor, order: float) -> Tensor | None:
    """The l_1 or l_2 norms of rows [B, n] without scaling, [B], where they show that nothing over- or underflowed.

    Scaling takes several times as long as the norm itself; by a power of two it gives the same bits. None for other
    orders, for a row outside the range, and on a device, where looking at the norms would wait for it.
    """
    if order not in (1, 2) or not devices.may_look(flat):
        return None
    norms = flat.abs().sum(1) if order == 1 else torch.linalg.vector_norm(flat, dim=1)
    fine = (norms > _SMALL) & (norms < _LARGE)
    if bool(fine.all()):
        return norms
    zero = norms == 0
    return norms if bool((fine | zero).all()) and not bool(flat[zero].any()) else None


def per_image(values: Tensor, like: Tensor) -> Tensor:
    """One number for each image, ready to multiply the images: [B] as [B, 1, ...], in the type of `like`."""
    return values.to(like.dtype).view(-1, *[1] * (like.dim() - 1))


def choose_images(mask: Tensor, these: Tensor, others: Tensor) -> Tensor:
    """`these` images where the mask is true and `others` elsewhere, both finite: `torch.where`, several times as fast.

    Args:
        mask: One truth value for each image, shape [B].
        these: Shape [B, ...].
        others: Same shape.

    Returns:
        Same shape, exact copies of one or the other.
    """
    return torch.lerp(others, these, per_image(mask, others))


@dataclass(frozen=True)
class GroundNorm:
    """The norm ||.||_s in which displacements of images are measured, and everything that follows from s alone.

    Attributes:
        order: s in [1, inf]; in configurations `attack.norm`.

    >>> norm = GroundNorm("inf")
    >>> norm.dual, norm.distances(torch.tensor([[0.5, -2.0]])).item()
    (1.0, 2.0)
    """

    order: float

    def __init__(self, order: float | str) -> None:
        """Parse and check the order, which may be written as people type it: `"inf"`.

        Raises:
            UserError: It is not a number in [1, inf].
        """
        object.__setattr__(self, "order", parse_norm(order))

    @property
    def dual(self) -> float:
        """Exponent s' of the dual norm ||.||_*: 1/s + 1/s' = 1."""
        return conjugate(self.order)

    def distances(self, u: Tensor) -> Tensor:
        """Lengths ||u_i||_s of displacements [B, ...], shape [B], float64."""
        return image_norms(u, self.order)

    def between(self, these: Tensor, others: Tensor) -> Tensor:
        """Distances ||x'_i - x_i||_s between images [B, ...], shape [B], float64."""
        return by_blocks(lambda a, b: self.distances(a - b), these, others)

    def dual_norms(self, g: Tensor) -> Tensor:
        """Dual norms ||g_i||_* of gradients [B, ...], shape [B], float64."""
        return image_norms(g, self.dual)

    def diameter(self, x: Tensor) -> float:
        """The length ||(1, ..., 1)||_s of the diagonal of the box [0, 1]^n, which no displacement inside it exceeds.

        Args:
            x: Images, shape [B, ...], for their n.
        """
        return 1.0 if math.isinf(self.order) else float(math.prod(x.shape[1:]) ** (1 / self.order))

    def direction(self, g: Tensor, into: Tensor | None = None) -> Tensor:
        """The steepest direction h(g): unit s-norm with <h(g), g> = ||g||_* (theory, section 2); 0 where g = 0.

        s = inf: sign(g). 1 < s < inf: sign(g) (|g| / ||g||_*)^(s'-1). s = 1: all mass on the coordinates of
        largest |g|, split equally over ties.

        Args:
            g: Gradients, shape [B, ...], finite.
            into: Memory that may be written to, of their shape and type; it may be the gradients'.

        Returns:
            Directions of the same shape and type.
        """
        if math.isinf(self.order):
            return torch.sign(g, out=into)
        plain = _plain_norms(g.flatten(1), 2) if self.order == 2 else None
        if plain is not None:
            return torch.div(g, per_image(_nonzero(plain), g), out=into)
        largest = g.flatten(1).abs().amax(1)
        ratio = g / per_image(_power_of_two(largest) if self.order == 2 else _nonzero(largest), g)
        if self.order == 1:
            ratio = ratio.sign() * (ratio.abs() >= 1)
            return ratio / per_image(_nonzero(image_norms(ratio, 1)), g)
        if self.order == 2:
            return ratio.div_(per_image(_nonzero(torch.linalg.vector_norm(ratio.flatten(1), dim=1)), g))
        unit = ratio / per_image(_nonzero(image_norms(ratio, self.dual)), g)
        return unit.sign() * unit.abs().pow(self.dual - 1)

    def shrink(self, u: Tensor, distances: Tensor | None, radii: Tensor, into: Tensor | None = None) -> Tensor:
        """The displacements brought to at most `radii`, image by image.

        s = inf: coordinates are clipped (the nearest point, and the one that keeps most of the displacement);
        other norms: scaled by min(1, radius / distance).

        Args:
            u: Displacements, shape [B, ...].
            distances: Their norms, shape [B]; None if they are not known, for s = inf does not need them.
            radii: Allowed norms, shape [B].
            into: Memory that the result is written to, of the displacements' shape and type; it may be theirs.

        Returns:
            Same shape as u.
        """
        if math.isinf(self.order):
            bound = per_image(radii, u)
            return torch.minimum(u, bound, out=into).clamp_min_(-bound)
        distances = self.distances(u) if distances is None else distances
        return torch.mul(u, per_image((radii / _nonzero(distances)).clamp(max=1.0), u), out=into)


def _nonzero(values: Tensor) -> Tensor:
    """`values` with zeros replaced by one, to divide by."""
    return torch.where(values > 0, values, 1.0)


def _power_of_two(values: Tensor) -> Tensor:
    """The largest powers of two up to the values, by which numbers divide exactly; 1 for 0 and infinity."""
    wide = values.double()  # not every device takes short floats apart
    mantissa, _ = torch.frexp(wide)
    return torch.where((wide > 0) & (wide < math.inf), wide / (2 * mantissa), 1.0).to(values)
