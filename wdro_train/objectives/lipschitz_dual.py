"""Training on the dual of the certified knapsack, for networks of known Lipschitz constant: a step costs one pass."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from wdro_train.attacks.marginal import DualAscent, Marginal
from wdro_train.certificates.lipschitz_network import TrainedNetwork
from wdro_train.certificates.reading import network_of
from wdro_train.objectives.base import ObjectiveResult
from wdro_train.objectives.certified import ReadOnce
from wdro_train.objectives.training_radii import learn
from wdro_train.theory.ball import WassersteinBall
from wdro_train.utils.distributed import Reducer
from wdro_train.utils.errors import UserError


class LipschitzDual:
    """Minimise E[phi(r / D)], with r the signed certified radius of an image and D the marginal distance.

        phi(u) = 1 - min(u, 1)^p for u >= 0,    phi(u) = 1 - u for u < 0,
        r = min over j != y of (z_y - z_j) / (L ||w_y - w_j||_2).

    Theory, section 11. By the dual of the knapsack the certified error under W_p is C = min over D of
    (delta / D)^p + E (1 - (r_+ / D)^p)_+, and at the minimum grad C = grad E[phi(r / D)] as far as correct images are
    concerned: what is minimised is what `val/certified_acc` reports. Misclassified images have r < 0, where phi goes on
    with slope -1, since they need a gradient too. D follows from (p, delta) by dual ascent on r.

    At p = inf, D = delta and C is the share of images with r <= delta, which has no gradient; phi(u) = (1 - u)_+ takes
    its place, the least convex function above it. At p = 1 it is the same function, with the D of the dual.

    Args:
        p: Wasserstein order in [1, inf].
        norm: Ground norm, 2.
        delta: Radius, > 0.
        marginal: Says how far the worst case reaches; `DualAscent` by default.
    """

    needs_adversary = False

    def __init__(self, *, p: float, norm: float, delta: float, marginal: Marginal | None = None) -> None:
        self.ball = WassersteinBall(p, norm, delta)
        if self.ball.norm != 2:
            raise UserError(
                f"lipschitz_dual trains radii in the l_2 norm, not attack.norm={self.ball.norm:g}; choose attack.norm=2"
            )
        if not self.ball.delta > 0:
            raise UserError(f"attack.delta={delta} leaves no radius to certify; choose a positive one")
        self.marginal: Marginal = marginal if marginal is not None else DualAscent(rate=0.02)
        self._networks = ReadOnce(TrainedNetwork)

    def check_network(self, model: nn.Module, x: Tensor) -> None:
        """Refuse a network that cannot be trained on its certificate; see `ChecksNetwork`.

        Args:
            model: The network.
            x: Some images.
        """
        self._networks.of(network_of(model)).constant(x)

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        x_adv: Tensor,
        y: Tensor,
        *,
        importance: Tensor | None = None,
        reducer: Reducer | None = None,
    ) -> ObjectiveResult:
        """The dual objective on x; see `Objective`."""
        logits = model(x)
        network = self._networks.of(network_of(model))
        radii = network.radii(logits, y, network.constant(x))
        reach = self.marginal.reach(self.ball, x)
        loss = dual_loss(radii / reach.to(radii), self.ball.p).mean()
        learn(self.marginal, self.ball, radii.clamp(min=0), reducer)
        pointwise = (radii.detach() > self.ball.delta).float().mean()
        terms = {"marginal_distance": reach.float(), "certified_pointwise": pointwise}
        return ObjectiveResult(loss, logits, None, terms)

    def state_dict(self) -> dict[str, Any]:
        """The state of the marginal distance; see `Stateful`."""
        return self.marginal.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a checkpoint's marginal distance."""
        self.marginal.load_state_dict(state_dict)


def dual_loss(u: Tensor, p: float) -> Tensor:
    """phi(u) = 1 - min(u, 1)^p for u >= 0 and 1 - u for u < 0, with the exponent 1 at p = inf (theory, section 11).

    Args:
        u: Signed certified radii over the marginal distance, shape [B].
        p: Wasserstein order in [1, inf].

    Returns:
        Shape [B], >= 0.
    """
    exponent = 1.0 if math.isinf(p) else p
    inside = u.clamp(0, 1)
    return torch.where(u >= 0, 1 - inside.pow(exponent), 1 - u)
