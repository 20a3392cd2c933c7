"""How far each image is to be certified in training: one protocol (`TrainingRadii`), one class a rule.

Certified training asks for a bound on the loss over a ball around every image, and the radii of these balls are the
choice that decides what is learnt. Under a Wasserstein ball the dual of the knapsack makes it (theory, section 11):
images that are certified past the marginal distance D need nothing, misclassified ones cannot be helped by a radius,
and those in between should be certified a little farther than they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from wdro_train.attacks.marginal import DualAscent, Fixed, Marginal
from wdro_train.theory.ball import WassersteinBall
from wdro_train.utils.distributed import LocalReducer, Reducer
from wdro_train.utils.errors import UserError

MarginsAt = Callable[[Tensor], Tensor]
"""From radii [B] to lower bounds of the margins over balls of these radii, [B], in logit units."""


class TrainingRadii(Protocol):
    """A rule that says how far each image of a batch is to be certified."""

    def __call__(
        self, ball: WassersteinBall, x: Tensor, clean: Tensor, margins_at: MarginsAt, reducer: Reducer | None = None
    ) -> Tensor:
        """The radii of a batch, from which the rule may learn.

        Args:
            ball: The threat.
            x: Images, shape [B, ...].
            clean: Their margins, shape [B]; positive where the image is correct.
            margins_at: Bounds them over balls.
            reducer: Joins the ranks that share the global batch.

        Returns:
            Shape [B], float64, in units of the ground norm, without graph.
        """
        ...

    def warm_up(self, share: float) -> None:
        """Ask for no more than this share of the full radii, in [0, 1]."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        ...


class _WithMarginal:
    """What rules share that follow a marginal distance: it is all that they learn, and all that grows.

    Args:
        marginal: Says how far the worst case reaches; `DualAscent` by default.
    """

    def __init__(self, marginal: Marginal | None = None) -> None:
        self.marginal = marginal if marginal is not None else certified_ascent()

    def warm_up(self, share: float) -> None:
        """Reach no farther than this share."""
        self.marginal.warm_up(share)

    def state_dict(self) -> dict[str, Any]:
        """The state of the marginal distance."""
        return self.marginal.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a checkpoint's marginal distance."""
        self.marginal.load_state_dict(state_dict)


class OneRadius(_WithMarginal):
    """The marginal distance D for all images.

    With `Fixed(delta)` this is certified training at a fixed radius, as it is usually done (Gowal et al. 2018, arXiv
    1810.12715). With `DualAscent` D follows from the ball, at the cost of one bound more, without gradient.

    Args:
        marginal: Says how far the worst case reaches; `DualAscent` by default.
    """

    def __call__(
        self, ball: WassersteinBall, x: Tensor, clean: Tensor, margins_at: MarginsAt, reducer: Reducer | None = None
    ) -> Tensor:
        """D for each image; see `TrainingRadii`."""
        reach = self.marginal.reach(ball, x)
        if not isinstance(self.marginal, Fixed) and not math.isinf(ball.p):  # else there is nothing to learn
            learn(self.marginal, ball, estimated_radii(clean, margins_at, reach), reducer)
        return reach.expand(len(x))


class RadiusOfImage(_WithMarginal):
    """For each image a little more than it has, min(D, factor r_i + share D), with r_i its certified radius.

    An image that cannot be certified as far as D would only cost clean accuracy if it were asked to be. On
    Fashion-MNIST, l_inf, W_2 of radius 0.1, this was worth 3.4 points of clean accuracy over D for all images, at the
    same certified accuracy (theory, section 11). It takes one bound more, without gradient.

    Args:
        marginal: Says how far the worst case reaches; `DualAscent` by default.
        factor: Of the image's own radius, >= 1.
        share: Of D, so that images without a radius learn, too; in [0, 1].
    """

    def __init__(self, marginal: Marginal | None = None, factor: float = 1.5, share: float = 0.2) -> None:
        if not (factor >= 1 and 0 <= share <= 1):
            raise UserError(
                f"objective.radius: factor={factor}, share={share}; choose factor >= 1 and share between 0 and 1"
            )
        super().__init__(marginal)
        self.factor, self.share = float(factor), float(share)

    def __call__(
        self, ball: WassersteinBall, x: Tensor, clean: Tensor, margins_at: MarginsAt, reducer: Reducer | None = None
    ) -> Tensor:
        """The radii of a batch; see `TrainingRadii`."""
        reach = self.marginal.reach(ball, x)
        radii = estimated_radii(clean, margins_at, reach)
        learn(self.marginal, ball, radii, reducer)
        return torch.minimum(self.factor * radii + self.share * reach, reach)


def certified_ascent() -> DualAscent:
    """The ascent of the marginal distance for certified radii, which `conf/objective/ibp.yaml` spells out.

    Rate, start and limit are those of theory, section 11: D starts at a twentieth of delta, since bounds are loose in
    the beginning, and ends at 0.305 at most.
    """
    return DualAscent(rate=0.02, limit=0.305, start=0.05)


def learn(marginal: Marginal, ball: WassersteinBall, radii: Tensor, reducer: Reducer | None = None) -> None:
    """Update a running marginal distance with the certified radii of a batch, the same on all ranks.

    Call `marginal.reach` first, as its distance is what the radii are compared with.

    Args:
        marginal: Is changed.
        ball: The threat.
        radii: Certified radii, shape [B]: 0 for misclassified images, inf where nothing nearer than D was found.
        reducer: Joins the ranks that share the global batch; all have B images.
    """
    if math.isinf(ball.p):  # D is delta
        return
    everyone = (reducer or LocalReducer()).gather(radii.detach().double()).flatten()
    marginal.update(ball, everyone, torch.ones_like(everyone))


@torch.no_grad()
def estimated_radii(clean: Tensor, margins_at: MarginsAt, reach: Tensor) -> Tensor:
    """Certified radii up to D from one bound: where the chord of the margin between radius 0 and D crosses zero.

    The margin's bound falls faster and faster with the radius as the boxes inside the network widen, so the chord
    lies below it and its root below the certified radius; where it is not so, the radius is an estimate. It steers
    training only, and no figure rests on it.

    Args:
        clean: Margins of the images, shape [B].
        margins_at: Bounds them over balls.
        reach: D, scalar.

    Returns:
        Shape [B], float64: 0 for misclassified images, inf where D is certified.
    """
    clean = clean.double()
    at_reach = margins_at(reach.expand(len(clean))).double()
    root = reach * clean / (clean - at_reach).clamp(min=torch.finfo(torch.float64).tiny)
    within = torch.where(at_reach > 0, torch.inf, torch.minimum(root, reach))
    return torch.where(clean > 0, within, 0.0)
