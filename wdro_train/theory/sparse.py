"""Steps in l_1 that keep displacements sparse: few pixels move far, as the l_1 norm lets them.

Images are [B, ...] in [0, 1]; lengths and radii are [B], float64.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from wdro_train.theory.ground_norm import per_image
from wdro_train.utils import devices

_HALVINGS = 10  # of the largest gradient in `_reached_by`
# Steps of Newton's iteration in `_threshold`: on 500 images of Fashion-MNIST and two networks it ended after at most 4.
_NEWTON_LIMIT = 50
_NEWTON_STEPS = 8  # on a device, where looking whether to stop would wait for it
_NEWTON_TOLERANCE = 1e-6  # of the threshold, relative: about eight roundings of a float32 number


def sparse_step(x: Tensor, point: Tensor, g: Tensor, lengths: Tensor, radii: Tensor, dense: float) -> Tensor:
    """One step up in l_1 that keeps displacements sparse, and back to within a radius of the image.

    The step is equally long in the pixels of largest |g|: half as many as the displacement has by now. It comes back to
    the point of the radius that is nearest in l_2, by a threshold that every pixel's displacement loses and that puts
    the smallest to 0. These are the steps of l_1-APGD (Croce and Hein 2021, arXiv 2103.01208), where the number of
    pixels changes a few times a run. The best step of a given length, `box.ascend`, would move one or two pixels, and
    scaling it back puts none to 0.

    Args:
        x: Images in [0, 1], shape [B, ...].
        point: Where the step starts, in [0, 1], same shape.
        g: Free gradients at `point`, same shape.
        lengths: Length of the step, shape [B].
        radii: Largest allowed ||x' - x||_1, shape [B]; roundings may exceed it.
        dense: Share of the pixels that a step from the image itself changes.

    Returns:
        Images in [0, 1], same shape.
    """
    moved = (point - x).abs_().sign_().flatten(1).sum(1)
    pixels = torch.where(moved > 0, moved / 2, dense * math.prod(x.shape[1:]))
    size = g.abs()
    reached = _reached_by(size.flatten(1), pixels)
    steep = size.sub_(per_image(reached, g)).sign_().add_(1).clamp_max_(1)  # 1 or 0
    u = g.sign().mul_(steep)
    u = u.mul_(per_image(lengths / steep.flatten(1).sum(1), u)).add_(point).clamp_(0, 1).sub_(x)
    bound = per_image(_threshold(u, radii), u)
    return u.sub_(u.clamp(-bound, bound)).add_(x).clamp_(0, 1)


def _reached_by(size: Tensor, count: Tensor) -> Tensor:
    """A value that no more than so many entries of each row exceed, the least one but for a share of the largest, [B].

    Halving an interval takes a third of the time of sorting.

    Args:
        size: Numbers from 0 on, shape [B, n].
        count: Any number, shape [B]; the largest entries are reached in any case.
    """
    high = size.amax(1)
    low = torch.zeros_like(high)
    # Those above less those below, which takes one operation less to count than those above alone.
    difference = 2 * count - size.shape[1]
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        few = (size - middle[:, None]).sign_().sum(1) <= difference
        low, high = torch.where(few, low, middle), torch.where(few, middle, high)
    return high


def _threshold(u: Tensor, radii: Tensor) -> Tensor:
    """The least t >= 0 with sum_j (|u_j| - t)_+ <= radius, shape [B].

    The sum is convex and piecewise linear in t, so that Newton's iteration rises to it from below.

    Args:
        u: Displacements, shape [B, ...].
        radii: Shape [B].
    """
    size, radius = u.flatten(1).abs(), radii.to(u.dtype)
    t = torch.zeros_like(radius)
    on_host = devices.may_look(u)
    for _ in range(_NEWTON_LIMIT if on_host else _NEWTON_STEPS):
        above = (size - t[:, None]).clamp_min_(0)
        excess = above.sum(1) - radius
        higher = t + excess / above.sign_().sum(1).clamp_min(1.0)
        if on_host and bool((higher <= t * (1 + _NEWTON_TOLERANCE)).all()):
            break
        t = torch.maximum(higher, t)
    return t
