"""What an attack is: a map from a batch of images to a perturbed batch, and what it returns beside the images.

To add an attack, write a class with a `ball` and the call of `Attack`, in a file of its own, and export it in
`wdro_train.attacks`. Everything an attack does to the network goes through `wdro_train.attacks.gradient`, inside
`wdro_train.attacks.mode.batch_under_attack`, which leave parameters, their gradients, buffers and modes as they were.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from wdro_train.theory.ball import WassersteinBall
from wdro_train.utils.distributed import Reducer


@dataclass(frozen=True)
class AttackResult:
    """A perturbed batch and what it cost.

    Attributes:
        x_adv: Perturbed images in [0, 1], float32, shape [B, C, H, W].
        distances: ||x'_i - x_i||_s, float64, shape [B].
        upsilon: (E ||grad J||_*^q)^(1/q) at the attack's first iterate, over the attack's scope; float64 scalar.
        dual_norms: ||grad J||_* at the first iterate, float64, shape [B]. With W-PGD's keep="cheapest", images that
            are misclassified at the first iterate count as gradient 0, in Upsilon too, since the attack leaves them.
        losses: J at the first iterate, shape [B].
        logits: Logits at the first iterate (the clean images unless the start is random), shape [B, m].
        zero_gradients: Number of images whose first gradient vanished, int64 scalar.
        nonfinite_gradients: Number of (image, step) pairs whose gradient was not finite, int64 scalar.
        adv_logits: Logits at x_adv, where the attack had computed them.
        best_mean_loss: Largest mean loss over the iterates, where the attack had computed all of them.
        importance: Weight of each image in the training loss, shape [B]; None for equal ones.
        terms: Further scalars for the log.
    """

    x_adv: Tensor
    distances: Tensor
    upsilon: Tensor
    dual_norms: Tensor
    losses: Tensor
    logits: Tensor
    zero_gradients: Tensor
    nonfinite_gradients: Tensor
    adv_logits: Tensor | None = None
    best_mean_loss: Tensor | None = None
    importance: Tensor | None = None
    terms: dict[str, Tensor] = field(default_factory=dict)


class Attack(Protocol):
    """A map from a batch to its worst case inside a Wasserstein ball.

    What it returns is a function of the images of the global batch, whatever their order and their distribution over
    ranks; every rank takes part in every collective, also with images that are misclassified to begin with.

    Attributes:
        ball: The threat. A warm-up of the radius assigns a new ball every epoch, so whatever an attack derives from
            the ball must be derived in the call.
    """

    ball: WassersteinBall

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
        """Perturb a batch.

        Args:
            model: Maps images in [0, 1] to logits.
            x: Images in [0, 1], shape [B, C, H, W].
            y: Labels, shape [B].
            weight: Shape [B]; 0 for padding, which then counts in no mean.
            reducer: Joins the ranks that share the global batch; None for one process.
            generator: Source of random starts, seeded alike on all ranks; None for the default one.
        """
        ...
