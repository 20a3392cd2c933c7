"""What is ascended and what counts as a mistake: losses J(x, y) = L(f(x), y) of single images (theory, section 3).

Every loss maps logits [B, m], m >= 2, and integer labels [B] to [B], computed in float32 or wider; at ties its value
and its gradient are finite. To add one, write such a function; `LOSSES` lists those that configurations name.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from wdro_train.utils.errors import UserError

LossFunction = Callable[[Tensor, Tensor], Tensor]


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """The lead of the label over its strongest rival, m(x) = f_y(x) - max_{j != y} f_j(x).

    Positive exactly on the correct set S; a tie gives 0. This is the one definition of a margin and of its sign; what
    attacks ascend is its negative.

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
    """Which images are classified correctly: the label's logit is strictly the largest (theory, section 1).

    A tie is wrong, so that the misclassified set is closed, and so is NaN.

    Args:
        logits: Shape [B, m].
        labels: Shape [B].

    Returns:
        Boolean tensor, shape [B].
    """
    return margin(logits.detach(), labels) > 0


def ce(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy, -log softmax(z)_y in nats.

    Args:
        logits: Shape [B, m].
        labels: Shape [B].

    Returns:
        Shape [B], in [0, inf).
    """
    return functional.cross_entropy(_wide(logits), labels.long(), reduction="none")


def dlr(logits: Tensor, labels: Tensor) -> Tensor:
    """Difference of logits ratio, -(z_y - max_{i != y} z_i) / (z_(1) - z_(3)), z_(k) the k-th largest logit.

    Croce and Hein 2020 (arXiv 2003.01690). It does not change when the logits are shifted or scaled. Where z_(1) and
    z_(3) agree to the last bits of their precision the ratio says nothing; value and gradient are then 0.

    Two classes have no z_(3). A third class is imagined that is always e times less likely than the second,
    z_(3) = z_(2) - 1, which gives -m / (1 + |m|) with the margin m. A function of two logits that ignores their shift
    and their scale is a function of the sign of m alone, so the scale is kept here, in nats. The value decreases
    strictly with the margin, lies in (-1, 1) and is negative exactly on the correct set, as that of DLR is there, so
    ReDLR >= -1_S and A_delta >= -V_ReDLR(delta) hold as for more classes. The slope 1 / (1 + |m|)^2 does not vanish in
    floating point where the network is sure, as that of the difference of probabilities tanh(m / 2) does from
    m = 18 on; and among sure images the ratios of the slopes, by which W-FGSM shares its budget, do not depend on the
    scale.

    Args:
        logits: Shape [B, m], m >= 2.
        labels: Shape [B].

    Returns:
        Shape [B], in [-1, inf); in (-1, 1) for two classes.
    """
    z = _wide(logits)
    if z.shape[1] == 2:
        return _squashed(0.0 - margin(z, labels))  # at a tie 0.0, where a minus alone would give -0.0
    top = z.topk(3, dim=1).values
    spread = top[:, 0] - top[:, 2]
    resolution = torch.finfo(z.dtype).eps * z.detach().abs().amax(1)
    told_apart = spread > resolution
    ratio = (0.0 - margin(z, labels)) / torch.where(told_apart, spread, 1.0)
    return torch.where(told_apart, ratio, 0.0 * ratio)


def redlr(logits: Tensor, labels: Tensor) -> Tensor:
    """Rectified DLR, min(DLR, 0): DLR on the correct set, 0 with zero gradient elsewhere.

    Bai, He, Jiang, Obloj 2023. The attacker stops spending on images that are already wrong; since ReDLR >= -1_S, its
    worst-case mean bounds worst-case accuracy, A_delta >= -V_ReDLR(delta) (theory, section 6).

    Args:
        logits: Shape [B, m], m >= 2.
        labels: Shape [B].

    Returns:
        Shape [B], in [-1, 0].
    """
    value = dlr(logits, labels)
    return torch.where(correct(logits, labels), value, torch.zeros_like(value))


def kl_divergence(reference: Tensor, logits: Tensor) -> Tensor:
    """How far predictions are from those of a reference, KL(softmax(reference) || softmax(logits)) in nats.

    Args:
        reference: Shape [B, m].
        logits: Shape [B, m].

    Returns:
        Shape [B], >= 0.
    """
    log_reference, log_other = _wide(reference).log_softmax(1), _wide(logits).log_softmax(1)
    return (log_reference.exp() * (log_reference - log_other)).sum(1)


LOSSES: dict[str, LossFunction] = {"ce": ce, "dlr": dlr, "redlr": redlr}


def resolve_loss(loss: str | LossFunction) -> LossFunction:
    """A per-image loss from its name (`ce`, `dlr` or `redlr`), or the loss itself.

    Args:
        loss: A name, or a function to be used as it is.

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

    For |d| >= 1 it is written as sign(d) (1 - 1 / (1 + |d|)), whose slope is not the difference of two numbers that
    round to the same one.
    """
    near = d.detach().abs() < 1
    inner = torch.where(near, d, 0.0)
    outer = d.detach().sign() * (1 - 1 / (1 + d.abs()))
    return torch.where(near, inner / (1 + inner.abs()), outer)


def _wide(logits: Tensor) -> Tensor:
    """The logits in float32, or in float64 where they are: losses are not computed in half precision."""
    return logits if logits.dtype in (torch.float32, torch.float64) else logits.float()
