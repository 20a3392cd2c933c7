"""Steps inside the box [0, 1]^n, where many pixels already sit on the boundary (theory, section 2, the box).

Clamping after the fact undoes part of a step and leaves budget unspent. On the box the first-order expansion
holds with the free gradient, and the best step of a given length is a linear maximisation over ball and box.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from wdro_train.threat import WassersteinBall, per_image

_FILL_ITERATIONS = 4


def free_gradient(g: Tensor, x: Tensor) -> Tensor:
    """The gradient with every component that points out of the box set to 0.

    Args:
        g: Gradients, shape [B, ...].
        x: Images in [0, 1], same shape.

    Returns:
        Same shape: 0 where (x = 0 and g < 0) or (x = 1 and g > 0).
    """
    outward = ((x <= 0) & (g < 0)) | ((x >= 1) & (g > 0))
    return torch.where(outward, torch.zeros_like(g), g)


def ascend(ball: WassersteinBall, x: Tensor, g: Tensor, radii: Tensor) -> Tensor:
    """Maximise <g_i, x'_i> over ||x'_i - x_i||_s <= radius_i and x'_i in [0, 1]^n.

    s = inf: clamp(x + r sign g), exact. s = 1: pixels are filled in order of |g|, exact. Otherwise the optimum
    is clamp(x + c h(g)) for the c that uses up the radius; c <- c r / ||clamp(x + c h) - x|| grows towards it
    from below (the length is concave in c), so the result never leaves the ball.

    Args:
        ball: Gives the norm s.
        x: Images in [0, 1], shape [B, ...].
        g: Free gradients, same shape.
        radii: Allowed length per image, shape [B].

    Returns:
        Images in [0, 1], same shape as x.
    """
    if ball.norm == 1:
        return _fill_in_order(x, g, radii)
    h = ball.direction(g)
    step = radii
    moved = (x + per_image(step, x) * h).clamp(0, 1)
    if math.isinf(ball.norm):
        return moved
    for _ in range(_FILL_ITERATIONS):
        length = ball.distances(moved - x)
        grows = (length > 0) & (length < radii)
        step = torch.where(grows, step * radii / torch.where(grows, length, 1.0), step)
        moved = (x + per_image(step, x) * h).clamp(0, 1)
    return moved


def _fill_in_order(x: Tensor, g: Tensor, radii: Tensor) -> Tensor:
    """The exact l_1 step: saturate pixels by decreasing |g| until the radius is used up."""
    slope = g.flatten(1)
    room = torch.where(slope > 0, 1 - x.flatten(1), torch.where(slope < 0, x.flatten(1), 0.0))
    order = slope.abs().argsort(dim=1, descending=True, stable=True)
    sorted_room = room.gather(1, order).double()
    before = sorted_room.cumsum(1) - sorted_room
    used = torch.minimum(sorted_room, (radii[:, None] - before).clamp_min(0.0)).to(x.dtype)
    moves = torch.zeros_like(slope).scatter(1, order, used) * slope.sign()
    return (x + moves.view_as(x)).clamp(0, 1)
