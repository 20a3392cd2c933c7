"""Sets of tensors that interval arithmetic carries through a network: boxes, and balls around images."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from wdro_train.certificates.value_set import ValueSet
from wdro_train.theory.ground_norm import per_image


@dataclass(frozen=True)
class Box(ValueSet):
    """All tensors z with |z - center| <= radius, entry by entry.

    Attributes:
        center: Any shape.
        radius: Same shape, non-negative.
    """

    center: Tensor
    radius: Tensor

    @classmethod
    def between(cls, low: Tensor, high: Tensor) -> Box:
        """All tensors low <= z <= high."""
        return Box((low + high) / 2, (high - low) / 2)

    @property
    def low(self) -> Tensor:
        """The least value of each entry."""
        return self.center - self.radius

    @property
    def high(self) -> Tensor:
        """The largest value of each entry."""
        return self.center + self.radius

    @property
    def like(self) -> Tensor:
        """See `ValueSet`."""
        return self.center

    def scaled(self, factor: Any) -> Box:
        """See `ValueSet`."""
        return Box(self.center * factor, self.radius * abs(factor))

    def moved(self, constant: Any) -> Box:
        """See `ValueSet`."""
        center = self.center + constant
        return Box(center, self.radius.expand_as(center))

    def plus(self, other: Any) -> Box:
        """See `ValueSet`."""
        return Box(self.center + other.center, self.radius + other.radius)

    def joined(self, others: Sequence[Any], dim: int) -> Box:
        """See `ValueSet`."""
        boxes = [box if isinstance(box, Box) else Box(box, torch.zeros_like(box)) for box in others]
        return Box(torch.cat([box.center for box in boxes], dim), torch.cat([box.radius for box in boxes], dim))

    def rearranged(self, function: Callable[[Tensor], Tensor]) -> Box:
        """See `ValueSet`."""
        return Box(function(self.center), function(self.radius))

    def reordered(self, function: Callable[[Tensor], Tensor]) -> Box:
        """See `ValueSet`."""
        return self.rearranged(function)

    def weighted(self, function: Callable[[Tensor, Tensor], Tensor], weight: Tensor, bias: Any = 0.0) -> Box:
        """See `ValueSet`."""
        return Box(function(self.center, weight) + bias, function(self.radius, weight.abs()))

    def monotone(self, function: Callable[[Tensor], Tensor]) -> Box:
        """See `ValueSet`."""
        return Box.between(function(self.low), function(self.high))

    def activated(self, function: Callable[[Tensor], Tensor]) -> Box:
        """See `ValueSet`."""
        return self.monotone(function)

    def rectified(self, slope: float) -> Box:
        """See `ValueSet`."""
        return self.monotone(lambda z: functional.leaky_relu(z, slope))

    def max_pooled(self, *options: Any) -> Box:
        """See `ValueSet`."""
        return self.monotone(lambda z: functional.max_pool2d(z, *options))


@dataclass(frozen=True)
class Ball(Box):
    """Images of a ball, before anything but a scale and a shift of each pixel: a box that knows of the ball inside it.

    The first affine layer f(x') = <w, x'> + b then has f(x') >= f(x) - ||w_free reach||_*, with w_free the weights but
    for 0 where a pixel on the edge of [0, 1] would have to leave it; its box takes this bound where it is better.

    Attributes:
        point: The value of the image itself.
        reach: How far each entry can go if the ball is spent on it alone, the edge of the box aside.
        falls: Whether an entry may become less, as 0 or 1.
        rises: Whether it may become more.
        dual: Exponent of the dual norm, 2 or inf.
    """

    point: Tensor
    reach: Tensor
    falls: Tensor
    rises: Tensor
    dual: float

    def scaled(self, factor: Any) -> Box:
        """See `Box`."""
        positive = torch.as_tensor(factor, device=self.center.device) >= 0
        falls, rises = torch.where(positive, self.falls, self.rises), torch.where(positive, self.rises, self.falls)
        box, point = super().scaled(factor), self.point * factor
        if box.center.shape != self.center.shape:
            return box
        return Ball(box.center, box.radius, point, self.reach * abs(factor), falls, rises, self.dual)

    def moved(self, constant: Any) -> Box:
        """See `Box`."""
        box = super().moved(constant)
        if box.center.shape != self.center.shape:
            return box
        return replace(self, center=box.center, point=self.point + constant)

    def reordered(self, function: Callable[[Tensor], Tensor]) -> Box:
        """See `Box`."""
        center, radius = function(self.center), function(self.radius)
        point, reach, falls, rises = map(function, (self.point, self.reach, self.falls, self.rises))
        return Ball(center, radius, point, reach, falls, rises, self.dual)

    def weighted(self, function: Callable[[Tensor, Tensor], Tensor], weight: Tensor, bias: Any = 0.0) -> Box:
        """See `Box`; f(x') is at most f(x) + ||w_free reach||_* and at least f(x) - ||w_free reach||_*."""
        box, point = super().weighted(function, weight, bias), function(self.point, weight) + bias
        if math.isinf(self.dual):  # the largest product is at most the product of the largest factors
            reach = self.reach.flatten(1).amax(1)
            width = weight.abs().flatten(1).amax(1)
            down = up = per_image(reach, point) * width.view(-1, *[1] * (weight.dim() - 2))
        else:
            down, up = (
                _root(function(self.reach**2 * lowers, plus) + function(self.reach**2 * raises, minus))
                for plus, minus in [(weight.clamp(min=0) ** 2, weight.clamp(max=0) ** 2)]
                for lowers, raises in [(self.falls, self.rises), (self.rises, self.falls)]
            )
        low, high = torch.maximum(box.low, point - down), torch.minimum(box.high, point + up)
        return Box.between(low, torch.maximum(low, high))


def _root(squares: Tensor) -> Tensor:
    """Square roots, with derivative 0 at 0."""
    return squares.clamp(min=torch.finfo(squares.dtype).tiny).sqrt()


def around(x: Tensor, radii: Tensor, norm: float) -> Box:
    """All images x' in [0, 1]^n with ||x' - x||_s <= radius, and for s = inf no others.

    Args:
        x: Images in [0, 1], shape [B, ...].
        radii: Shape [B].
        norm: s, one of 1, 2, inf.
    """
    reach = per_image(radii.to(x), x)
    box = Box.between((x - reach).clamp(min=0), (x + reach).clamp(max=1))
    if math.isinf(norm):
        return box
    falls, rises = (x > 0).to(x), (x < 1).to(x)
    return Ball(box.center, box.radius, x, reach.expand_as(x), falls, rises, 2.0 if norm == 2 else math.inf)
