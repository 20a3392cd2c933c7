"""Per-image losses J(x, y) = L(f(x), y), finite with finite gradient at ties (theory: the three losses of the paper).

Every loss maps logits [B, m] and integer labels [B] to [B], computed in float32 or wider.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from wdro_train.errors import UserError

LossFunction = Callable[[Tensor, Tensor], Tensor]


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """m(x) = max_{j != y} f_j(x) - f_y(x): negative exactly on the correct set S; a tie gives 0.

    Args:
        logits: Shape [B, m], m >= 2.
        labels: Shape [B], values in 0..m-1.

    Returns:
        Shape [B], in logit units.
    """
    z = _wide(logits)
    own = z.gather(1, labels[:, None])
    rivals = z.scatter(1, labels[:, None], -torch.inf)
    return rivals.amax(1) - own.squeeze(1)


def correct(logits: Tensor, labels: Tensor) -> Tensor:
    """Membership of S: the label's logit is strictly the largest (a tie is wrong, and so is NaN).

    Args:
        logits: Shape [B, m].
        labels: Shape [B].

    Returns:
        Boolean tensor, shape [B].
    """
    return margin(logits.detach(), labels) < 0


def ce(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy in nats, shape [B], in [0, inf)."""
    return functional.cross_entropy(_wide(logits), labels, reduction="none")


def dlr(logits: Tensor, labels: Tensor) -> Tensor:
    """Difference of logits ratio, -(z_y - max_{i != y} z_i) / (z_(1) - z_(3)) (Croce and Hein 2020).

    Invariant to shift and scale of the logits. Where z_(1) and z_(3) agree to the last bits of their precision
    the ratio says nothing; value and gradient are then 0.

    Args:
        logits: Shape [B, m], m >= 3.
        labels: Shape [B].

    Returns:
        Shape [B], in [-1, inf).

    Raises:
        UserError: Fewer than three classes.
    """
    if logits.shape[1] < 3:
        raise UserError(f"the DLR losses need at least 3 classes, got {logits.shape[1]}; use loss=ce")
    z = _wide(logits)
    top = z.topk(3, dim=1).values
    spread = top[:, 0] - top[:, 2]
    resolution = torch.finfo(z.dtype).eps * z.detach().abs().amax(1)
    told_apart = spread > resolution
    ratio = margin(z, labels) / torch.where(told_apart, spread, 1.0)
    return torch.where(told_apart, ratio, 0.0 * ratio)


def redlr(logits: Tensor, labels: Tensor) -> Tensor:
    """Rectified DLR, min(DLR, 0): DLR on S, 0 with zero gradient elsewhere (Bai, He, Jiang, Obloj 2023).

    Args:
        logits: Shape [B, m], m >= 3.
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


def _wide(logits: Tensor) -> Tensor:
    """At least float32: losses are not computed in half precision."""
    return logits if logits.dtype in (torch.float32, torch.float64) else logits.float()
