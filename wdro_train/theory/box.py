"""The best step inside the box [0, 1]^n, many of whose pixels already sit on its boundary (theory, section 2).

Clamping a step afterwards undoes part of it and leaves budget unspent. On the box the first-order expansion of the
worst-case loss holds with the free gradient, and the best step of a given length maximises a linear function over the
ball of that length and the box together. Images are [B, ...] in [0, 1]; lengths and radii are [B], float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from wdro_train.theory.ground_norm import GroundNorm, per_image
from wdro_train.utils import devices
from wdro_train.utils.errors import UserError

# Steps of Newton's iteration in `_stretch`, counted on 500 images each of Fashion-MNIST, of pixels 0, 1/2 and 1, and of
# uniform pixels (size 3072), for s from 1.2 to 20. Radii up to 0.6 of the room in the box take at most 8 steps (at most
# 4 for s >= 2), radii that fill the box at most 26. Eight steps leave at most 4e-6 of the radius unspent up to 0.6 of
# the room, and at most 9 % of it where the radius fills the box.
_NEWTON_LIMIT = 50
_NEWTON_STEPS = 8  # on a device, where looking whether to stop would wait for it
_NEWTON_TOLERANCE = 1e-6  # of the stretch, relative: about eight roundings of a float32 number
_REACH_TOLERANCE = 1e-12  # the same iteration in float64, in `reach`; it starts lower and may take more steps
_FAR = 1e30  # the largest stretch: takes every pixel that moves at all to the edge, and is finite in float32
# Lengths that `_stretch_about` looks at, and by how much the logarithm of the stretch changes at most between two.
_SECANT_STEPS, _SECANT_MOST = 6, 2.0
_LEAST_SLOPE = 0.1  # of the logarithms, so that an image that fills the box does not stretch at once without limit
_SECANT_TOLERANCE = 1e-6  # of the stretch, relative: nearer values of it give no slope


def free_gradient(g: Tensor, x: Tensor, into: Tensor | None = None) -> Tensor:
    """The gradient along which an image may still move: components that point out of the box are set to 0.

    Args:
        g: Gradients, shape [B, ...].
        x: Images in [0, 1], same shape.
        into: Memory that the result is written to, same shape and type; it may be the gradients'.

    Returns:
        Same shape: 0 where (x = 0 and g < 0) or (x = 1 and g > 0).
    """
    # The bounds -c x and c (1 - x) are 0 where the way is closed, and elsewhere beyond any gradient; c is a power of
    # two, so that c - c x is exact. Comparisons and `torch.where` would take seven times as long, as on a CPU they go
    # through an image pixel by pixel; arithmetic goes by vectors.
    beyond = 2.0 ** (math.frexp(torch.finfo(x.dtype).max)[1] - 2)
    least = x * -beyond
    return torch.clamp(g, least.to(g), (least + beyond).to(g), out=into)


def move(x: Tensor, u: Tensor) -> Tensor:
    """Go from x to x + u inside the box, rounded towards x: no coordinate moves further than |u|.

    Rounding to nearest would let small displacements leave the ball by a few ulps of the image, which is not
    small against a small radius.

    Args:
        x: Images in [0, 1], shape [B, ...].
        u: Displacements, same shape.

    Returns:
        Images in [0, 1], same shape.
    """
    moved = (x + u).clamp_(0, 1)
    too_far = (moved - x).abs_().sub_(u.abs()).sign_().clamp_min_(0)  # 1 or 0: a number, see `free_gradient`
    back = torch.nextafter(moved, x).sub_(moved)  # one unit in the last place: the sum below is exact
    return moved.add_(back.mul_(too_far))


def ascend(ground: GroundNorm, x: Tensor, g: Tensor, radii: Tensor) -> Tensor:
    """The best step of a given length: maximise <g_i, x'_i> over ||x'_i - x_i||_s <= radius_i and x'_i in [0, 1]^n.

    s = inf: clamp(x + r sign g), exact. s = 1: pixels are filled up in the order of |g|, exact. Otherwise the optimum
    is clamp(x + c h(g)) for the c that uses up the radius. The s-th power of the length is concave and piecewise
    linear in c^s, so Newton's iteration rises to that c from below and ends there after finitely many steps.

    Args:
        ground: The norm ||.||_s.
        x: Images in [0, 1], shape [B, ...].
        g: Free gradients, same shape.
        radii: Allowed length per image, shape [B].

    Returns:
        Images in [0, 1], same shape as x.
    """
    return move(x, _steepest(ground, x, g, radii, _stretch))


def climb(ground: GroundNorm, x: Tensor, g: Tensor, radii: Tensor, into: Tensor | None = None) -> Tensor:
    """`ascend` at a fraction of the arithmetic, for a step that is brought back to a radius afterwards.

    Pixel values are rounded to nearest, and the length for 1 < s < inf is found by a secant iteration.

    Args:
        ground: The norm ||.||_s.
        x: Images in [0, 1], shape [B, ...].
        g: Free gradients, same shape.
        radii: Length per image, shape [B]; the step may be somewhat shorter or longer (see `_stretch_about`).
        into: Memory that may be written to, same shape; it may be the gradients'.

    Returns:
        Images in [0, 1], same shape as x.
    """
    return _steepest(ground, x, g, radii, _stretch_about, into).add_(x).clamp_(0, 1)


def projected_step(ground: GroundNorm, x: Tensor, point: Tensor, g: Tensor, lengths: Tensor, radii: Tensor) -> Tensor:
    """One step of projected gradient ascent: up from `point` by a length, and back to within a radius of the image.

    Args:
        ground: The norm ||.||_s.
        x: Images in [0, 1], shape [B, ...].
        point: Where the step starts, in [0, 1], same shape.
        g: Free gradients at `point`, same shape.
        lengths: Length of the step, shape [B].
        radii: Largest allowed distance from x, shape [B].

    Returns:
        Images in [0, 1] no further than `radii` from x, same shape.
    """
    u = ascend(ground, point, g, lengths).sub_(x)
    return move(x, ground.shrink(u, ground.distances(u), radii))


def _steepest(
    ground: GroundNorm,
    x: Tensor,
    g: Tensor,
    radii: Tensor,
    stretch: Callable[[Tensor, Tensor, Tensor, float], Tensor],
    into: Tensor | None = None,
) -> Tensor:
    """The displacement of `ascend`, before it is clamped to the box, shape of x; `stretch` is used for 1 < s < inf."""
    if ground.order == 1:
        return _fill_in_order(x, g, radii)
    h = ground.direction(g, into)
    if math.isfinite(ground.order):
        radii = radii * stretch(x, h, radii, ground.order)
    return h.mul_(per_image(radii, x))


def _stretch(x: Tensor, h: Tensor, radii: Tensor, s: float) -> Tensor:
    """How much longer a step must aim to be as long as asked: k >= 1 with ||clamp(x + k r h) - x||_s = r.

    Args:
        x: Images in [0, 1], shape [B, ...].
        h: Directions of unit s-norm, same shape.
        radii: r, shape [B].
        s: Order of the norm, finite.

    Returns:
        Shape [B], float64; where the box has less room than r, a k that reaches all of it.
    """
    size, room = h.flatten(1).abs(), _room(x, h, radii)
    k = torch.ones_like(radii)
    on_host = devices.may_look(x)
    for _ in range(_NEWTON_LIMIT if on_host else _NEWTON_STEPS):
        moving = (room - k.to(size)[:, None] * size).sign_().clamp_min_(0)  # 1, or 0 for pixels at the edge
        left = 1 - _power_sum(room * (1 - moving), s)
        slope = _power_sum(moving.mul_(size), s)
        longer = torch.where((left > 0) & (slope > 0), (left / slope).pow(1 / s), k).clamp(max=_FAR)
        if on_host and bool((longer <= k * (1 + _NEWTON_TOLERANCE)).all()):
            break
        k = longer.maximum(k)
    return k


def _stretch_about(x: Tensor, h: Tensor, radii: Tensor, s: float) -> Tensor:
    """The stretch k of `_stretch`, approximately: the secant method on log ||clamp(x + k r h) - x||_s against log k.

    The length grows as k while no pixel is at the edge, and slower from then on. Every iteration computes one length,
    which takes a third of the time of a step of Newton's iteration, and is the same on every device.

    Args:
        x: Images in [0, 1], shape [B, ...].
        h: Directions of unit s-norm, same shape.
        radii: r, shape [B].
        s: Order of the norm, finite.

    Returns:
        Shape [B], float64. For s >= 2, 784 pixels and normally distributed gradients the length is off by less than
        0.1 % for radii up to 0.6 of the room in the box, and by less than 3 % where the radius fills it; with their
        cubes for gradients by 0.1 % and 7 %. The fewer pixels and the smaller s, the more it is off.
    """
    size, room = h.flatten(1).abs(), _room(x, h, radii)
    log_k, slope = torch.zeros_like(radii), torch.ones_like(radii)
    log_k_before = log_length_before = log_k
    reached = torch.empty_like(size)
    for step in range(_SECANT_STEPS):
        torch.mul(size, log_k.exp().to(size)[:, None], out=reached)
        torch.minimum(reached, room, out=reached)
        length = torch.linalg.vector_norm(reached, ord=s, dim=1).double()
        log_length = length.clamp_min(torch.finfo(size.dtype).tiny).log()
        if step:
            wide = (log_k - log_k_before).abs() > _SECANT_TOLERANCE
            secant = (log_length - log_length_before) / torch.where(wide, log_k - log_k_before, 1.0)
            slope = torch.where(wide, secant, slope).clamp(_LEAST_SLOPE, 1.0)
        log_k_before, log_length_before = log_k, log_length
        log_k = (log_k - (log_length / slope).clamp(-_SECANT_MOST, _SECANT_MOST)).clamp_min(0.0)
    return log_k.exp()


def _room(x: Tensor, h: Tensor, radii: Tensor) -> Tensor:
    """How far each pixel may go along h, in units of the image's radius, [B, n]: 1 - x where h > 0, x elsewhere."""
    ahead = h.sign().clamp_min_(0)  # 1 or 0
    unit = per_image(radii, x)
    return ahead.sub_(x).abs_().div_(torch.where(unit > 0, unit, 1.0)).flatten(1).clamp_(max=2 * _FAR)


