"""What a training objective is: a map from a batch and its perturbed version to a loss.

To add an objective, write a class with the attribute and the call of `Objective`, in a file of its own, and export it
in `wdro_train.objectives`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from wdro_train.utils.distributed import Reducer
from wdro_train.utils.errors import UserError
from wdro_train.utils.learnt import Stateful


@dataclass(frozen=True)
class ObjectiveResult:
    """The loss to minimise and the logits it was computed from.

    Attributes:
        loss: Scalar, with the graph that training differentiates.
        clean_logits: Shape [B, m]; None where the objective did not look at the clean images.
        adv_logits: Shape [B, m]; None where it did not look at the perturbed ones.
        terms: Parts of the loss by their names, for the log.
    """

    loss: Tensor
    clean_logits: Tensor | None
    adv_logits: Tensor | None
    terms: dict[str, Tensor]


class Objective(Protocol):
    """A training objective: its mean over the ranks of a global batch is what is minimised.

    Attributes:
        needs_adversary: Whether `x_adv` must be the attack's images; if not, no attack is run in training.
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
            x_adv: Perturbed images, same shape; the clean ones if no adversary is attached.
            y: Labels, shape [B].
            importance: Weight of each image's loss under attack, shape [B]; None for equal ones.
            reducer: Joins the ranks that share the global batch.
        """
        ...


@runtime_checkable
class WarmsUp(Protocol):
    """An objective that a warm-up can begin gently."""

    def warm_up(self, share: float) -> None:
        """Set how much of its full strength the objective has from now on.

        Args:
            share: From 0, the beginning of a warm-up, to 1, its end; 1 without a warm-up.
        """
        ...


@runtime_checkable
class ChecksNetwork(Protocol):
    """An objective that not every network can be trained on."""

    def check_network(self, model: nn.Module, x: Tensor) -> None:
        """Refuse a network that the objective cannot be evaluated on, before any work is done.

        Args:
            model: The network.
            x: Some images in [0, 1], shape [B, C, H, W].

        Raises:
            UserError: Names what is not covered.
        """
        ...


@contextmanager
def unlearning(objective: Objective) -> Iterator[None]:
    """What an objective learns inside the block is forgotten: it was evaluated for something else than a step.

    Args:
        objective: Any one.
    """
    kept = copy.deepcopy(objective.state_dict()) if isinstance(objective, Stateful) else {}
    yield
    if isinstance(objective, Stateful):
        objective.load_state_dict(kept)


def weighted_mean(losses: Tensor, importance: Tensor | None) -> Tensor:
    """The mean of losses times importance, (1/B) sum_i w_i l_i.

    The weights are not normalised: they are part of the objective.

    Args:
        losses: Shape [B].
        importance: Shape [B]; None for weights of 1.
    """
    return losses.mean() if importance is None else (losses * importance.to(losses)).mean()


def checked_weight(beta: float) -> float:
    """The weight of a second term of a loss, `objective.beta`, if it is one.

    Args:
        beta: Should be >= 0.

    Raises:
        UserError: It is negative or NaN.
    """
    if not beta >= 0:
        raise UserError(f"objective.beta={beta} is not a weight; choose beta >= 0")
    return beta
