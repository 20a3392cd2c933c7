"""W-FGSM and W-PGD with the whole set as one distribution."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from wdro_train.attacks import WFGSM, WPGD
from wdro_train.attacks.base import attack_mode, forward
from wdro_train.losses import correct, resolve_loss
from wdro_train.metrics import FirstOrderBounds
from wdro_train.metrics.functional import accuracy_ratio
from wdro_train.threat import WassersteinBall


class PGDResult(NamedTuple):
    """What W-PGD leaves.

    Attributes:
        adv_acc: Accuracy, in [0, 1].
        ratio: adv_acc / clean accuracy.
        max_mean_loss: Largest mean loss over the iterates, an estimate of V(delta) from below.
        spent: (E ||x' - x||_s^p)^(1/p).
    """

    adv_acc: float
    ratio: float
    max_mean_loss: float
    spent: float


def first_order(
    model: nn.Module, x: Tensor, y: Tensor, ball: WassersteinBall, *, loss: str, box: bool = True, batch_size: int = 512
) -> dict[str, float]:
    """The poster's quantities for one loss; keys as in `wdro_train.metrics.FirstOrderBounds`, and `clean_acc`.

    Args:
        model: Maps images in [0, 1] to logits, in evaluation mode.
        x: All images, shape [N, C, H, W].
        y: All labels, shape [N].
        ball: The threat.
        loss: `ce`, `dlr` or `redlr`.
        box: Q_delta from the free gradient; False for the poster's formula.
        batch_size: Images per forward pass.
    """
    attack = WFGSM(p=ball.p, norm=ball.norm, delta=ball.delta, loss=loss, box=box, batch_size=batch_size)
    q = attack(model, x, y)
    with attack_mode(model), torch.no_grad():
        logits = forward(model, q.x_adv, batch_size)
    metric = FirstOrderBounds(ball).to(x.device)
    metric.update(
        clean_logits=q.logits,
        clean_losses=q.losses,
        q_logits=logits,
        q_losses=resolve_loss(loss)(logits, y),
        dual_norms=q.dual_norms,
        q_distances=q.distances,
        labels=y,
        weight=torch.ones_like(y),
    )
    clean = correct(q.logits, y).double().mean().item()
    return {"clean_acc": clean} | {key: float(value) for key, value in metric.compute().items()}


def projected_gradient(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    ball: WassersteinBall,
    *,
    loss: str,
    clean_acc: float,
    steps: int = 50,
    keep: Literal["best", "cheapest"] = "cheapest",
    random_start: bool = False,
    box: bool = True,
    batch_size: int = 512,
    generator: torch.Generator | None = None,
    progress: Callable[[int], None] | None = None,
) -> PGDResult:
    """W-PGD for one loss.

    Args:
        model: Maps images in [0, 1] to logits, in evaluation mode.
        x: All images, shape [N, C, H, W].
        y: All labels, shape [N].
        ball: The threat.
        loss: `ce`, `dlr` or `redlr`.
        clean_acc: Accuracy on x, for the ratio.
        steps: Gradient steps.
        keep: `best` is the 2023 protocol, `cheapest` the stronger one; see `wdro_train.attacks.WPGD`.
        random_start: Start from noise of size delta.
        box: Free gradient, projection after clamping.
        batch_size: Images per forward pass.
        generator: Source of the random start.
        progress: Called with the number of steps done.
    """
    attack = WPGD(
        p=ball.p,
        norm=ball.norm,
        delta=ball.delta,
        loss=loss,
        steps=steps,
        keep=keep,
        random_start=random_start,
        box=box,
        batch_size=batch_size,
        progress=progress,
    )
    result = attack(model, x, y, generator=generator)
    assert result.adv_logits is not None
    assert result.best_mean_loss is not None
    adv_acc = correct(result.adv_logits, y).double().mean().item()
    return PGDResult(
        adv_acc=adv_acc,
        ratio=accuracy_ratio(adv_acc, clean_acc),
        max_mean_loss=result.best_mean_loss.item(),
        spent=ball.spent(result.distances).item(),
    )