def _power_sum(values: Tensor, s: float) -> Tensor:
    """sum_j v_j^s of every row of non-negative numbers, [B, n] -> [B], float64."""
    total = torch.linalg.vector_norm(values, dim=1).square() if s == 2 else values.pow(s).sum(1)
    return total.double()


def _fill_in_order(x: Tensor, g: Tensor, radii: Tensor) -> Tensor:
    """The best displacement for s = 1: pixels are moved to the edge by decreasing |g| until the radius is used up."""
    slope = g.flatten(1)
    room = torch.where(slope > 0, 1 - x.flatten(1), torch.where(slope < 0, x.flatten(1), 0.0))
    order = slope.abs().argsort(dim=1, descending=True, stable=True)
    sorted_room = room.gather(1, order).double()
    before = sorted_room.cumsum(1) - sorted_room
    used = torch.minimum(sorted_room, (radii[:, None] - before).clamp_min(0.0)).to(x.dtype)
    return (torch.zeros_like(slope).scatter(1, order, used) * slope.sign()).view_as(x)


def reach(ground: GroundNorm, x: Tensor, g: Tensor, gain: Tensor) -> Tensor:
    """The shortest displacement that gains what is asked: min ||u_i||_s with <g_i, u_i> = gain_i, x_i + u_i in the box.

    The inverse of `ascend`. Along the solutions of `ascend` the gain is a concave, piecewise linear function of one
    number (the radius for s = inf, the multiplier of |g| for s = 2, the pixels filled for s = 1). It is inverted by
    Newton's iteration from below, which ends after finitely many steps; for s = 1 by sorting the pixels.

    Args:
        ground: The norm ||.||_s, s one of 1, 2, inf.
        x: Images in [0, 1], shape [B, ...].
        g: Gradients, same shape.
        gain: Wanted <g, u>, any sign, shape [B].

    Returns:
        Displacements, same shape; where the box does not allow the gain, the largest one.

    Raises:
        UserError: Another norm.
    """
    if ground.order not in (1, 2, math.inf):
        raise UserError(f"attack.norm={ground.order:g} has no closed form here; choose 1, 2 or inf")
    slope = (g * per_image(gain.sign(), g)).flatten(1).double()
    largest = slope.abs().amax(1, keepdim=True)
    slope = slope / torch.where(largest > 0, largest, 1.0)
    wanted = (gain.abs().double() / torch.where(largest > 0, largest, 1.0).squeeze(1))[:, None]
    pixels = x.flatten(1).double()
    steep = slope.abs()
    room = torch.where(slope > 0, 1 - pixels, torch.where(slope < 0, pixels, 0.0))
    if ground.order == 1:
        order = steep.argsort(dim=1, descending=True, stable=True)
        weight, space = steep.gather(1, order), room.gather(1, order)
        before = (weight * space).cumsum(1) - weight * space
        take = ((wanted - before).clamp_min(0.0) / torch.where(weight > 0, weight, 1.0)).minimum(space)
        size = torch.zeros_like(steep).scatter(1, order, take)
    else:
        # u = min(t rate, room): a pixel grows at its rate until it is at the edge. Newton's iteration from t = 0.
        rate = steep.sign() if math.isinf(ground.order) else steep
        t = torch.zeros_like(wanted)
        size = torch.zeros_like(steep)
        on_host = devices.may_look(x)
        for _ in range(_NEWTON_LIMIT):
            growing = (room - t * rate).sign_().clamp_min_(0)  # 1 or 0
            left = wanted - (steep * size).sum(1, keepdim=True)
            speed = growing.mul_(steep).mul_(rate).sum(1, keepdim=True)
            on = (left > 0) & (speed > 0)
            further = t + torch.where(on, left / torch.where(on, speed, 1.0), 0.0)
            if on_host and bool((further <= t * (1 + _REACH_TOLERANCE)).all()):
                break
            t = further
            size = torch.minimum(t * rate, room)
        size = torch.where((steep * room).sum(1, keepdim=True) > wanted, size, room * steep.sign())
    return (size * slope.sign()).to(x.dtype).view_as(x)
