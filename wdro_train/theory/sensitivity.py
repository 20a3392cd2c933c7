"""Upsilon, the first-order sensitivity of the worst-case loss, and the set of images it is taken over.

V(delta) = V(0) + delta Upsilon + o(delta) with Upsilon = (E_P ||grad_x J||_*^q)^(1/q) (theory, section 2; Bai, He,
Jiang, Obloj 2023, arXiv 2306.09844). P is the whole distribution: a mini-batch gives the Upsilon of a mini-batch. A
`Scope` says what stands for P in training and in evaluation (theory, section 9).
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from wdro_train.theory.power_mean import discount, merge, moment, power_mean
from wdro_train.utils.distributed import Reducer
from wdro_train.utils.errors import UserError
from wdro_train.utils.learnt import learnt_numbers


def upsilon(dual_norms: Tensor, q: float, weight: Tensor | None = None, reducer: Reducer | None = None) -> Tensor:
    """Upsilon = (E ||grad_x J||_*^q)^(1/q) of one global batch (theory, section 2).

    Args:
        dual_norms: ||grad_x J||_* per image, shape [B].
        q: Conjugate of the Wasserstein order, in [1, inf].
        weight: Shape [B]; 0 for padding.
        reducer: Joins the ranks; None for one process.

    Returns:
        Scalar, float64, in loss units per unit of the ground norm.
    """
    part = moment(dual_norms, weight, q)
    parts = part[None] if reducer is None else reducer.gather(part)
    return power_mean(merge(parts, q), q)


class Scope(Protocol):
    """What stands for the distribution P when a batch's budget is shared out: it maps the batch's moment to P's.

    A scope sees only moments that are already joined over the ranks, so its state is the same on all of them. To add
    one, write such a class; `resolve_scope` lists those that configurations name.

    Attributes:
        name: What it is called in configurations and beside the numbers it led to.
    """

    name: str

    def __call__(self, key: str, moment: Tensor, exponent: float) -> Tensor:
        """The moment to normalise with.

        Args:
            key: The quantity and the step it belongs to (`upsilon/3`); estimates of different keys stay apart.
            moment: Of the global batch, shape [..., 3].
            exponent: The exponent it was built with.

        Returns:
            Same shape.
        """
        ...


class BatchScope:
    """Every global batch is a distribution of its own, with a ball of its own."""

    name = "batch"

    def __call__(self, key: str, moment: Tensor, exponent: float) -> Tensor:
        """The batch's own moment."""
        return moment


class RunningScope:
    """P is estimated over the batches so far, so that hard batches get more budget and easy ones less.

    Args:
        decay: What a batch's weight is multiplied by when the next one arrives, in [0, 1). At 0.95 the estimate is
            over about 1 / (1 - 0.95) = 20 batches.
    """

    name = "running"

    def __init__(self, decay: float = 0.95) -> None:
        self.decay = decay
        self._state: dict[str, Tensor] = {}

    def __call__(self, key: str, moment: Tensor, exponent: float) -> Tensor:
        """The discounted union of all batches seen under this key, the present one included."""
        seen = self._state.get(key)
        if seen is not None:
            old = discount(seen.to(moment), self.decay)
            rows = zip(old.view(-1, 3), moment.view(-1, 3), strict=True)
            moment = torch.stack([merge(torch.stack(pair), exponent) for pair in rows]).view_as(moment)
        self._state[key] = moment
        return moment

    def state_dict(self) -> dict[str, Tensor]:
        """The running moments, for a checkpoint."""
        return {key: value.cpu() for key, value in self._state.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from a checkpoint's moments."""
        moments = learnt_numbers(state, "running moments")
        if any(moment.dim() == 0 or moment.shape[-1] != 3 for moment in moments.values()):
            raise UserError(
                "the checkpoint's running moments are not of shape [..., 3]; resume a file that train.py wrote"
            )
        self._state = moments


class WholeSetScope:
    """P is a set of images whose moment was computed beforehand, in a pass over all of them.

    Args:
        total: The whole set's moment, shape [3].
    """

    name = "whole_set"

    def __init__(self, total: Tensor) -> None:
        self.total = total

    def __call__(self, key: str, moment: Tensor, exponent: float) -> Tensor:
        """The whole set's moment, whatever the batch."""
        return self.total.to(moment.device)


def resolve_scope(scope: str | Scope) -> Scope:
    """A new scope from its name (`batch` or `running`), or the scope itself.

    Args:
        scope: A name, or an object to be used as it is.

    Raises:
        UserError: Unknown name.
    """
    if not isinstance(scope, str):
        return scope
    kinds: dict[str, type[BatchScope] | type[RunningScope]] = {"batch": BatchScope, "running": RunningScope}
    if scope not in kinds:
        raise UserError(f"attack.scope={scope!r} is unknown; choose batch or running")
    return kinds[scope]()
