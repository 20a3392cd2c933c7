"""Linear relaxation of any network that has interval bounds: affine functions carried backwards through its graph.

The network is run once, on the images themselves, and autograd records its affine parts; every nonlinear operation ends
a part, and its result begins the next. A function <c, f(x')> of the logits is then carried back to the image: through
affine parts by the vector-Jacobian products of the record, which are exact, and through nonlinear operations by linear
bounds over the boxes of their arguments (`wdro_train.certificates.lines`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from wdro_train.certificates.boxes import Box
from wdro_train.certificates.lines import ConstantLines, Lines, activation, max_pool, rectifier
from wdro_train.certificates.value_set import ValueSet

Tighten = Callable[["Tape", Tensor, Box], Box]
"""From a tape, the argument of its next nonlinear operation as it is recorded, and the argument's box, to a box inside
that one that still holds all its values."""


def as_it_is(tape: Tape, value: Tensor, box: Box) -> Box:
    """The box that there is."""
    return box


@dataclass(frozen=True)
class Step:
    """A nonlinear operation of the record.

    Attributes:
        before: Its argument at the images, recorded.
        after: Its result, with which the next part of the record begins.
        lines: Its linear bounds.
    """

    before: Tensor
    after: Tensor
    lines: Lines


class Tape:
    """The record of one run, and the way back through it.

    Args:
        x: Images, shape [B, ...].
        fall: Takes coefficients [M, B, ...] of the images and gives lower bounds [M, B] of <coefficients, x' - x> over
            all x' that are allowed.
        tighten: Finds better boxes for the arguments of nonlinear operations.
    """

    def __init__(self, x: Tensor, fall: Callable[[Tensor], Tensor], tighten: Tighten = as_it_is) -> None:
        self.image, self.fall, self.tighten = x.detach().clone().requires_grad_(), fall, tighten
        self.steps: list[Step] = []

    def nonlinear(self, before: Tensor, function: Callable[[Tensor], Tensor], lines: Lines) -> Tensor:
        """Record an operation, and return its result at the images."""
        with torch.no_grad():
            after = function(before.clone())
        self.steps.append(Step(before, after.detach().requires_grad_(), lines))
        return self.steps[-1].after

    def lower_bounds(self, value: Tensor, coefficients: Tensor, lines: Sequence[Lines] | None = None) -> Tensor:
        """Lower bounds of <coefficients, value> over all images that are allowed.

        Differentiable with respect to the network's weights and the lines, if gradients are on.

        Args:
            value: Some tensor of the record, shape [B, ...].
            coefficients: Shape [M, B, ...].
            lines: Of each step, instead of its own.

        Returns:
            Shape [M, B].
        """
        lines = [step.lines for step in self.steps] if lines is None else lines
        points = [self.image, *(step.after for step in self.steps)]
        carried = self._pull_back(value, coefficients, points)
        bounds = (coefficients * value).flatten(2).sum(2)
        for k in reversed(range(len(self.steps))):
            if k + 1 not in carried:
                continue
            step = self.steps[k]
            pulled, gap = lines[k].pull_back(carried.pop(k + 1), step.before, step.after.detach())
            bounds = bounds + gap
            for place, part in self._pull_back(step.before, pulled, points[: k + 1]).items():
                carried[place] = carried[place] + part if place in carried else part
        return bounds + self.fall(carried[0]) if 0 in carried else bounds

    def _pull_back(self, value: Tensor, coefficients: Tensor, points: list[Tensor]) -> dict[int, Tensor]:
        """The coefficients of the points between which and a value everything is affine, by the points' places."""
        for place, point in enumerate(points):
            if point is value:
                return {place: coefficients}
        create = torch.is_grad_enabled()
        with torch.enable_grad():
            parts = torch.autograd.grad(
                value,
                points,
                coefficients,
                retain_graph=True,
                create_graph=create,
                allow_unused=True,
                is_grads_batched=True,
            )
        return {place: part for place, part in enumerate(parts) if part is not None}


@dataclass(frozen=True)
class Relaxed(ValueSet):
    """What is known of a tensor: a box, and its record on a tape.

    Attributes:
        box: Holds all its values.
        value: Its value at the images, recorded: [B, ...].
        tape: The record.
    """

    box: Box
    value: Tensor
    tape: Tape

    @property
    def like(self) -> Tensor:
        """See `ValueSet`."""
        return self.value

    def scaled(self, factor: Any) -> Relaxed:
        """See `ValueSet`."""
        return self._affine(self.box.scaled(factor), lambda: self.value * factor)

    def moved(self, constant: Any) -> Relaxed:
        """See `ValueSet`."""
        return self._affine(self.box.moved(constant), lambda: self.value + constant)

    def plus(self, other: Any) -> Relaxed:
        """See `ValueSet`."""
        return self._affine(self.box.plus(other.box), lambda: self.value + other.value)

    def joined(self, others: Sequence[Any], dim: int) -> Relaxed:
        """See `ValueSet`."""
        boxes = [part.box if isinstance(part, Relaxed) else part for part in others]
        values = [part.value if isinstance(part, Relaxed) else part for part in others]
        return self._affine(self.box.joined(boxes, dim), lambda: torch.cat(values, dim))

    def rearranged(self, function: Callable[[Tensor], Tensor]) -> Relaxed:
        """See `ValueSet`."""
        return self._affine(self.box.rearranged(function), lambda: function(self.value))

    def reordered(self, function: Callable[[Tensor], Tensor]) -> Relaxed:
        """See `ValueSet`."""
        return self._affine(self.box.reordered(function), lambda: function(self.value))

    def weighted(self, function: Callable[[Tensor, Tensor], Tensor], weight: Tensor, bias: Any = 0.0) -> Relaxed:
        """See `ValueSet`."""
        box = self.box.weighted(function, weight, bias)
        return self._affine(box, lambda: function(self.value, weight) + bias)

    def monotone(self, function: Callable[[Tensor], Tensor]) -> Relaxed:
        """See `ValueSet`."""
        bounds = self.box.monotone(function)
        return self._nonlinear(function, bounds, ConstantLines(bounds.low, bounds.high, self.value.shape))

    def activated(self, function: Callable[[Tensor], Tensor]) -> Relaxed:
        """See `ValueSet`."""
        box = self.tape.tighten(self.tape, self.value, self.box)
        return self._nonlinear(function, box.activated(function), activation(box, function))

    def rectified(self, slope: float) -> Relaxed:
        """See `ValueSet`."""

        def function(z: Tensor) -> Tensor:
            return functional.leaky_relu(z, slope)

        if slope > 1:
            return self.activated(function)
        box = self.tape.tighten(self.tape, self.value, self.box)
        return self._nonlinear(function, box.rectified(slope), rectifier(box, slope))

    def max_pooled(self, *options: Any) -> Relaxed:
        """See `ValueSet`."""
        box = self.tape.tighten(self.tape, self.value, self.box)
        pooled = box.max_pooled(*options)
        return self._nonlinear(lambda z: functional.max_pool2d(z, *options), pooled, max_pool(box, *options))

    def _affine(self, box: Box, function: Callable[[], Tensor]) -> Relaxed:
        with torch.enable_grad():
            return Relaxed(box, function(), self.tape)

    def _nonlinear(self, function: Callable[[Tensor], Tensor], box: Box, lines: Lines) -> Relaxed:
        return Relaxed(box, self.tape.nonlinear(self.value, function, lines), self.tape)
