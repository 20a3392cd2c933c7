"""What a network's operations make of boxes: interval arithmetic on the graph of its forward pass.

Every value is a box, all tensors z with |z - center| <= radius entry by entry. An affine operation maps the center by
itself and the radius by the absolute values of its weights; a monotone one maps both ends (IBP, Gowal et al. 2018,
arXiv 1810.12715). Operations that only move entries around move those of center and radius alike.

To cover another operation, add its function to one of the tables below, or its layer to `_LAYERS`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Box:
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
        return cls((low + high) / 2, (high - low) / 2)

    @property
    def low(self) -> Tensor:
        """The least value of each entry."""
        return self.center - self.radius

    @property
    def high(self) -> Tensor:
        """The largest value of each entry."""
        return self.center + self.radius

    def monotone(self, function: Callable[[Tensor], Tensor]) -> Box:
        """The image under a function that falls nowhere."""
        return Box.between(function(self.low), function(self.high))

    def scaled(self, factor: Any) -> Box:
        """The image under the multiplication with constants."""
        return Box(self.center * factor, self.radius * abs(factor))

    def rearranged(self, function: Callable[[Tensor], Tensor]) -> Box:
        """The image under a function that is linear with non-negative weights, such as a mean or a change of shape."""
        return Box(function(self.center), function(self.radius))


class NoBoundsError(Exception):
    """An operation has no interval bounds."""


def _add(a: Any, b: Any) -> Box:
    if isinstance(a, Box) and isinstance(b, Box):
        return Box(a.center + b.center, a.radius + b.radius)
    box, constant = (a, b) if isinstance(a, Box) else (b, a)
    center = box.center + constant
    return Box(center, box.radius.expand_as(center))


def _negative(a: Box) -> Box:
    return Box(-a.center, a.radius)


def _subtract(a: Any, b: Any) -> Box:
    return _add(a, _negative(b) if isinstance(b, Box) else -b)


def _multiply(a: Any, b: Any) -> Box:
    if isinstance(a, Box) and isinstance(b, Box):
        raise NoBoundsError
    return a.scaled(b) if isinstance(a, Box) else b.scaled(a)


def _divide(a: Any, b: Any) -> Box:
    if isinstance(b, Box):
        raise NoBoundsError
    return Box(a.center / b, a.radius / abs(b))


def _concatenate(boxes: Any, dim: int = 0) -> Box:
    parts = [box if isinstance(box, Box) else Box(box, torch.zeros_like(box)) for box in boxes]
    return Box(torch.cat([box.center for box in parts], dim), torch.cat([box.radius for box in parts], dim))


def _pad(a: Box, pad: Any, mode: str = "constant", value: float | None = None) -> Box:
    if mode != "constant":
        return a.rearranged(lambda z: functional.pad(z, pad, mode))
    return Box(functional.pad(a.center, pad, mode, value), functional.pad(a.radius, pad))


def _leaky_relu(a: Box, negative_slope: float = 0.01, inplace: bool = False) -> Box:
    if negative_slope < 0:
        raise NoBoundsError
    return a.monotone(lambda z: functional.leaky_relu(z, negative_slope))


def _average(a: Box, kernel_size: Any, stride: Any = None, padding: Any = 0) -> Box:
    return a.rearranged(lambda z: functional.avg_pool2d(z, kernel_size, stride, padding))


_ARITHMETIC: dict[Any, Callable[..., Box]] = {
    operator.add: _add, operator.iadd: _add, torch.add: _add, "add": _add, "add_": _add,
    operator.sub: _subtract, operator.isub: _subtract, torch.sub: _subtract, "sub": _subtract,
    operator.mul: _multiply, operator.imul: _multiply, torch.mul: _multiply, "mul": _multiply,
    operator.truediv: _divide, torch.div: _divide, "div": _divide,
    operator.neg: _negative, torch.neg: _negative, "neg": _negative,
    torch.cat: _concatenate, torch.concat: _concatenate, functional.pad: _pad, functional.leaky_relu: _leaky_relu,
    functional.avg_pool2d: _average,
}  # fmt: skip
"""Operations with a rule of their own, by function or by the name of the method; an option that is no argument of the
rule, such as `alpha` of `torch.add`, has no bounds."""

_MONOTONE = {
    functional.relu, functional.relu_, torch.relu, torch.relu_, "relu", "relu_", functional.relu6, functional.hardtanh,
    torch.sigmoid, "sigmoid", functional.sigmoid, torch.tanh, "tanh", functional.tanh,
    functional.softplus, torch.clamp, "clamp", functional.max_pool2d, functional.adaptive_max_pool2d,
}  # fmt: skip
"""Operations of one box that fall nowhere, whatever their other arguments, which are constants."""

_REARRANGING = {
    operator.getitem, torch.flatten, "flatten", "view", "reshape", torch.reshape, "permute", torch.permute,
    "transpose", torch.transpose, "squeeze", torch.squeeze, "unsqueeze", torch.unsqueeze, "contiguous", "expand",
    "mean", torch.mean, "sum", torch.sum, functional.adaptive_avg_pool2d,
}  # fmt: skip
"""Operations of one box that move entries around or weigh them with non-negative weights."""

_QUESTIONS = {"size", "dim"}
"""Methods that ask for the shape of a value."""

_ATTRIBUTES = {"shape", "ndim", "device", "dtype"}
"""Attributes that say nothing of the entries of a value."""

_MONOTONE_LAYERS = (nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.MaxPool2d)
_REARRANGING_LAYERS = (nn.Flatten, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Unflatten)
_PASSING_LAYERS = (nn.Identity, nn.Dropout, nn.Dropout2d)


def through_layer(layer: nn.Module, box: Box) -> Box:
    """The image of a box under a layer in evaluation mode, by its weights alone.

    The layer itself is not called: a hook or a replaced method would change the center and not the radius. Without them
    both are those of the layer's weights, and whoever compares the center with the network notices.

    Raises:
        NoBoundsError: A layer of another kind.
    """
    kind: Any = next((kind for kind in type(layer).__mro__ if "forward" in vars(kind)), nn.Module)
    forward: Callable[..., Tensor] = kind.forward
    if kind in _PASSING_LAYERS:
        return box
    if kind in _MONOTONE_LAYERS:
        return box.monotone(partial(forward, layer))
    if kind in _REARRANGING_LAYERS and getattr(layer, "divisor_override", None) is None:
        return box.rearranged(partial(forward, layer))
    match layer:
        case nn.LeakyReLU() if kind is nn.LeakyReLU:
            return _leaky_relu(box, layer.negative_slope)
        case nn.Linear() if kind is nn.Linear:
            center = functional.linear(box.center, layer.weight, layer.bias)
            return Box(center, functional.linear(box.radius, layer.weight.abs()))
        case nn.Conv2d(padding_mode="zeros") if kind is nn.Conv2d:
            options: Any = (layer.stride, layer.padding, layer.dilation, layer.groups)
            center = torch.conv2d(box.center, layer.weight, layer.bias, *options)
            return Box(center, torch.conv2d(box.radius, layer.weight.abs(), None, *options))
        case nn.BatchNorm1d() | nn.BatchNorm2d() if kind is nn.modules.batchnorm._BatchNorm:
            if layer.running_mean is None or layer.running_var is None:
                raise NoBoundsError
            shape = (-1, *[1] * (box.radius.dim() - 2))
            scale = (layer.running_var + layer.eps).rsqrt()
            scale = scale if layer.weight is None else scale * layer.weight
            shift = 0.0 if layer.bias is None else layer.bias.view(shape)
            center = (box.center - layer.running_mean.view(shape)) * scale.view(shape) + shift
            return Box(center, box.radius * scale.abs().view(shape))
    raise NoBoundsError


def through_operation(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What an operation of which some argument is a box makes of it.

    Args:
        target: A function, or the name of a method.
        args: Its arguments.
        kwargs: Those given by name.

    Raises:
        NoBoundsError: An operation, or arguments, that no table here has.
    """
    if target in _ARITHMETIC:
        return _ARITHMETIC[target](*args, **kwargs)
    if not args or not isinstance(args[0], Box) or boxes_in((args[1:], kwargs)):
        raise NoBoundsError
    if target is getattr and args[1] in _ATTRIBUTES:
        return getattr(args[0].center, args[1])
    call = getattr(torch.Tensor, target) if isinstance(target, str) else target
    if target in _QUESTIONS:
        return call(args[0].center, *args[1:], **kwargs)
    if target in _MONOTONE:
        return args[0].monotone(lambda z: call(z, *args[1:], **kwargs))
    if target in _REARRANGING:
        return args[0].rearranged(lambda z: call(z, *args[1:], **kwargs))
    raise NoBoundsError


def boxes_in(value: Any) -> bool:
    """Whether there is a box among the arguments of an operation."""
    if isinstance(value, dict):
        return boxes_in(list(value.values()))
    return any(map(boxes_in, value)) if isinstance(value, list | tuple) else isinstance(value, Box)


def may_share_memory(operation: Any) -> bool:
    """Whether an operation may return its input's own memory, so that a change of the one is a change of the other.

    Args:
        operation: A layer, a function, or the name of a method.
    """
    if isinstance(operation, nn.Module):
        return isinstance(operation, (*_PASSING_LAYERS, nn.Flatten, nn.Unflatten))
    return operation in _REARRANGING
