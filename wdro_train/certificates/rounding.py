"""How far a network as it is computed can be from the network in exact arithmetic, over balls around images.

A sum of n products is computed with an error of at most gamma_n sum |w| |z|, whatever the order of the terms (see
`wdro_train.theory.rounding`). Every layer adds such an error to what its own weights make of the errors before it.
Algorithms that do not sum the products themselves, as those of Winograd and of Fourier, which a library may choose for
convolutions on GPUs, can err by more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from wdro_train.certificates.box_interpreter import BoxInterpreter
from wdro_train.certificates.boxes import Box, around
from wdro_train.certificates.interval_network import interval_differences
from wdro_train.certificates.margin_bounds import MarginBounds, largest, smallest
from wdro_train.certificates.value_set import ValueSet
from wdro_train.theory.rounding import UNIT_FLOAT32, accumulated

# Roundings that are charged to an operation entry by entry: its own and those of constants that were computed before,
# such as the scale and the shift of a normalisation, whatever the order in which they are applied.
_ROUNDINGS = 8
# Share by which bounds are enlarged for the rounding of their own computation in float64, whose unit is 2^-29 times
# that of float32.
_OWN = 1 + 2.0**-20


@dataclass(frozen=True)
class Arithmetic:
    """What is known of the rounding of a network's operations.

    Attributes:
        unit: Largest relative error u of a sum or a product of two numbers.
        factors: Largest relative error by which a product of weight and value is wrong because they are shortened
            before they are multiplied; 0 where they are not.
    """

    unit: float
    factors: float = 0.0

    def products(self, terms: int) -> float:
        """Largest error of a sum of products in units of sum |w| |z|.

        Args:
            terms: Their number n, with the bias.
        """
        gamma = accumulated(terms, self.unit)
        return _OWN * (gamma + self.factors * (1 + gamma)) if gamma < math.inf else math.inf

    @property
    def entry(self) -> float:
        """Largest relative error of an operation entry by entry."""
        return _OWN * _ROUNDINGS * self.unit


EXACT = Arithmetic(2.0**-52)
"""The real numbers: what is left is the rounding of the bounds themselves, which are computed in float64."""
FLOAT32 = Arithmetic(UNIT_FLOAT32)
"""Float32 of IEEE 754."""
TF32 = Arithmetic(UNIT_FLOAT32, 2 * 2.0**-11 + 2.0**-22)
"""Products of factors with 10 bits after the leading one, summed in float32."""
ARITHMETICS = {"exact": EXACT, "float32": FLOAT32, "tf32": TF32}
"""By the names that configurations use."""


@dataclass(frozen=True)
class ComputedBox(ValueSet):
    """A box of the exact values of a tensor, and how far the computed one of the same image is from them.

    Attributes:
        exact: The values in exact arithmetic.
        error: Of the computed values, entry by entry, not negative.
        arithmetic: In which they are computed.
    """

    exact: Box
    error: Tensor
    arithmetic: Arithmetic

    @property
    def like(self) -> Tensor:
        """See `ValueSet`."""
        return self.exact.like

    @property
    def size(self) -> Tensor:
        """The largest absolute value that may be computed."""
        return self.exact.center.abs() + self.exact.radius + self.error

    def scaled(self, factor: Any) -> ComputedBox:
        """See `ValueSet`."""
        scale = abs(factor)
        return self._to(self.exact.scaled(factor), scale * (self.error + self.arithmetic.entry * self.size))

    def moved(self, constant: Any) -> ComputedBox:
        """See `ValueSet`."""
        return self._to(self.exact.moved(constant), self.error + self.arithmetic.entry * (self.size + abs(constant)))

    def plus(self, other: Any) -> ComputedBox:
        """See `ValueSet`."""
        rounding = self.arithmetic.entry * (self.size + other.size)
        return self._to(self.exact.plus(other.exact), self.error + other.error + rounding)

    def joined(self, others: Sequence[Any], dim: int) -> ComputedBox:
        """See `ValueSet`."""
        exact = [part.exact if isinstance(part, ComputedBox) else part for part in others]
        errors = [part.error if isinstance(part, ComputedBox) else torch.zeros_like(part) for part in others]
        return self._to(self.exact.joined(exact, dim), torch.cat(errors, dim))

    def rearranged(self, function: Callable[[Tensor], Tensor]) -> ComputedBox:
        """See `ValueSet`; each result has at most as many terms as a map has pixels, or an image has values."""
        exact, before = self.exact.rearranged(function), self.like
        in_maps = before.dim() == 4 and exact.like.shape[1:2] == before.shape[1:2]
        terms = before.shape[2 if in_maps else 1 :].numel()
        return self._to(exact, function(self.error) + self.arithmetic.products(terms + 1) * function(self.size))

    def reordered(self, function: Callable[[Tensor], Tensor]) -> ComputedBox:
        """See `ValueSet`; nothing is computed."""
        return self._to(self.exact.reordered(function), function(self.error))

    def weighted(self, function: Callable[[Tensor, Tensor], Tensor], weight: Tensor, bias: Any = 0.0) -> ComputedBox:
        """See `ValueSet`."""
        size = weight.abs()
        share = self.arithmetic.products(weight.shape[1:].numel() + 1)
        error = function(self.error + share * self.size, size) + share * abs(bias)
        return self._to(self.exact.weighted(function, weight, bias), error)

    def monotone(self, function: Callable[[Tensor], Tensor]) -> ComputedBox:
        """See `ValueSet`; a maximum of entries errs by at most their largest error."""
        return self._to(self.exact.monotone(function), function(self.error))

    def activated(self, function: Callable[[Tensor], Tensor]) -> ComputedBox:
        """See `ValueSet`; no activation here is steeper than 1."""
        exact = self.exact.activated(function)
        size = torch.maximum(exact.low.abs(), exact.high.abs())
        return self._to(exact, self.error + self.arithmetic.entry * (size + self.error))

    def rectified(self, slope: float) -> ComputedBox:
        """See `ValueSet`; where the value and the computed one are negative for certain, a ReLU makes both 0."""
        exact = self.exact.rectified(slope)
        if slope:
            return self._to(exact, max(1.0, slope) * (self.error + self.arithmetic.entry * self.size))
        return self._to(exact, torch.where(self.exact.high + self.error > 0, self.error, 0.0))

    def max_pooled(self, *options: Any) -> ComputedBox:
        """See `ValueSet`; a maximum errs by at most the largest error of its entries."""
        return self._to(self.exact.max_pooled(*options), functional.max_pool2d(self.error, *options))

    def _to(self, exact: Box, error: Tensor) -> ComputedBox:
        return replace(self, exact=exact, error=error.expand_as(exact.like))


class ComputedBounds(Protocol):
    """Bounds of the margins that a network computes, in two parts."""

    def parts(self, x: Tensor, y: Tensor, radii: Tensor, enough: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Lower bounds of the exact margins, and by how much the computed ones can miss them.

        The arguments are those of `MarginBounds.margins`.

        Returns:
            Both of shape [B], float64, in logit units.
        """
        ...


