"""First-order penalty: minimise the first-order worst-case loss by double backward, without an attack."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from wdro_train.objectives.base import ObjectiveResult
from wdro_train.theory.ball import WassersteinBall
from wdro_train.theory.losses import LossFunction, resolve_loss
from wdro_train.theory.sensitivity import upsilon
from wdro_train.utils.distributed import Reducer


class FirstOrderPenalty:
    """Minimise V(0) + delta Upsilon, with Upsilon = (E ||grad_x J||_*^q)^(1/q) over the global batch.

    Theory, section 9. grad_theta Upsilon = E[c_i grad_theta ||g_i||_*] with g_i = grad_x J and c_i =
    (||g_i||_* / Upsilon)^(q-1) held fixed. So every rank minimises its own mean of c_i ||g_i||_*, whose value over all
    ranks is Upsilon, and only Upsilon itself is communicated.

    Args:
        p: Wasserstein order in (1, inf].
        norm: Ground norm in [1, inf].
        delta: Radius.
        loss: The loss J.
    """

    needs_adversary = False

    def __init__(self, *, p: float, norm: float, delta: float, loss: str | LossFunction = "ce") -> None:
        self.ball = WassersteinBall(p, norm, delta).require_first_order("the first-order penalty")
        self.loss = resolve_loss(loss)
        self._full = self.ball

    def warm_up(self, share: float) -> None:
        """Take this share of the radius; see `WarmsUp`."""
        self.ball = replace(self._full, delta=share * self._full.delta)

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
        """Loss and penalty on x; see `Objective`."""
        x = x.detach().float().requires_grad_()
        logits = model(x)
        losses = self.loss(logits, y)
        (gradient,) = torch.autograd.grad(losses.sum(), x, create_graph=True)
        norms = _differentiable_norms(gradient, self.ball.ground.dual)
        total = upsilon(norms.detach(), self.ball.q, reducer=reducer)
        penalty = (self.ball.shares(norms.detach(), total).to(norms) * norms).mean()
        value = losses.mean()
        terms = {"v0": value.detach(), "upsilon": total.float()}
        return ObjectiveResult(value + self.ball.delta * penalty, logits, None, terms)


def _differentiable_norms(g: Tensor, order: float) -> Tensor:
    """Norms ||g_i|| that can be differentiated; where g_i = 0, the kink of the norm, the derivative is 0.

    Args:
        g: Shape [B, ...], with graph.
        order: Of the norm, in [1, inf].

    Returns:
        Shape [B].
    """
    flat = g.flatten(1)
    size = flat.detach().abs().amax(1, keepdim=True)
    alive = size > 0
    ratio = torch.where(alive, flat, 1.0) / torch.where(alive, size, 1.0)
    norms = ratio.abs().amax(1) if math.isinf(order) else torch.linalg.vector_norm(ratio, ord=order, dim=1)
    return torch.where(alive, size, 0.0).squeeze(1) * norms
