"""How far a network as it is computed can be from the network in exact arithmetic, over balls around images.

A sum of n products is computed with an error of at most gamma_n sum |w| |z|, gamma_n = n u / (1 - n u), whatever the
order of the terms (Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 3.1). Every layer adds such an
error to what its own weights make of the errors before it. Algorithms that do not sum the products themselves, as those
of Winograd and of Fourier, which a library may choose for convolutions on GPUs, can err by more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from wdro_train.certificates.box_interpreter import BoxInterpreter
from wdro_train.certificates.boxes import Box, around
from wdro_train.certificates.margin_bounds import MarginBounds, largest
from wdro_train.certificates.value_set import ValueSet

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
        if terms * self.unit >= 1:
            return float("inf")
        gamma = terms * self.unit / (1 - terms * self.unit)
        return _OWN * (gamma + self.factors * (1 + gamma))

    @property
    def entry(self) -> float:
        """Largest relative error of an operation entry by entry."""
        return _OWN * _ROUNDINGS * self.unit


EXACT = Arithmetic(2.0**-52)
"""The real numbers: what is left is the rounding of the bounds themselves, which are computed in float64."""
FLOAT32 = Arithmetic(2.0**-24)
"""Float32 of IEEE 754."""
TF32 = Arithmetic(2.0**-24, 2 * 2.0**-11 + 2.0**-22)
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
        terms = before[0, 0].numel() if in_maps else before[0].numel()
        return self._to(exact, function(self.error) + self.arithmetic.products(terms + 1) * function(self.size))

    def reordered(self, function: Callable[[Tensor], Tensor]) -> ComputedBox:
        """See `ValueSet`; nothing is computed."""
        return self._to(self.exact.reordered(function), function(self.error))

    def weighted(self, function: Callable[[Tensor, Tensor], Tensor], weight: Tensor, bias: Any = 0.0) -> ComputedBox:
        """See `ValueSet`."""
        size = weight.abs()
        share = self.arithmetic.products(weight[0].numel() + 1)
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


class RoundingErrors:
    """Bounds of the rounding errors of a network's margins.

    One call costs about three forward passes.

    Args:
        model: Any network whose operations have interval bounds; see `wdro_train.certificates.intervals`.
        norm: Ground norm s, one of 1, 2, inf.
        arithmetic: In which the network is computed.
        dtype: In which the bounds are; float32 does for a search whose results are checked in float64.
    """

    def __init__(
        self, model: nn.Module, norm: float, arithmetic: Arithmetic = FLOAT32, dtype: torch.dtype = torch.float64
    ) -> None:
        self._network, self.norm, self.arithmetic = BoxInterpreter(model, dtype), norm, arithmetic
        self.dtype = dtype

    def margins(self, x: Tensor, y: Tensor, radii: Tensor) -> Tensor:
        """By how much the computed f_y - f_j can miss the exact one, at most, over j != y and ||x' - x||_s <= radius.

        Args:
            x: Images in [0, 1], shape [B, ...].
            y: Labels, shape [B].
            radii: Shape [B].

        Returns:
            Shape [B], float64, in logit units.
        """
        images = around(x.to(self.dtype), radii, self.norm)
        found = self._network.features(ComputedBox(images, torch.zeros_like(images.center), self.arithmetic))
        assert isinstance(found, ComputedBox)
        layer = self._network.last_layer
        if layer is None:
            return largest(found.error + found.error.gather(1, y[:, None]), y).double()
        share = self.arithmetic.products(layer.in_features + 1)
        bias = 0.0 if layer.bias is None else layer.bias.abs()
        own = share * (functional.linear(found.size, layer.weight.abs()) + bias)
        differences = (layer.weight[:, None] - layer.weight).abs()  # [m, m, F]: row y, column j
        passed_on = torch.einsum("bjf,bf->bj", differences[y], found.error)
        return largest(passed_on + own + own.gather(1, y[:, None]), y).double()


class ComputedMargins:
    """Lower bounds of the margins that are computed, from bounds of the exact ones; `MarginBounds`.

    Args:
        bounds: Of the exact margins.
        errors: Of the computed margins.
    """

    def __init__(self, bounds: MarginBounds, errors: RoundingErrors) -> None:
        self.bounds, self.errors = bounds, errors

    def margins(self, x: Tensor, y: Tensor, radii: Tensor, enough: Tensor | None = None) -> Tensor:
        """See `MarginBounds`."""
        errors = self.errors.margins(x, y, radii)
        return self.bounds.margins(x, y, radii, errors if enough is None else errors + enough) - errors
