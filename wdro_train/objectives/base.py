"""What a training objective is: an object that turns a batch and its adversarial version into a loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from wdro_train.utils.distributed import Reducer


@dataclass(frozen=True)
class ObjectiveResult:
    """The loss to minimise and the logits it was computed from.

    Attributes:
        loss: Scalar with graph.
        clean_logits: Shape [B, m], where the objective looked at the clean images.
        adv_logits: Shape [B, m], where it looked at the perturbed ones.
        terms: Named parts of the loss, for the log.
    """

    loss: Tensor
    clean_logits: Tensor | None
    adv_logits: Tensor | None
    terms: dict[str, Tensor]


class Objective(Protocol):
    """A training objective.

    Attributes:
        needs_adversary: Whether `x_adv` must be the attack's images; if not, none is run in training.
    """

    needs_adversary: bool

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
        """The objective on one batch.

        Args:
            model: Maps images in [0, 1] to logits, in training mode.
            x: Clean images, shape [B, C, H, W].
            x_adv: Perturbed images, same shape; the clean ones when no adversary is attached.
            y: Labels, shape [B].
            importance: Weight of each image's loss under attack, shape [B]; None for equal ones.
            reducer: Joins the ranks that share the global batch.
        """
        ...


def weighted_mean(losses: Tensor, importance: Tensor | None) -> Tensor:
    """Mean of losses times importance, [B] each; the importance is not normalised: it is part of the objective."""
    return losses.mean() if importance is None else (losses * importance.to(losses)).mean()
