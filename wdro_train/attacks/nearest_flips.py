"""The nearest flips that are known of a batch of correct images, and how a flip is brought down to the boundary."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from wdro_train.attacks.gradient import forward, input_gradient
from wdro_train.theory.box import reach
from wdro_train.theory.ground_norm import GroundNorm, choose_images, per_image
from wdro_train.theory.losses import correct, margin

_BISECTIONS = 8  # leaves 2^-8 of the segment; 4 are 0.4 % worse, 16 are 0.1 % better (see `nearest_flip_search`)
_POLISHES = 2  # steps to the foot of the perpendicular; one and four do as well on these networks
_OVERSHOOT = 1e-4  # relative: how far past the linearised boundary a polished point is put, to be a flip
# Halvings of what the last polish overshoots by, 2e-4 of the distance: they leave 2e-4 / 2^12 = 5e-8 of it, which is
# the resolution of float32.
_LAST_BISECTIONS = 12
# What a search that has already followed the boundary leaves to bisect: 2^-5 of a tenth is less than 2^-8 of the whole.
_NEAR, _NEAR_BISECTIONS = 0.1, 5
# How far beyond a flip of another arithmetic to look for one, in units of its distance: logits in bfloat16 are off by
# 2^-8 of the largest, which moves the boundary by a small share of the distance of most images.
_BEYOND = (0.0, 2**-6, 2**-3)
# The same for a flip on the boundary that the rounding of another batch calls correct: bisections leave it 5e-8 beyond.
_BEYOND_ROUNDING = (2**-20, 2**-14, 2**-8)


class NearestFlips:
    """The nearest flip of each image of a batch of correct images, as far as it is known.

    Args:
        ground: The norm ||.||_s in which flips are near.
        model: Maps images to logits; call inside `attack_mode`.
        x: Correctly classified images in [0, 1], float32, shape [N, ...].
        y: Labels, shape [N].
        batch_size: Images per forward pass; None for all at once.

    Attributes:
        points: The nearest flip so far, the image itself where there is none, shape [N, ...].
        distances: How far it is, inf where there is none, float64, shape [N].
    """

    def __init__(self, ground: GroundNorm, model: nn.Module, x: Tensor, y: Tensor, batch_size: int | None) -> None:
        self.ground, self.model, self.x, self.y, self.batch_size = ground, model, x, y, batch_size
        self.points = x.clone()
        self.distances = torch.full((len(x),), math.inf, dtype=torch.float64, device=x.device)

    def part(self, rows: Tensor) -> NearestFlips:
        """What is known of some images, as a batch of its own.

        Args:
            rows: Their positions, shape [n]; an image may come more than once.
        """
        part = NearestFlips(self.ground, self.model, self.x[rows], self.y[rows], self.batch_size)
        part.points, part.distances = self.points[rows], self.distances[rows]
        return part

    def put(self, rows: Tensor, part: NearestFlips) -> None:
        """Know of some images what a part knows of them.

        Args:
            rows: Their positions, shape [n], each at most once.
            part: A batch of these images.
        """
        self.points, self.distances = self.points.clone(), self.distances.clone()
        self.points[rows], self.distances[rows] = part.points, part.distances

    def take(self, point: Tensor, distances: Tensor, flipped: Tensor) -> None:
        """Keep those points that are flips and nearer than the ones known.

        Args:
            point: One for each image, shape [N, ...].
            distances: How far from it, shape [N].
            flipped: Whether it is a flip, shape [N].
        """
        better = flipped & (distances < self.distances)
        self.distances = torch.where(better, distances, self.distances)
        self.points = choose_images(better, point, self.points)

    @torch.no_grad()
    def check(self, point: Tensor) -> Tensor:
        """Look at points, keep those that are nearer flips than the ones known, and return which are flips, [N]."""
        flipped = ~correct(forward(self.model, point, self.batch_size), self.y)
        # In float64: summed in float32, a distance is off by more than the last bisection leaves.
        self.take(point, self.ground.distances(point.double() - self.x.double()), flipped)
        return flipped

    @torch.no_grad()
    def confirm(self) -> None:
        """Look at flips that were found in another arithmetic; where there is none, look farther the same way.

        What is not found there either is given up.
        """
        found, way = self.distances.isfinite(), self.points - self.x
        self.distances, self.points = torch.full_like(self.distances, math.inf), self.x
        for share in _BEYOND:
            point = (self.x + (1 + share) * way).clamp(0, 1)
            flipped = found & ~correct(forward(self.model, point, self.batch_size), self.y)
            self.take(point, self.ground.distances(point.double() - self.x.double()), flipped)
            if not (found & self.distances.isinf()).any():
                return

    def pull_back(self, halvings: int) -> None:
        """Bring the flips back along the way from their images, as far as they stay flips, and no further.

        Args:
            halvings: How often the way is halved; each is a forward pass.
        """
        self._bisect(self.points - self.x, None, halvings)

    def refine(self, near: bool = False, within: Tensor | None = None) -> None:
        """Bring the flips down to the boundary.

        The last bisection takes back what the polish overshoots by: it begins just below the flip, and goes further
        down only where that point is flipped as well.

        Args:
            near: The boundary is expected in the last tenth of the segment, so that fewer bisections get as near.
            within: Flips that lie beyond this distance after the first bisection stay there, shape [N]; None for none.
        """
        whole = self.points - self.x
        if near:
            self._bisect(whole, torch.full_like(self.distances, 1 - _NEAR), _NEAR_BISECTIONS)
        else:
            self._bisect(whole, None, _BISECTIONS)
        if within is not None:
            rows = (self.distances <= within).nonzero().squeeze(1)
            if len(rows):
                part = self.part(rows)
                part._polish_and_bisect()
                self.put(rows, part)
        else:
            self._polish_and_bisect()

    def _polish_and_bisect(self) -> None:
        """The rest of `refine`, from near the boundary."""
        for _ in range(_POLISHES):
            way = self._polish()
        self._bisect(way, torch.full_like(self.distances, 1 - 2 * _OVERSHOOT), _LAST_BISECTIONS)

    @torch.no_grad()
    def recheck(self) -> None:
        """Look at all flips again, as rounding may differ from batch to batch.

        One that is none is replaced by one a little farther the same way; what is not found there either is given up.
        """
        way = self.points - self.x
        lost = correct(forward(self.model, self.points, self.batch_size), self.y)
        for share in _BEYOND_ROUNDING:
            if not (lost & self.distances.isfinite()).any():
                break
            point = (self.x + (1 + share) * way).clamp(0, 1)
            found = lost & ~correct(forward(self.model, point, self.batch_size), self.y)
            distances = self.ground.distances(point.double() - self.x.double())
            self.distances = torch.where(found, distances, self.distances)
            self.points = choose_images(found, point, self.points)
            lost = lost & ~found
        self.distances = torch.where(lost, math.inf, self.distances)
        self.points = choose_images(lost, self.x, self.points)

    def _polish(self) -> Tensor:
        """Look at the foot of the perpendicular from each image on the boundary, linearised at its nearest flip.

        Returns:
            A way from each image to a flip, before it is clamped to the box: the perpendicular, if a part of it may be
            shorter than the nearest flip. Shortened before it is clamped, it stays the shortest way inside the box.
        """
        here = input_gradient(self.model, self.points, self.y, margin, self.batch_size)
        with torch.no_grad():
            back = (here.gradient * (self.x - self.points)).flatten(1).double().sum(1)
            foot = reach(self.ground, self.x, here.gradient, -(here.losses.double() + back))
            # Where logits are NaN there is no boundary to linearise, and no way: the flip stays where it is.
            way = ((1 + _OVERSHOOT) * foot).nan_to_num()
            candidate = (self.x + way).clamp(0, 1)
            known = self.distances.isfinite()
            flipped = self.check(choose_images(known, candidate, self.points))
            shortest = (1 - 2 * _OVERSHOOT) * self.ground.distances(candidate - self.x)
            return choose_images(known & flipped & (shortest < self.distances), way, self.points - self.x)

    @torch.no_grad()
    def _bisect(self, way: Tensor, low: Tensor | None, halvings: int) -> None:
        """Pull every flip back along a way on which it lies.

        Args:
            way: From each image to its flip or, outside the box, to where clamping gives the flip, shape [N, ...].
            low: The share of the way to look at first, as a guess of a point that is not flipped, shape [N]; where it
                is flipped the search goes on below it. None for the image itself, which need not be looked at.
            halvings: How often.
        """

        def at(share: Tensor) -> Tensor:
            return (self.x + per_image(share, way) * way).clamp(0, 1)

        def flips(share: Tensor) -> Tensor:
            return ~correct(forward(self.model, at(share), self.batch_size), self.y)

        high = torch.ones_like(self.distances)
        if low is None:
            low = torch.zeros_like(high)
        else:
            flipped = flips(low)
            high, low = torch.where(flipped, low, high), torch.where(flipped, 0.0, low)
        for _ in range(halvings):
            middle = (low + high) / 2
            flipped = flips(middle)
            high, low = torch.where(flipped, middle, high), torch.where(flipped, low, middle)
        # Along a way the distance grows with the share, so that the last flip is the nearest.
        point = at(high)
        self.take(point, self.ground.distances(point.double() - self.x.double()), high < 1)