class ComputedIntervals:
    """Interval bounds and rounding errors of a network that is run on both together; `ComputedBounds`.

    One call costs about three forward passes.

    Args:
        model: Any network whose operations have interval bounds; see `wdro_train.certificates.intervals`.
        dtype: In which the bounds are; float32 does for a search whose results are checked in float64.
        norm: Ground norm s, one of 1, 2, inf.
        arithmetic: In which the network is computed.
    """

    def __init__(
        self,
        model: nn.Module,
        dtype: torch.dtype = torch.float64,
        norm: float = math.inf,
        arithmetic: Arithmetic = FLOAT32,
    ) -> None:
        self._network = BoxInterpreter(model, dtype)
        self._dtype, self._norm, self._arithmetic = dtype, norm, arithmetic

    def parts(self, x: Tensor, y: Tensor, radii: Tensor, enough: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """See `ComputedBounds`."""
        bounds, errors = self._differences(x, y, radii)
        return smallest(bounds, y).double(), largest(errors, y).double()

    def _differences(self, x: Tensor, y: Tensor, radii: Tensor) -> tuple[Tensor, Tensor]:
        """Lower bounds of the exact f_y - f_j for each class j, and by how much the computed ones can miss them.

        Returns:
            Both of shape [B, m]; at j = y without meaning.
        """
        images = around(x.to(self._dtype), radii, self._norm)
        found = self._network.features(ComputedBox(images, torch.zeros_like(images.center), self._arithmetic))
        assert isinstance(found, ComputedBox)
        layer = self._network.last_layer
        bounds = interval_differences(found.exact, layer, y)
        if layer is None:
            return bounds, found.error + found.error.gather(1, y[:, None])
        share = self._arithmetic.products(layer.in_features + 1)
        bias = 0.0 if layer.bias is None else layer.bias.abs()
        own = share * (functional.linear(found.size, layer.weight.abs()) + bias)
        differences = (layer.weight[:, None] - layer.weight).abs()  # [m, m, F]: row y, column j
        passed_on = torch.einsum("bjf,bf->bj", differences[y], found.error)
        return bounds, passed_on + own + own.gather(1, y[:, None])


class ComputedRelaxation:
    """Bounds of the exact margins that know nothing of rounding, together with its errors; `ComputedBounds`.

    Args:
        bounds: Of the exact margins.
        model: The same network.
        dtype: In which the bounds are.
        norm: Ground norm s, one of 1, 2, inf.
        arithmetic: In which the network is computed.
    """

    def __init__(
        self, bounds: MarginBounds, model: nn.Module, dtype: torch.dtype, norm: float, arithmetic: Arithmetic
    ) -> None:
        self._bounds, self._intervals = bounds, ComputedIntervals(model, dtype, norm, arithmetic)

    def parts(self, x: Tensor, y: Tensor, radii: Tensor, enough: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """See `ComputedBounds`."""
        _, errors = self._intervals.parts(x, y, radii)
        return self._bounds.margins(x, y, radii, errors if enough is None else errors + enough), errors
