"""How far the worst case reaches: the marginal distance D = lambda^(-1/p) (theory, sections 5, 10 and 11).

Images nearer to the decision boundary than D are worth the adversary's budget, the others are not. D is learnt from the
distances of the flips that a training attack finds, or from certified radii. To add another estimate of D, write a
class with the methods of `Marginal`.
"""

from __future__ import annotations

import math
import warnings
from typing import Any, Protocol

import torch
from torch import Tensor

from wdro_train.theory.ball import WassersteinBall
from wdro_train.theory.ground_norm import DISTANCE_ROUNDING
from wdro_train.utils.errors import UserError
from wdro_train.utils.learnt import learnt_number
from wdro_train.utils.numbers import parse_number


class Marginal(Protocol):
    """A running estimate of the marginal distance."""

    def reach(self, ball: WassersteinBall, x: Tensor) -> Tensor:
        """How far to attack.

        Args:
            ball: The threat.
            x: The images to be attacked, for their device and size.

        Returns:
            In units of the ground norm, scalar, float64.
        """
        ...

    def update(self, ball: WassersteinBall, flips: Tensor, weight: Tensor) -> None:
        """Learn from the flips, or the certified radii, of the global batch, which every rank is given.

        Args:
            ball: The threat.
            flips: Distance of each image's flip, or its certified radius, shape [N]: 0 for misclassified images, inf
                where there is none within reach.
            weight: Shape [N]; 0 for padding.
        """
        ...

    def warm_up(self, share: float) -> None:
        """Let D reach no farther than a share of what it may reach at the end of a warm-up, in [0, 1]."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        ...


class Fixed:
    """The same reach throughout training, whatever the ball, as in margin maximisation (MMA, Ding et al. 2020).

    Args:
        distance: In units of the ground norm, > 0.
    """

    def __init__(self, distance: float) -> None:
        self.distance = parse_number(distance, "attack.marginal.distance")
        if not 0 < self.distance < math.inf:
            raise UserError(f"attack.marginal.distance={distance} is no reach; choose a positive number")
        self._share = 1.0

    def reach(self, ball: WassersteinBall, x: Tensor) -> Tensor:
        """The fixed distance, with a warning if images are judged farther away than they are trained."""
        if self.distance < ball.delta:
            warnings.warn(
                f"attack.marginal.distance={self.distance:g} is less than attack.delta={ball.delta:g}: images are "
                "trained nearer than they are judged; set a larger one",
                stacklevel=2,
            )
        return torch.full((), self._share * self.distance, dtype=torch.float64, device=x.device)

    def warm_up(self, share: float) -> None:
        """Reach no farther than this share of the distance."""
        self._share = share

    def update(self, ball: WassersteinBall, flips: Tensor, weight: Tensor) -> None:
        """Nothing to learn."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing to keep."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to load."""


class DualAscent:
    """Dual ascent on the multiplier of the knapsack, so that ball and network alone decide how far to attack.

    log D <- log D + rate (delta^p - spent) / delta^p, with spent = E[d^p; 0 < d <= D] over the global batch (theory,
    sections 10 and 11): while the flips nearer than D cost less than the budget, D grows. D stays between start times
    delta and limit ||(1, ..., 1)||_s. At p = inf the marginal distance is delta.

    At the optimum D is at least delta, since no more than all images are moved. A start below delta lets a network
    first learn what is near, which training on interval bounds needs: they are loose in the beginning.

    Args:
        rate: Step of the ascent, >= 0.
        limit: Largest D, as a share of the diameter of the box.
        safety: The attack reaches as far as safety times D, safety >= 1; flips beyond D are trained on and not charged.
        start: First and smallest D, as a share of delta, in (0, 1].
    """

    def __init__(self, rate: float = 0.05, limit: float = 0.6, safety: float = 1.0, start: float = 1.0) -> None:
        if not (rate >= 0 and 0 < limit <= 1 and safety >= 1 and 0 < start <= 1):
            raise UserError(
                f"attack.marginal: rate={rate}, limit={limit}, safety={safety}, start={start}; "
                "choose rate >= 0, limit in (0, 1], safety >= 1 and start in (0, 1]"
            )
        self.rate, self.limit, self.safety, self.start = float(rate), float(limit), float(safety), float(start)
        self._share = 1.0
        self._distance: Tensor | None = None

    def reach(self, ball: WassersteinBall, x: Tensor) -> Tensor:
        """`safety` times D, but no more than the diameter of the box, nor than a warm-up allows."""
        diameter = ball.ground.diameter(x)
        pointwise = math.isinf(ball.p)
        least = ball.delta if pointwise else self.start * ball.delta
        self._most = max(self.limit * diameter, least)
        if self._distance is None or pointwise:
            self._distance = torch.full((), least, dtype=torch.float64)
        self._distance = self._distance.to(x.device).clamp(min=least)  # a warm-up may have enlarged the ball
        allowed = self._share * (ball.delta if pointwise else self._most)
        return (self.safety * self._distance).clamp(max=min(diameter, allowed) if self._share < 1 else diameter)

    def update(self, ball: WassersteinBall, flips: Tensor, weight: Tensor) -> None:
        """One step of the ascent."""
        assert self._distance is not None
        if math.isinf(ball.p) or ball.delta == 0:
            return
        near = torch.where(flips <= DISTANCE_ROUNDING * self._distance, flips, 0.0) / ball.delta
        spent = (weight * near.pow(ball.p)).sum() / weight.sum()
        least = self.start * ball.delta
        most = max(self._share * self._most, least)  # D does not run away from what is trained on
        self._distance = (self._distance * (self.rate * (1 - spent)).exp()).clamp(least, most)

    def warm_up(self, share: float) -> None:
        """Let D grow no larger than this share of its limit; at p = inf, than this share of delta."""
        self._share = share

    def state_dict(self) -> dict[str, Any]:
        """The marginal distance D for a checkpoint; empty before the first batch."""
        return {} if self._distance is None else {"distance": self._distance}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue with the marginal distance of a checkpoint; with an empty one, start afresh."""
        self._distance = learnt_number(state_dict, "distance", "marginal distance", positive=True)
