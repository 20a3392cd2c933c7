"""How far the worst case reaches: the marginal distance D = lambda^(-1/p) (theory, sections 5 and 10).

Images nearer to the decision boundary than D are worth the adversary's budget, the others are not. To add another
estimate of D, write a class with the methods of `Marginal`.
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
        """Learn from the flips of the global batch, which every rank is given.

        Args:
            ball: The threat.
            flips: Distance of each image's flip, shape [N]: 0 for misclassified images, inf where none was found.
            weight: Shape [N]; 0 for padding.
        """
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

    def reach(self, ball: WassersteinBall, x: Tensor) -> Tensor:
        """The fixed distance, with a warning if images are judged farther away than they are trained."""
        if self.distance < ball.delta:
            warnings.warn(
                f"attack.marginal.distance={self.distance:g} is less than attack.delta={ball.delta:g}: images are "
                "trained nearer than they are judged; set a larger one",
                stacklevel=2,
            )
        return torch.full((), self.distance, dtype=torch.float64, device=x.device)

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
    section 10): while the flips nearer than D cost less than the budget, D grows. D stays between delta and
    limit ||(1, ..., 1)||_s. At p = inf the marginal distance is delta.

    Args:
        rate: Step of the ascent, >= 0.
        limit: Largest D, as a share of the diameter of the box.
        safety: The attack reaches as far as safety times D, safety >= 1; flips beyond D are trained on and not charged.
    """

    def __init__(self, rate: float = 0.05, limit: float = 0.6, safety: float = 1.0) -> None:
        if not (rate >= 0 and 0 < limit <= 1 and safety >= 1):
            raise UserError(
                f"attack.marginal: rate={rate}, limit={limit}, safety={safety}; "
                "choose rate >= 0, limit in (0, 1] and safety >= 1"
            )
        self.rate, self.limit, self.safety = float(rate), float(limit), float(safety)
        self._distance: Tensor | None = None

    def reach(self, ball: WassersteinBall, x: Tensor) -> Tensor:
        """`safety` times D, but no more than the diameter of the box."""
        diameter = ball.ground.diameter(x)
        self._most = self.limit * diameter
        if self._distance is None or math.isinf(ball.p):
            self._distance = torch.full((), ball.delta, dtype=torch.float64)
        self._distance = self._distance.to(x.device).clamp(min=ball.delta)  # a warm-up may have enlarged the ball
        return (self.safety * self._distance).clamp(max=diameter)

    def update(self, ball: WassersteinBall, flips: Tensor, weight: Tensor) -> None:
        """One step of the ascent."""
        assert self._distance is not None
        if math.isinf(ball.p) or ball.delta == 0:
            return
        near = torch.where(flips <= DISTANCE_ROUNDING * self._distance, flips, 0.0) / ball.delta
        spent = (weight * near.pow(ball.p)).sum() / weight.sum()
        most = max(self._most, ball.delta)
        self._distance = (self._distance * (self.rate * (1 - spent)).exp()).clamp(ball.delta, most)

    def state_dict(self) -> dict[str, Any]:
        """The marginal distance D for a checkpoint; empty before the first batch."""
        return {} if self._distance is None else {"distance": self._distance}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue with the marginal distance of a checkpoint."""
        self._distance = state_dict.get("distance", self._distance)
