"""What metrics over a whole set have in common: states that are joined over batches and ranks, and stay exact.

Every `update` takes logits and labels as torchmetrics do, `preds` [B, m] and `target` [B], and an optional `weight` [B]
that is 0 for padding. Counts are int64 and sums float64, so that any batching and any number of ranks agree. In
bfloat16 a count would stop growing at 256 images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from wdro_train.theory.power_mean import merge
from wdro_train.utils.contract import NonFiniteLogitsError
from wdro_train.utils.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Values = Tensor | Mapping[str, Tensor]
"""What `compute` and `forward` return."""


class SetMetric(Metric):
    """A metric of a whole set of images, however it is divided into batches and over ranks."""

    full_state_update = False
    is_differentiable = False

    def plot(self, val: Values | Sequence[Values] | None = None, ax: Axes | None = None) -> tuple[Figure | None, Axes]:
        """Draw values, as the metrics of torchmetrics do.

        Args:
            val: What `compute` or `forward` returned, or a list of such results, which is drawn as a course over time;
                None computes the value of what has been counted so far.
            ax: Where to draw; None makes a figure.

        Returns:
            The figure, None where `ax` was given, and the axes.
        """
        found: tuple[Any, Any] = self._plot(val, ax)  # type: ignore[arg-type]  # which names dict where it reads only
        return found


class SummedMetric(SetMetric):
    """A metric whose states are sums, or moments of power means, over batches and ranks."""

    def add_sums(self, names: tuple[str, ...], dtype: torch.dtype) -> None:
        """Declare scalar states that start at 0 and are added up over ranks.

        Args:
            names: Of the states.
            dtype: int64 for counts, float64 for sums.
        """
        for name in names:
            self.add_state(name, torch.zeros((), dtype=dtype), dist_reduce_fx="sum")

    def add_moment(self, name: str, exponent: float) -> None:
        """Declare the state of a power mean, which ranks merge rather than add up.

        Args:
            name: Of the state, a moment of shape [3]; see `wdro_train.theory.power_mean`.
            exponent: Of the power mean.
        """
        join: Callable[[Tensor], Tensor] = partial(merge, exponent=exponent)
        self.add_state(name, torch.zeros(3, dtype=torch.float64), dist_reduce_fx=join)

    def scalars(self, **values: float | Tensor) -> dict[str, Tensor]:
        """Results as float32 scalars on the metric's device.

        Args:
            **values: Results by key.
        """
        return {key: torch.as_tensor(value, dtype=torch.float32, device=self.device) for key, value in values.items()}

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> nn.Module:
        """Moves states between devices; training in half precision does not touch their type."""
        return super()._apply(lambda state: fn(state).to(state.dtype), exclude_state)


def counted(preds: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
    """Which images count, boolean [B], once it is clear that logits and labels are what they have to be.

    Args:
        preds: Logits, shape [B, m].
        target: Labels, shape [B].
        weight: Shape [B], 0 for padding; None counts all images.

    Raises:
        UserError: Labels or logits of another kind or shape, as where two arguments have changed places.
        NonFiniteLogitsError: NaN or infinite logits of images that count.
    """
    if preds.dim() != 2 or not preds.is_floating_point():
        raise UserError(
            f"preds are {preds.dtype} of shape {tuple(preds.shape)}; give logits [B, m], since a tie between the two "
            "largest is a mistake"
        )
    if target.shape != preds.shape[:1] or target.is_floating_point():
        raise UserError(
            f"target is {target.dtype} of shape {tuple(target.shape)}; give one label for each of the {len(preds)} "
            "images, after preds as in torchmetrics: update(preds, target, ...)"
        )
    counts = everything(preds) if weight is None else weight > 0
    check_finite(preds, counts)
    return counts


def everything(values: Tensor) -> Tensor:
    """All of the images count, boolean [B].

    Args:
        values: Shape [B, ...].
    """
    return torch.ones(len(values), dtype=torch.bool, device=values.device)


def check_finite(clean_logits: Tensor, counts: Tensor) -> None:
    """Refuse logits that are no numbers: they are no mistakes of the network, but something wrong with it.

    Args:
        clean_logits: Shape [B, m].
        counts: Which images count, boolean [B].

    Raises:
        NonFiniteLogitsError: NaN or infinite logits of clean images that count.
    """
    if not clean_logits[counts].isfinite().all():
        raise NonFiniteLogitsError(
            "the network returns NaN or infinite logits on clean images; repair it, or compute it in float32"
        )
