"""W-FGSM: the first-order worst-case distribution Q_delta in one step (FGSM is the case p = inf)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wdro_train.attacks.ascent import slope_in_box, upsilon_in_scope
from wdro_train.attacks.base import Attacked, AttackResult
from wdro_train.attacks.gradient import InputGradient, input_gradient
from wdro_train.attacks.mode import BatchNormMode, batch_under_attack, resolve_batch_norm
from wdro_train.attacks.network_check import check_logits, checked_loss
from wdro_train.theory.ball import WassersteinBall
from wdro_train.theory.box import ascend, move
from wdro_train.theory.ground_norm import per_image
from wdro_train.theory.losses import LossFunction, resolve_loss
from wdro_train.theory.power_mean import moment
from wdro_train.theory.sensitivity import Scope, resolve_scope
from wdro_train.utils.distributed import LocalReducer, Reducer


class WFGSM:
    """The first-order worst case Q_delta: the push-forward x -> x + delta h(g) (||g||_* / Upsilon)^(q-1), g = grad_x J.

    V(delta) = E_{Q_delta}[J] + o(delta) (theory, section 2; Bai, He, Jiang, Obloj 2023). It takes one forward and one
    backward pass, and one collective under DDP.

    Args:
        p: Wasserstein order in (1, inf].
        norm: Ground norm in [1, inf].
        delta: Radius.
        loss: `ce`, `dlr`, `redlr` or a per-image loss.
        box: True builds Q_delta from the free gradient and spends in full inside [0, 1]^n; False is the paper's
            formula, clamped to [0, 1] afterwards (the 2023 code).
        scope: Over what Upsilon is taken: `batch` (the global batch), `running`, or a `Scope`.
        batch_norm: Mode the model runs in during the attack, `eval` or `train`.
        batch_size: Images per forward pass; None for all at once.
    """

    def __init__(
        self,
        *,
        p: float | str,
        norm: float | str,
        delta: float | str,
        loss: str | LossFunction = "ce",
        box: bool = True,
        scope: str | Scope = "batch",
        batch_norm: BatchNormMode = "eval",
        batch_size: int | None = None,
    ) -> None:
        self.ball = WassersteinBall(p, norm, delta).require_first_order("W-FGSM")
        self.loss = resolve_loss(loss)
        self.box = box
        self.scope = resolve_scope(scope)
        self.batch_norm = resolve_batch_norm(batch_norm)
        self.batch_size = batch_size

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        weight: Tensor | None = None,
        reducer: Reducer | None = None,
        generator: torch.Generator | None = None,
    ) -> AttackResult:
        """Move the batch to where Q_delta has its mass; see `Attack`."""
        ball, reducer = self.ball, reducer or LocalReducer()
        x, found, slope = self._slopes(model, x, y)
        with torch.no_grad():
            dual_norms = ball.ground.dual_norms(slope)
            parts = reducer.gather(moment(dual_norms, weight, ball.q))
            upsilon = upsilon_in_scope(parts, ball.q, self.scope, step=0)
            x_adv = push_forward(ball, x, slope, dual_norms, upsilon, box=self.box)
            return AttackResult(
                x_adv=x_adv,
                distances=ball.ground.distances(x_adv - x),
                upsilon=upsilon,
                dual_norms=dual_norms,
                losses=found.losses,
                logits=found.logits,
                zero_gradients=(dual_norms == 0).sum(),
                nonfinite_gradients=found.nonfinite,
                attacked=Attacked(model, y),
            )

    def gradient_moment(self, model: nn.Module, x: Tensor, y: Tensor, *, weight: Tensor | None = None) -> Tensor:
        """What this batch contributes to Upsilon, for a pass over the whole set that precedes the attack.

        Args:
            model: Maps images in [0, 1] to logits.
            x: Images, shape [B, C, H, W].
            y: Labels, shape [B].
            weight: Shape [B]; 0 for padding.

        Returns:
            Moment of ||grad J||_* with exponent q, shape [3]; see `wdro_train.theory.power_mean`.
        """
        _, _, slope = self._slopes(model, x, y)
        return moment(self.ball.ground.dual_norms(slope), weight, self.ball.q)

    def _slopes(self, model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, InputGradient, Tensor]:
        """The images in float32, J and grad_x J at them, and the gradient to step along (free of the box if asked)."""
        with batch_under_attack(model, x, y, self.batch_norm) as (x, y, labels):
            found = input_gradient(model, x, y, checked_loss(self.loss, labels), self.batch_size)
            check_logits(model, x, found.logits, labels)
        with torch.no_grad():
            return x, found, slope_in_box(found.gradient, x, box=self.box)


@torch.no_grad()
def push_forward(
    ball: WassersteinBall, x: Tensor, slope: Tensor, dual_norms: Tensor, upsilon: Tensor, *, box: bool
) -> Tensor:
    """The map of Q_delta, x -> x + delta h(g) (||g||_* / Upsilon)^(q-1), kept in [0, 1]^n (theory, section 2).

    Args:
        ball: The threat, p > 1.
        x: Images in [0, 1], shape [B, ...].
        slope: grad_x J, free of the box if `box`, same shape.
        dual_norms: ||slope||_*, shape [B].
        upsilon: Upsilon of the whole distribution, scalar.
        box: Step along the free gradient and spend the radii in full inside the box; False: clamp afterwards.

    Returns:
        Images in [0, 1], same shape as x.
    """
    radii = ball.delta * ball.shares(dual_norms, upsilon)
    if box:
        return ascend(ball.ground, x, slope, radii)
    return move(x, per_image(radii, x) * ball.ground.direction(slope))
