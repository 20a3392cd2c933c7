"""Linear bounds of nonlinear operations over boxes, and what they make of the coefficients that are carried backwards.

An affine function <c, f(z)> + ... of an operation's result is at least what is left when f is replaced by a line below
it where c > 0, and by one above it where c < 0 (CROWN, Zhang et al. 2018, arXiv 1811.00866).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from wdro_train.certificates.boxes import Box


class Lines(Protocol):
    """Linear functions below and above an operation, over the box of its argument."""

    def pull_back(self, coefficients: Tensor, before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
        """Replace the operation by the lines below it that depend on the signs of the coefficients.

        Args:
            coefficients: Of the operation's result, shape [M, B, ...].
            before: Some argument of the operation, shape [B, ...].
            after: Some value for its result, shape [B, ...]: in exact arithmetic it does not matter which.

        Returns:
            The coefficients of the argument, shape [M, B, ...]; and by how much <coefficients, line(before)> exceeds
            <coefficients, after>, shape [M, B].
        """
        ...


@dataclass(frozen=True)
class EntryLines:
    """Lines of an operation entry by entry: slope z + offset.

    Attributes:
        below: Slopes of the lower lines, [B, ...], or [M, B, ...] where each function has its own.
        below_offset: Their offsets, [B, ...].
        above: Slopes of the upper lines, [B, ...].
        above_offset: Their offsets, [B, ...].
        least: Where `free`, the lower line may have any slope from this one to 1.
        free: Boolean, [B, ...]; None where all lines are as they are.
    """

    below: Tensor
    below_offset: Tensor
    above: Tensor
    above_offset: Tensor
    least: float = 0.0
    free: Tensor | None = None

    def pull_back(self, coefficients: Tensor, before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
        """See `Lines`."""
        rising, falling = coefficients.clamp(min=0), coefficients.clamp(max=0)
        gap = _dot(rising, self.below * before + self.below_offset - after)
        gap = gap + _dot(falling, self.above * before + self.above_offset - after)
        return rising * self.below + falling * self.above, gap


def rectifier(box: Box, slope: float) -> EntryLines:
    """Lines of max(z, 0) + slope min(z, 0), 0 <= slope <= 1, for low <= z <= high.

    From above the chord; from below slope z or z, whichever leaves the smaller area between the two lines, though any
    slope in between would do. Exact where the sign of z is known.
    """
    low, high = box.low.clamp(max=0), box.high.clamp(min=0)
    above = (high - slope * low) / (high - low).clamp(min=torch.finfo(low.dtype).tiny)
    below = torch.where(box.low >= 0, 1.0, torch.where(box.high <= 0, slope, (high > -low) * (1 - slope) + slope))
    free = (box.low < 0) & (box.high > 0)
    return EntryLines(below.to(low), torch.zeros_like(low), above, (slope - above) * low, slope, free)


def activation(box: Box, function: Callable[[Tensor], Tensor]) -> EntryLines:
    """Lines of a function f whose slope rises up to a point and falls beyond it, for low <= z <= high.

    The slope is nowhere less than k = min(f'(low), f'(high)), so f(z) - k z rises: the line of slope k through
    (low, f(low)) is below f, the one through (high, f(high)) above.
    """
    low, high = box.low, box.high
    at_low, at_high = function(low.clone()), function(high.clone())  # it may work in place
    slope = torch.minimum(_derivative(function, low), _derivative(function, high))
    return EntryLines(slope, at_low - slope * low, slope, at_high - slope * high)


def _derivative(function: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    derivative: Tensor = torch.func.grad(lambda point: function(point.clone()).sum())(z)
    return derivative


@dataclass(frozen=True)
class ConstantLines:
    """The bounds of any operation.

    Attributes:
        low: Lower bounds of its result, [B, ...].
        high: Upper bounds.
        shape: Of its argument, [B, ...].
    """

    low: Tensor
    high: Tensor
    shape: torch.Size

    def pull_back(self, coefficients: Tensor, before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
        """See `Lines`."""
        gap = _dot(coefficients.clamp(min=0), self.low - after) + _dot(coefficients.clamp(max=0), self.high - after)
        return coefficients.new_zeros(len(coefficients), *self.shape), gap


@dataclass(frozen=True)
class PoolLines:
    """Lines of max-pooling: below it lies the entry whose lower bound is largest; above it, the largest upper bound.

    Where that entry is at least as large as all others for certain, it is the maximum itself.

    Attributes:
        chosen: Places of those entries in their maps, [B, C, H', W'].
        certain: Where they are the maximum.
        high: Upper bounds of the result.
    """

    chosen: Tensor
    certain: Tensor
    high: Tensor

    def pull_back(self, coefficients: Tensor, before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
        """See `Lines`."""
        rising, falling = coefficients.clamp(min=0), coefficients.clamp(max=0)
        places = self.chosen.flatten(2)
        entries = before.flatten(2).gather(2, places).view_as(after)
        gap = _dot(rising, entries - after)
        gap = gap + _dot(falling, torch.where(self.certain, entries, self.high) - after)
        weights = (rising + falling * self.certain).flatten(3)
        pulled = weights.new_zeros(len(weights), *before.flatten(2).shape)
        return pulled.scatter_add(3, places.expand_as(weights), weights).view(-1, *before.shape), gap


def max_pool(
    box: Box, kernel: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
) -> PoolLines:
    """Lines of max-pooling over a box; the arguments are those of `torch.nn.functional.max_pool2d`."""
    options = (kernel, kernel if stride is None else stride, padding, dilation, ceil_mode)
    least, chosen = functional.max_pool2d(box.low, *options, return_indices=True)
    high = functional.max_pool2d(box.high, *options)
    certain = high <= least
    if not ceil_mode:
        top, left = (padding, padding) if isinstance(padding, int) else padding
        padded = functional.pad(box.high.detach(), (left, left, top, top), value=-torch.inf).flatten(0, 1)[:, None]
        windows = functional.unfold(padded, kernel, dilation, 0, options[1])
        others = windows.topk(2, dim=1).values[:, 1].view_as(high) if windows.shape[1] > 1 else -torch.inf
        own = box.high.flatten(2).gather(2, chosen.flatten(2)).view_as(high)
        certain = certain | ((own >= high) & (others <= least))  # no other entry reaches the chosen one
    return PoolLines(chosen, certain, high)


def _dot(coefficients: Tensor, values: Tensor) -> Tensor:
    """[M, B, ...] times [B, ...] or [M, B, ...], summed over what follows B; shape [M, B]."""
    if values.dim() == coefficients.dim():
        return (coefficients * values).flatten(2).sum(2)
    product: Tensor = torch.einsum("mbk,bk->mb", coefficients.flatten(2), values.flatten(1))
    return product
