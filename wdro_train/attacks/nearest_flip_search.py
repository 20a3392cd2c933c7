"""The search of `MinimalDistance`: steps inside radii that shrink and grow, then a descent of flips to the boundary."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wdro_train.attacks.ascent import steepness
from wdro_train.attacks.gradient import input_gradient
from wdro_train.attacks.nearest_flips import NearestFlips
from wdro_train.theory.box import climb
from wdro_train.theory.ground_norm import GroundNorm, per_image
from wdro_train.theory.losses import LossFunction, correct, margin
from wdro_train.theory.sparse import sparse_step
from wdro_train.utils.blocks import by_blocks

# What the constants are worth was measured by the mean distance of the correct ones among the first 200 images of
# tests/reference, at 30 steps, on the adversarially and the normally trained network there. Where no number is given,
# half and twice the constant (a fifth and five times the last step and the last growth) change it by less than 1.5 %.

# The first radius, in units of the linearised distance. With 1 it is 2 % better for s = inf on one network. For s = 1
# it is 7 % worse with 2 on one network, 1 % with 8.
_FIRST_RADII = {1.0: 4.0, 2.0: 2.0, math.inf: 2.0}
# Temperature of the softened margin, in units of the margin's size.
_SOFTNESS = 1.0
# The first step in units of the current radius; in l_inf a step moves every pixel. Steps three times as long are up to
# 6 % worse for s = 2, and up to 1.3 % better for s = inf.
STEP_SIZES = {1.0: 1.0, 2.0: 3.0, math.inf: 0.75}
_LAST_STEP = 0.01  # share of the first step that is left at the end
# By which share the radius shrinks or grows at first and at last. Half the first one is up to 11 % worse for s = 2, 5 %
# for s = inf and 12 % for s = 1.
_FIRST_GROWTH, _LAST_GROWTH = 0.2, 0.005
# For s = 1 every point lies on its radius, which therefore has to fall as far in a short run as in a long one: the
# first growth is so much divided by the number of steps, and at most one half. For the same reason a short run begins
# with fewer pixels: with this share of them for each of its steps.
_GROWTHS, _DENSITY = 6.0, 1 / 60
# Least and largest growth while no flip is known, in units of that share: the linearised boundary may always lie too
# near, and the radius must grow all the same.
_LEAST_GROWTH, _MOST_GROWTH = 0.2, 5.0
# Where a further run starts: at this share of the distance of the nearest flip known, so that the start is inside the
# radius that has to be beaten but away from the image; where none is known, of this share of the box's diameter, which
# is large beside the radii that networks are judged at (8/255 is 0.03 of the diameter in l_inf). Both are plausible
# values and have not been tuned: there are no further runs unless they are asked for.
_RESTART, _FAR = 0.5, 0.1


@dataclass(frozen=True)
class SearchEffort:
    """How long the search goes on; the attributes are the arguments of `MinimalDistance`."""

    steps: int
    restarts: int
    targets: int
    step_size: float
    batch_size: int | None


class NearestFlipSearch:
    """The search for the nearest flip of each image of a batch of correct images.

    Args:
        ground: The norm in which flips are near.
        effort: How long to search.
        model: Maps images to logits, and looks at flips; call inside `attack_mode`.
        x: Correctly classified images in [0, 1], float32, shape [N, ...].
        y: Labels, shape [N].
        fast: The network whose gradients are followed (see `SearchArithmetic`); None for `model`.

    Attributes:
        flips: The nearest flips so far.
        nonfinite: Number of gradients that were not finite, int64 scalar.
        zero: Number of images whose gradient at the image itself vanished, int64 scalar.
    """

    def __init__(
        self,
        ground: GroundNorm,
        effort: SearchEffort,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        fast: nn.Module | None = None,
    ) -> None:
        self.ground, self.effort, self.model = ground, effort, model
        self.fast = model if fast is None else fast
        self.x, self.y = x, y
        self.flips = self._none()
        self.nonfinite = torch.zeros((), dtype=torch.int64, device=x.device)
        self.zero = torch.zeros((), dtype=torch.int64, device=x.device)

    def run(self, logits: Tensor, generator: torch.Generator | None) -> None:
        """Search from all starts and against all targets.

        Each run is refined by itself before the nearest flips are kept, so that another run makes none worse.

        Args:
            logits: Of the images, shape [N, m].
            generator: Source of random starts; None for the default one.
        """
        rivals = logits.float().scatter(1, self.y[:, None], -math.inf).argsort(dim=1, descending=True)
        targets = min(self.effort.targets, logits.shape[1] - 1)
        for run in range(self.effort.restarts + targets):
            rank = run - self.effort.restarts
            start = self._start(generator) if 0 < run < self.effort.restarts else self.x
            if rank < 0:
                self.once(minus_soft_margin, self.y, start, first=run == 0)
            else:
                self.once(minus_margin_to_rival, torch.stack([self.y, rivals[:, rank]], dim=1), start)
        self.flips.recheck()

    def once(
        self, loss: LossFunction, targets: Tensor, start: Tensor, first: bool = False, within: Tensor | None = None
    ) -> None:
        """Search from one start, and keep what is nearer than the flips known when it is brought down to the boundary.

        Args:
            loss: See `descend`.
            targets: What the loss is told about each image, shape [N] or [N, k].
            start: First points, shape of the images.
            first: Count the images without gradient.
            within: See `NearestFlips.refine`.
        """
        best = self.flips
        self.flips = self._none()
        self._search(loss, targets, start, first)
        self.flips.refine(within=within)
        self.flips.take(best.points, best.distances, best.distances < math.inf)

    def _search(self, loss: LossFunction, targets: Tensor, start: Tensor, first: bool = False) -> None:
        """One run from one start, see `descend`, whose flips are flips of `model`.

        Images without one are searched once more by the gradients of `model` itself. Most of them lie so near to the
        boundary that other arithmetic takes the image itself for a flip; they are the cheapest of all to flip.
        """
        self.descend(loss, targets, start, first)
        if self.fast is self.model:
            return
        self.flips.confirm()
        lost = self.flips.distances.isinf().nonzero().squeeze(1)
        if len(lost):
            again = NearestFlipSearch(self.ground, self.effort, self.model, self.x[lost], self.y[lost])
            again.descend(loss, targets[lost], start[lost])
            self.flips.points[lost], self.flips.distances[lost] = again.flips.points, again.flips.distances
            self.nonfinite += again.nonfinite

    def descend(self, loss: LossFunction, targets: Tensor, start: Tensor, first: bool = False) -> None:
        """One run from one start: steps inside radii that shrink below flips and grow while there are none.

        Args:
            loss: Maps logits [B, m] and the images' rows of `targets` to [B].
            targets: What the loss is told about each image, shape [N] or [N, k]; it is split into batches with them.
            start: First points, shape of the images.
            first: Count the images without gradient.
        """
        point, radii = start, None
        growth = min(_GROWTHS / self.effort.steps, 0.5) if self.ground.order == 1 else _FIRST_GROWTH
        found = torch.full_like(self.flips.distances, math.inf)
        for step in range(self.effort.steps):
            ease = 0.5 * (1 + math.cos(math.pi * step / self.effort.steps))
            share = _LAST_STEP + (1 - _LAST_STEP) * ease
            rate = _LAST_GROWTH + (growth - _LAST_GROWTH) * ease
            here = input_gradient(self.fast, point, targets, loss, self.effort.batch_size)
            self.nonfinite += here.nonfinite
            with torch.no_grad():
                flipped = ~correct(here.logits, self.y)
                distances = self.ground.between(point, self.x)
                self.flips.take(point, distances, flipped)
                found = torch.where(flipped, torch.minimum(found, distances), found)
                slope, steep = steepness(self.ground, here.gradient, point, box=True)
                # Where the linearised boundary is: the first radius, and the least to try while nothing flips. Logits
                # that are NaN are a flip already.
                linear = distances + here.losses.double().abs().nan_to_num() / torch.where(steep > 0, steep, 1.0)
                if radii is None:
                    self.zero += (steep == 0).sum() * first
                    radii = _FIRST_RADII[self.ground.order] * linear
                else:
                    grown = radii * (1 + rate)
                    least, most = radii * (1 + _LEAST_GROWTH * rate), radii * (1 + _MOST_GROWTH * rate)
                    searching = linear.clamp(least, most)
                    radii = torch.where(
                        flipped,
                        torch.minimum(radii, found) * (1 - rate),
                        torch.where(found < math.inf, torch.minimum(grown, found), searching),
                    )
                radii = radii.clamp(max=self.ground.diameter(self.x))
                point = by_blocks(self._move, self.x, point, distances, slope, radii, share, into=slope)
        self.flips.check(point)

    def _none(self) -> NearestFlips:
        """No flip is known of any image."""
        return NearestFlips(self.ground, self.model, self.x, self.y, self.effort.batch_size)

    def _move(self, x: Tensor, point: Tensor, distances: Tensor, slope: Tensor, radii: Tensor, share: float) -> Tensor:
        """The best step in the box, at least as long as the way out to the radius, and brought back to the radius.

        For s = 1 the best step would move single pixels; see `sparse_step`.
        """
        length = torch.maximum(share * self.effort.step_size * radii, radii - distances)
        if self.ground.order == 1:
            return sparse_step(x, point, slope, length, radii, density(self.effort.steps))
        u = climb(self.ground, point, slope, length, into=slope).sub_(x)
        return self.ground.shrink(u, None, radii, into=u).add_(x).clamp_(0, 1)

    def _start(self, generator: torch.Generator | None) -> Tensor:
        """Random points nearer than the nearest flip known, or, where none is, than a share of the box."""
        noise = torch.empty_like(self.x).uniform_(-1, 1, generator=generator)
        known = self.flips.distances
        known = torch.where(known < math.inf, known, _FAR * self.ground.diameter(self.x))
        return (self.x + noise * per_image(_RESTART * known / self.ground.distances(noise), self.x)).clamp(0, 1)


def density(steps: int) -> float:
    """The share of the pixels that a run of so many steps begins with in l_1; see `sparse_step`."""
    return min(_DENSITY * steps, 1.0)


def minus_soft_margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Minus the margin, [B], with the gradient of tau log sum_{j != y} exp(f_j / tau) - f_y, tau the margin's size.

    Far from the boundary all rivals of similar logits pull, which avoids many local minima; tau vanishes at the
    boundary, and with it the difference to the margin.
    """
    wide = logits.float()
    hard = -margin(wide, labels).detach()
    resolution = torch.finfo(wide.dtype).eps * wide.detach().abs().amax(1)
    tau = torch.maximum(_SOFTNESS * hard.abs(), resolution).clamp_min(torch.finfo(wide.dtype).tiny)
    rivals = wide.scatter(1, labels[:, None], -math.inf) / tau[:, None]
    soft = tau * rivals.logsumexp(1) - wide.gather(1, labels[:, None]).squeeze(1)
    return hard + (soft - soft.detach())


def minus_margin_to_rival(logits: Tensor, targets: Tensor) -> Tensor:
    """f_rival - f_label, [B]: minus the margin over one class of each image, for rows (label, rival) of `targets`."""
    label, rival = logits.float().gather(1, targets).unbind(1)
    return rival - label
