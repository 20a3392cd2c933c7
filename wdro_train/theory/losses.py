"""Per-image losses J(x, y) = L(f(x), y), finite with finite gradient at ties (theory: the three losses of the paper).

Every loss maps logits [B, m], m >= 2, and integer labels [B] to [B], computed in float32 or wider.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from wdro_train.utils.errors import UserError

LossFunction = Callable[[Tensor, Tensor], Tensor]


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """m(x) = f_y(x) - max_{j != y} f_j(x): positive exactly on the correct set S; a tie gives 0.

    The one definition of a margin here; what attacks ascend is its negative.

    Args:
        logits: Shape [B, m], m >= 2.
        labels: Shape [B], values in 0..m-1.

    Returns:
        Shape [B], in logit units.
    """
    z, labels = _wide(logits), labels.long()
    own = z.gather(1, labels[:, None])
    rivals = z.scatter(1, labels[:, None], -torch.inf)
    return own.squeeze(1) - rivals.amax(1)


def correct(logits: Tensor, labels: Tensor) -> Tensor:
    """Membership of S: the label's logit is strictly the largest (a tie is wrong, and so is NaN).

    Args:
        logits: Shape [B, m].
        labels: Shape [B].

    Returns:
        Boolean tensor, shape [B].
    """
    return margin(logits.detach(), labels) > 0


def ce(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy in nats, shape [B], in [0, inf)."""
    return functional.cross_entropy(_wide(logits), labels.long(), reduction="none")


def dlr(logits: Tensor, labels: Tensor) -> Tensor:
    """Difference of logits ratio, -(z_y - max_{i != y} z_i) / (z_(1) - z_(3)) (Croce and Hein 2020).

    Invariant to shift and scale of the logits. Where z_(1) and z_(3) agree to the last bits of their precision
    the ratio says nothing; value and gradient are then 0.

    Two classes have no z_(3). A third one is imagined that is always e times less likely than the second,
    z_(3) = z_(2) - 1, which gives -m / (1 + |m|) with the margin m = z_y - z_{other}. Nothing that depends on two
    logits and ignores their shift and scale both is more than the sign of m, so the scale is kept here: the unit is one
    nat. The value is a strictly decreasing function of the margin in (-1, 1), negative exactly on the correct set, like
    DLR there, so ReDLR >= -1_S and A_delta >= -V_ReDLR(delta) hold as for more classes. Its slope 1 / (1 + |m|)^2
    does not vanish in floating point where the network is sure, as that of the difference of probabilities
    tanh(m / 2) does from m = 18 on; and among sure images the ratios of the slopes do not depend on the scale,
    which W-FGSM shares its budget by.

    Args:
        logits: Shape [B, m], m >= 2.
        labels: Shape [B].

    Returns:
        Shape [B], in [-1, inf); in (-1, 1) for two classes.
    """
    z = _wide(logits)
    if z.shape[1] == 2:
        return _squashed(-margin(z, labels))
    top = z.topk(3, dim=1).values
    spread = top[:, 0] - top[:, 2]
    resolution = torch.finfo(z.dtype).eps * z.detach().abs().amax(1)
    told_apart = spread > resolution
    ratio = -margin(z, labels) / torch.where(told_apart, spread, 1.0)
    return torch.where(told_apart, ratio, 0.0 * ratio)


def redlr(logits: Tensor, labels: Tensor) -> Tensor:
    """Rectified DLR, min(DLR, 0): DLR on S, 0 with zero gradient elsewhere (Bai, He, Jiang, Obloj 2023).

    Args:
        logits: Shape [B, m], m >= 2.
        labels: Shape [B].

    Returns:
        Shape [B], in [-1, 0].
    """
    value = dlr(logits, labels)
    return torch.where(correct(logits, labels), value, torch.zeros_like(value))


def kl_divergence(reference: Tensor, logits: Tensor) -> Tensor:
    """KL(softmax(reference) || softmax(logits)) in nats, shape [B], >= 0.

    Args:
        reference: Shape [B, m].
        logits: Shape [B, m].
    """
    log_reference, log_other = _wide(reference).log_softmax(1), _wide(logits).log_softmax(1)
    return (log_reference.exp() * (log_reference - log_other)).sum(1)


LOSSES: dict[str, LossFunction] = {"ce": ce, "dlr": dlr, "redlr": redlr}


def resolve_loss(loss: str | LossFunction) -> LossFunction:
    """A per-image loss from its name (`ce`, `dlr`, `redlr`) or itself.

    Raises:
        UserError: Unknown name.
    """
    if callable(loss):
        return loss
    try:
        return LOSSES[str(loss).lower()]
    except KeyError:
        raise UserError(f"unknown loss {loss!r}; choose one of {', '.join(LOSSES)}") from None


def _squashed(d: Tensor) -> Tensor:
    """Minus the margin, d, squashed to d / (1 + |d|) in (-1, 1).

    Far out it is written so that the slope 1 / (1 + |d|)^2 is not the difference of two numbers that round alike.
    """
    near = d.detach().abs() < 1
    inner = torch.where(near, d, 0.0)
    outer = d.detach().sign() * (1 - 1 / (1 + d.abs()))
    return torch.where(near, inner / (1 + inner.abs()), outer)


def _wide(logits: Tensor) -> Tensor:
    """At least float32: losses are not computed in half precision."""
    return logits if logits.dtype in (torch.float32, torch.float64) else logits.float()
