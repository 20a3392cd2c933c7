"""What metrics over a whole set have in common: states that are joined over batches and ranks, and stay exact.

Every `update` takes a `weight` [B] that is 0 for padding. Counts are int64 and sums float64, so that any batching and
any number of ranks agree. In bfloat16 a count would stop growing at 256 images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from wdro_train.theory.power_mean import merge
from wdro_train.utils.contract import NonFiniteLogitsError


class SummedMetric(Metric):
    """A metric whose states are sums, or moments of power means, over batches and ranks."""

    full_state_update = False
    is_differentiable = False

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
