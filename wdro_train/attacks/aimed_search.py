"""The search for a flip inside a given radius of each image, as fixed-radius attacks do it, with radii that may shrink.

`NearestFlipSearch` looks for the nearest flip whatever it is. Where a network was trained until images barely flip at
some distance, its steps stall short of flips that exist: they all have the length of the radius, and signs of gradients
turn round at every kink of the network. Smooth momentum steps inside one radius go on, as do starts at the flip that is
known, pulled back into the radius (docs/results/distances_effort.md).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from wdro_train.attacks.gradient import input_gradient
from wdro_train.attacks.nearest_flip_search import density
from wdro_train.attacks.nearest_flips import NearestFlips
from wdro_train.theory.box import climb, free_gradient, move
from wdro_train.theory.ground_norm import choose_images, per_image
from wdro_train.theory.losses import LossFunction, correct
from wdro_train.theory.sparse import sparse_step

# Momentum of the gradient and of its square, as Adam has them by default but for the second (Kingma and Ba 2015, arXiv
# 1412.6980): a run of 30 steps forgets nothing at 0.999.
_MOMENTUM, _SQUARES = 0.9, 0.99
# The first step in units of the radius; in l_inf each pixel moves by about as much. The last one is 2 % of it.
FIRST_STEPS = {math.inf: 0.3, 2.0: 0.3, 1.0: 0.3}
_LAST_STEP = 0.02
# After a flip the radius is 2 % below it, where flips nearer than a goal are looked for.
_SHRINKAGE = 0.02
_LOOK = 10  # steps from one look at which images are finished to the next; a look waits for the device


class AimedSearch:
    """Momentum steps inside the box and a radius of each image.

    l_inf: steps of Adam. l_2: along the momentum. l_1: the same along few of its pixels (`sparse_step`).

    Args:
        flips: Takes what is found. Flips it holds already are not looked for again.
        radii: Within which distance to look, float64, shape [N]; below `flips.distances`.
        goal: An image whose flip is no further than this is finished; 0 for the nearest flip.
        fast: The network whose gradients are followed (see `SearchArithmetic`); None for that of `flips`.
    """

    def __init__(self, flips: NearestFlips, radii: Tensor, goal: float, fast: nn.Module | None = None) -> None:
        self.flips, self.radii, self.goal = flips, radii, goal
        self.fast = flips.model if fast is None else fast

    def run(self, loss: LossFunction, targets: Tensor, start: Tensor, steps: int, size: float = 1.0) -> Tensor:
        """One run from one start.

        Args:
            loss: Maps logits [B, m] and the images' rows of `targets` to [B]; it is ascended.
            targets: What the loss is told about each image, shape [N] or [N, k].
            start: First points, shape of the images; they are brought inside the radii.
            steps: Number of steps.
            size: First step, in units of the usual one.

        Returns:
            How close each image came to a flip: the loss at its last step, divided by the dual norm of its gradient
            there and by the radius, shape [N]. Of a loss that is positive at flips alone this is minus the distance
            in units of the radius at which the linearised loss flips; inf for finished images.
        """
        flips, ground = self.flips, self.flips.ground
        rows = torch.arange(len(start), device=start.device)
        x, y, radii = flips.x, flips.y, self.radii
        u = start - x
        point = move(x, ground.shrink(u, ground.distances(u), radii))
        momentum, squares = torch.zeros_like(x), torch.zeros_like(x)
        nearest = flips.distances
        closeness = torch.full_like(nearest, math.inf)
        for step in range(steps):
            here = input_gradient(self.fast, point, targets, loss, flips.batch_size)
            with torch.no_grad():
                nearest, radii = self._keep(rows, point, ~correct(here.logits, y), nearest, radii)
                slope = free_gradient(here.gradient, point)
                slope = slope / per_image(_nonzero(slope.flatten(1).abs().amax(1)), slope)
                momentum = _MOMENTUM * momentum + (1 - _MOMENTUM) * slope
                squares = _SQUARES * squares + (1 - _SQUARES) * slope**2
                ease = 0.5 * (1 + math.cos(math.pi * step / steps))
                share = size * FIRST_STEPS[ground.order] * (_LAST_STEP + (1 - _LAST_STEP) * ease)
                if ground.order == 1:
                    ahead = free_gradient(momentum, point)
                    u = sparse_step(x, point, ahead, share * radii, radii, density(steps)) - x
                elif ground.order == 2:
                    u = climb(ground, point, free_gradient(momentum, point), share * radii) - x
                else:
                    past = step + 1
                    direction = (momentum / (1 - _MOMENTUM**past)) / _nonzero((squares / (1 - _SQUARES**past)).sqrt())
                    u = (point + per_image(share * radii, x) * direction).clamp(0, 1) - x
                point = move(x, ground.shrink(u, ground.distances(u), radii))
                if step == steps - 1:
                    slopes = _nonzero(ground.dual_norms(here.gradient).double() * radii)
                    closeness[rows] = torch.where(nearest > self.goal, here.losses.double() / slopes, math.inf)
                elif step % _LOOK == _LOOK - 1:
                    open_ = nearest > self.goal
                    if not open_.all():
                        kept = (rows, x, y, targets, radii, nearest, point, momentum, squares)
                        rows, x, y, targets, radii, nearest, point, momentum, squares = (t[open_] for t in kept)
                    if not len(rows):
                        return closeness
        whole = flips.points.clone()
        whole[rows] = point
        flips.check(whole)
        return closeness

    def _keep(
        self, rows: Tensor, point: Tensor, flipped: Tensor, nearest: Tensor, radii: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Keep nearer flips of some rows, and shrink their radii; returns the nearest distances and the radii."""
        flips = self.flips
        distances = flips.ground.distances(point - flips.x[rows])
        better = flipped & (distances < nearest)
        flips.points[rows] = choose_images(better, point, flips.points[rows])
        nearest = torch.where(better, distances, nearest)
        flips.distances[rows] = nearest
        return nearest, torch.where(better, (1 - _SHRINKAGE) * distances, radii)


def _nonzero(values: Tensor) -> Tensor:
    """`values` with zeros replaced by one, to divide by."""
    return torch.where(values > 0, values, 1.0)
