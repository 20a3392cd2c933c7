"""The smallest displacement that flips each image: what exact worst-case accuracy is made of (theory, section 5)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wdro_train.attacks.gradient import forward, input_gradient
from wdro_train.attacks.mode import batch_under_attack
from wdro_train.attacks.network_check import check_logits
from wdro_train.theory.box import ascend, free_gradient, reach
from wdro_train.theory.ground_norm import GroundNorm, per_image
from wdro_train.theory.losses import LossFunction, correct, margin
from wdro_train.utils.errors import UserError

_FIRST_RADIUS = 2.0  # in units of the linearised distance
_SOFTNESS = 1.0  # temperature of the softened margin, in units of the margin's size
# First step in units of the current radius. Sign steps (norm inf) move all pixels alike and go astray when long.
_STEP_SIZES = {2.0: 3.0, math.inf: 0.75}
_LAST_STEP = 0.01
_FIRST_GROWTH, _LAST_GROWTH = 0.2, 0.005
# Of that while no flip is known: the linearised boundary may always lie too near.
_LEAST_GROWTH, _MOST_GROWTH = 0.2, 5.0
_BISECTIONS = 8
_POLISHES = 2
_OVERSHOOT = 1e-4


@dataclass(frozen=True)
class Distances:
    """How far each image is from the nearest misclassified point that was found.

    Attributes:
        distances: ||x'_i - x_i||_s, float64, shape [N]: 0 for misclassified images, inf where no flip was found.
            Upper bounds on the true distances d_i.
        x_adv: The flipped images in [0, 1], float32; the clean image where nothing was found.
        clean_correct: The images classified correctly to begin with, boolean, shape [N].
        nonfinite_gradients: Number of (image, step) pairs whose gradient was not finite.
        zero_gradients: Number of correct images whose gradient at the image itself vanished.
    """

    distances: Tensor
    x_adv: Tensor
    clean_correct: Tensor
    nonfinite_gradients: int
    zero_gradients: int


class MinimalDistance:
    """Minimum-norm attack with a radius of its own for every image.

    Each step moves down the softened margin, in the best direction inside the box, by a multiple of the image's current
    radius and comes back to that radius; the radius shrinks below the best flip found so far, and grows while there
    is none. Step and rate of change fall along a cosine, so that the iterate settles on the boundary (the scheme of
    FMN, Pintor et al. 2021, with steps relative to the radius and exact steps in the box; for s = 1 conditional-
    gradient ones). Flips are then pulled back by bisection, moved to the foot of the perpendicular on the linearised
    boundary, and re-checked.

    Misclassified images have distance 0 and cost one forward pass. A run costs `steps` forward and backward
    passes for each restart and target, and a few forward passes.

    Args:
        norm: Ground norm: 1, 2 or inf.
        steps: Gradient steps of a run.
        restarts: Runs against the nearest rival classes; all but the first start from random points.
        targets: Further runs, one against each of the so many strongest rival classes.
        step_size: First step in units of the current radius (norms 2 and inf); by default 3 and 0.75.
        batch_size: Images per forward pass; None for all at once.
    """

    def __init__(
        self,
        *,
        norm: float,
        steps: int = 30,
        restarts: int = 1,
        targets: int = 0,
        step_size: float | None = None,
        batch_size: int | None = None,
    ) -> None:
        self.ground = GroundNorm(norm)
        if self.ground.order not in (1, 2, math.inf):
            raise UserError(f"attack.norm={self.ground.order:g} has no minimum-norm attack; choose 1, 2 or inf")
        if steps < 1 or restarts < 1 or targets < 0:
            raise UserError(f"steps={steps}, restarts={restarts}, targets={targets}: choose at least 1, 1 and 0")
        self.steps, self.restarts, self.targets = int(steps), int(restarts), int(targets)
        self.step_size = float(_STEP_SIZES.get(self.ground.order, 1.0) if step_size is None else step_size)
        self.batch_size = batch_size

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, *, generator: torch.Generator | None = None
    ) -> Distances:
        """Distances of a batch.

        Args:
            model: Maps images in [0, 1] to logits.
            x: Images in [0, 1], shape [N, C, H, W].
            y: Labels, shape [N].
            generator: Source of random starts; None for the default one.
        """
        with batch_under_attack(model, x, y) as (x, y, labels):
            with torch.no_grad():
                logits = forward(model, x, self.batch_size)
            check_logits(model, x, logits, labels)
            robust = correct(logits, y)
            distances = torch.where(robust, math.inf, torch.zeros(len(x), dtype=torch.float64, device=x.device))
            x_adv = x.clone()
            rows = robust.nonzero().squeeze(1)
            search = _NearestFlipSearch(self, model, x[rows], y[rows])
            if len(rows):
                search.run(logits[rows], generator)
                distances[rows], x_adv[rows] = search.distances, search.points
            return Distances(distances, x_adv, robust, int(search.nonfinite), int(search.zero))


class _NearestFlipSearch:
    """The state of one batch of correct images: the nearest flip of each so far."""

    def __init__(self, attack: MinimalDistance, model: nn.Module, x: Tensor, y: Tensor) -> None:
        self.attack, self.ground, self.model = attack, attack.ground, model
        self.x, self.y = x, y
        self.points = x.clone()
        self.distances = torch.full((len(x),), math.inf, dtype=torch.float64, device=x.device)
        self.nonfinite = torch.zeros((), dtype=torch.int64, device=x.device)
        self.zero = torch.zeros((), dtype=torch.int64, device=x.device)

    def run(self, logits: Tensor, generator: torch.Generator | None) -> None:
        """All starts and targets, each refined before the nearest flips are kept: another run never makes it worse."""
        rivals = logits.float().scatter(1, self.y[:, None], -math.inf).argsort(dim=1, descending=True)
        targets = min(self.attack.targets, logits.shape[1] - 1)
        for run in range(self.attack.restarts + targets):
            rank = run - self.attack.restarts
            best, distances = self.points, self.distances
            start = self._start(generator) if 0 < run < self.attack.restarts else self.x
            self.points, self.distances = self.x, torch.full_like(distances, math.inf)
            if rank < 0:
                self._descend(_minus_soft_margin, self.y, start, first=run == 0)
            else:
                self._descend(_minus_margin_to_rival, torch.stack([self.y, rivals[:, rank]], dim=1), start)
            self._refine()
            self._take(best, distances, distances < math.inf)
        self._recheck()

    def _refine(self) -> None:
        """Bring this run's flips down to the boundary.

        The last bisection closes what the overshoot of the polish leaves open: it looks just below the flip first, and
        only if that point is flipped too further down.
        """
        self._bisect(torch.zeros_like(self.distances))
        for _ in range(_POLISHES):
            self._polish()
        self._bisect(torch.full_like(self.distances, 1 - 2 * _OVERSHOOT))

    def _descend(self, loss: LossFunction, targets: Tensor, start: Tensor, first: bool = False) -> None:
        """One run of shrinking and growing radii.

        Args:
            loss: Maps logits [B, m] and the images' rows of `targets` to [B].
            targets: What the loss is told about each image, shape [N] or [N, k]; it is split into batches with them.
            start: First points, shape of the images.
            first: Count the images without gradient.
        """
        point, radii = start, None
        found = torch.full_like(self.distances, math.inf)
        for step in range(self.attack.steps):
            ease = 0.5 * (1 + math.cos(math.pi * step / self.attack.steps))
            share = _LAST_STEP + (1 - _LAST_STEP) * ease
            rate = _LAST_GROWTH + (_FIRST_GROWTH - _LAST_GROWTH) * ease
            here = input_gradient(self.model, point, targets, loss, self.attack.batch_size)
            self.nonfinite += here.nonfinite
            with torch.no_grad():
                flipped = ~correct(here.logits, self.y)
                distances = self.ground.distances(point - self.x)
                self._take(point, distances, flipped)
                found = torch.where(flipped, torch.minimum(found, distances), found)
                slope = free_gradient(here.gradient, point)
                steepness = self.ground.dual_norms(slope)
                # Where the linearised boundary is: the first radius, and the least to try while nothing flips.
                linear = distances + here.losses.double().abs() / torch.where(steepness > 0, steepness, 1.0)
                if radii is None:
                    self.zero += (steepness == 0).sum() * first
                    radii = _FIRST_RADIUS * linear
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
                point = self._move(point, distances, slope, radii, share)
        with torch.no_grad():
            self._check(point)

    def _move(self, point: Tensor, distances: Tensor, slope: Tensor, radii: Tensor, share: float) -> Tensor:
        """The best step in the box, at least as long as the way out to the radius, and brought back to it.

        For s = 1 a share of the way to the best vertex.
        """
        if self.ground.order == 1:
            u = point - self.x
            u = u + share * (ascend(self.ground, self.x, slope, radii) - self.x - u)
        else:
            length = torch.maximum(share * self.attack.step_size * radii, radii - distances)
            u = ascend(self.ground, point, slope, length) - self.x
        return (self.x + self.ground.shrink(u, self.ground.distances(u), radii)).clamp(0, 1)

    def _start(self, generator: torch.Generator | None) -> Tensor:
        """A random point half as far away as the nearest flip known."""
        noise = torch.empty_like(self.x).uniform_(-1, 1, generator=generator)
        known = torch.where(self.distances < math.inf, self.distances, 0.1 * self.ground.diameter(self.x))
        return (self.x + noise * per_image(0.5 * known / self.ground.distances(noise), self.x)).clamp(0, 1)

    def _polish(self) -> None:
        """The foot of the perpendicular from the image on the boundary, linearised at the nearest flip."""
        here = input_gradient(self.model, self.points, self.y, margin, self.attack.batch_size)
        with torch.no_grad():
            back = (here.gradient * (self.x - self.points)).flatten(1).double().sum(1)
            foot = reach(self.ground, self.x, here.gradient, -(here.losses.double() + back))
            candidate = (self.x + (1 + _OVERSHOOT) * foot).clamp(0, 1)
            self._check(torch.where(per_image(self.distances, self.x).isfinite(), candidate, self.points))

    @torch.no_grad()
    def _bisect(self, low: Tensor) -> None:
        """Pull every flip back along the segment to its image.

        Args:
            low: The share of the segment to look at first, as a guess of a point that is not flipped, shape [N]; where
                it is flipped the search goes on below it.
        """
        high = torch.ones_like(self.distances)
        ends = self.points.clone()
        if low.any():
            flipped = self._check(self.x + per_image(low, self.x) * (ends - self.x))
            high, low = torch.where(flipped, low, high), torch.where(flipped, 0.0, low)
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            point = self.x + per_image(middle, self.x) * (ends - self.x)
            flipped = self._check(point)
            high, low = torch.where(flipped, middle, high), torch.where(flipped, low, middle)

    def _check(self, point: Tensor) -> Tensor:
        """Look at points without gradient and keep those that are nearer; returns which are flipped."""
        flipped = ~correct(forward(self.model, point, self.attack.batch_size), self.y)
        self._take(point, self.ground.distances(point - self.x), flipped)
        return flipped

    def _take(self, point: Tensor, distances: Tensor, flipped: Tensor) -> None:
        better = flipped & (distances < self.distances)
        self.distances = torch.where(better, distances, self.distances)
        self.points = torch.where(per_image(better, point).bool(), point, self.points)

    @torch.no_grad()
    def _recheck(self) -> None:
        """Give up what does not flip when looked at again."""
        flipped = ~correct(forward(self.model, self.points, self.attack.batch_size), self.y)
        self.distances = torch.where(flipped, self.distances, math.inf)
        self.points = torch.where(per_image(flipped, self.points).bool(), self.points, self.x)


def _minus_soft_margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Minus the margin, [B], with the gradient of tau log sum_{j != y} exp(f_j / tau) - f_y, tau the margin's size.

    Far from the boundary rivals that lie together pull together, which avoids many local minima; tau vanishes at the
    boundary, and with it the difference from the margin.
    """
    wide = logits.float()
    hard = -margin(wide, labels).detach()
    resolution = torch.finfo(wide.dtype).eps * wide.detach().abs().amax(1)
    tau = torch.maximum(_SOFTNESS * hard.abs(), resolution).clamp_min(torch.finfo(wide.dtype).tiny)
    rivals = wide.scatter(1, labels[:, None], -math.inf) / tau[:, None]
    soft = tau * rivals.logsumexp(1) - wide.gather(1, labels[:, None]).squeeze(1)
    return hard + (soft - soft.detach())


def _minus_margin_to_rival(logits: Tensor, targets: Tensor) -> Tensor:
    """f_rival - f_label, [B]: minus the margin over one class of each image, for rows (label, rival) of `targets`."""
    label, rival = logits.float().gather(1, targets).unbind(1)
    return rival - label
