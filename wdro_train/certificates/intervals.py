"""What a network's operations make of sets of values, on the graph of its forward pass.

Each operation is put together from the few that a `ValueSet` knows: interval arithmetic (`Box`) and linear relaxation
(`Relaxed`) both read networks by these rules.

To cover another operation, add its function to one of the tables below, or its layer to `through_layer`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from wdro_train.certificates.reading import PASSING, computing_class
from wdro_train.certificates.value_set import ValueSet


class NoBoundsError(Exception):
    """An operation has no interval bounds."""


def _add(a: Any, b: Any) -> ValueSet:
    if isinstance(a, ValueSet) and isinstance(b, ValueSet):
        return a.plus(b)
    return a.moved(b) if isinstance(a, ValueSet) else cast(ValueSet, b).moved(a)


def _negative(a: ValueSet) -> ValueSet:
    return a.scaled(-1.0)


def _subtract(a: Any, b: Any) -> ValueSet:
    return _add(a, _negative(b) if isinstance(b, ValueSet) else -b)


def _multiply(a: Any, b: Any) -> ValueSet:
    if isinstance(a, ValueSet) and isinstance(b, ValueSet):
        raise NoBoundsError
    return a.scaled(b) if isinstance(a, ValueSet) else cast(ValueSet, b).scaled(a)


def _divide(a: Any, b: Any) -> ValueSet:
    if isinstance(b, ValueSet):
        raise NoBoundsError
    return cast(ValueSet, a).scaled(1 / b)


def _concatenate(parts: Any, dim: int = 0) -> ValueSet:
    first: ValueSet = next(part for part in parts if isinstance(part, ValueSet))
    return first.joined(parts, dim)


def _pad(a: ValueSet, pad: Any, mode: str = "constant", value: float | None = None) -> ValueSet:
    if mode != "constant":
        return a.rearranged(lambda z: functional.pad(z, pad, mode))
    padded = a.rearranged(lambda z: functional.pad(z, pad))
    return padded.moved(functional.pad(torch.zeros_like(a.like), pad, value=value)) if value else padded


def _relu(a: ValueSet, inplace: bool = False) -> ValueSet:
    return a.rectified(0.0)


def _leaky_relu(a: ValueSet, negative_slope: float = 0.01, inplace: bool = False) -> ValueSet:
    if negative_slope < 0:
        raise NoBoundsError
    return a.rectified(negative_slope)


def _max_pool(
    a: ValueSet,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> ValueSet:
    if return_indices:
        raise NoBoundsError
    return a.max_pooled(kernel_size, stride, padding, dilation, ceil_mode)


def _softplus(a: ValueSet, beta: float = 1.0, threshold: float = 20.0) -> ValueSet:
    if beta <= 0 or threshold < 20:  # it falls, or jumps from log(1 + e^threshold) / beta down to threshold / beta
        raise NoBoundsError
    return a.activated(lambda z: functional.softplus(z, beta, threshold))


def _average(a: ValueSet, kernel_size: Any, stride: Any = None, padding: Any = 0) -> ValueSet:
    return a.rearranged(lambda z: functional.avg_pool2d(z, kernel_size, stride, padding))


_ARITHMETIC: dict[Any, Callable[..., ValueSet]] = {
    operator.add: _add, operator.iadd: _add, torch.add: _add, "add": _add, "add_": _add,
    operator.sub: _subtract, operator.isub: _subtract, torch.sub: _subtract, "sub": _subtract,
    operator.mul: _multiply, operator.imul: _multiply, torch.mul: _multiply, "mul": _multiply,
    operator.truediv: _divide, torch.div: _divide, "div": _divide,
    operator.neg: _negative, torch.neg: _negative, "neg": _negative,
    torch.cat: _concatenate, torch.concat: _concatenate, functional.pad: _pad, functional.leaky_relu: _leaky_relu,
    functional.softplus: _softplus, functional.avg_pool2d: _average, functional.max_pool2d: _max_pool,
    functional.relu: _relu, functional.relu_: _relu, torch.relu: _relu, torch.relu_: _relu,
    "relu": _relu, "relu_": _relu,
}  # fmt: skip
"""Operations with a rule of their own, by function or by the name of the method; an option that is no argument of the
rule, such as `alpha` of `torch.add`, has no bounds."""

_ACTIVATIONS = {
    functional.relu6, functional.hardtanh, torch.sigmoid, "sigmoid", functional.sigmoid, torch.tanh, "tanh",
    functional.tanh, torch.clamp, "clamp",
}  # fmt: skip
"""Operations entry by entry that fall nowhere and whose slope rises up to a point and falls beyond it, whatever their
other arguments, which are constants."""

_MONOTONE = {functional.adaptive_max_pool2d}
"""Operations of one box that fall nowhere, whatever their other arguments, which are constants."""

_REORDERING = {
    torch.flatten, "flatten", "view", "reshape", torch.reshape, "permute", torch.permute, "transpose", torch.transpose,
    "squeeze", torch.squeeze, "unsqueeze", torch.unsqueeze, "contiguous",
}  # fmt: skip
"""Operations of one box that move entries around."""

_REARRANGING = _REORDERING | {
    operator.getitem, "expand", "repeat", "mean", torch.mean, "sum", torch.sum, functional.adaptive_avg_pool2d,
}  # fmt: skip
"""Operations of one box that move entries around or weigh them with non-negative weights."""

_QUESTIONS = {"size", "dim"}
"""Methods that ask for the shape of a value."""

_ATTRIBUTES = {"shape", "ndim", "device", "dtype"}
"""Attributes that say nothing of the entries of a value."""

_ACTIVATION_LAYERS = (nn.ReLU6, nn.Hardtanh, nn.Sigmoid, nn.Tanh)
_REARRANGING_LAYERS = (nn.Flatten, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Unflatten)


def through_layer(layer: nn.Module, box: ValueSet) -> ValueSet:
    """The image of a box under a layer in evaluation mode, by its weights alone.

    The layer itself is not called: a hook or a replaced method would change the center and not the radius. Without them
    both are those of the layer's weights, and whoever compares the center with the network notices.

    Raises:
        NoBoundsError: A layer of another kind.
    """
    kind: Any = computing_class(layer)
    forward: Callable[..., Tensor] = kind.forward
    if kind in PASSING:
        return box
    if kind in _ACTIVATION_LAYERS:
        return box.activated(partial(forward, layer))
    if kind in (nn.Flatten, nn.Unflatten):
        return box.reordered(partial(forward, layer))
    if kind in _REARRANGING_LAYERS and getattr(layer, "divisor_override", None) is None:
        return box.rearranged(partial(forward, layer))
    match layer:
        case nn.ReLU() if kind is nn.ReLU:
            return box.rectified(0.0)
        case nn.MaxPool2d() if kind is nn.MaxPool2d:
            window = (layer.kernel_size, layer.stride, layer.padding)
            return _max_pool(box, *window, layer.dilation, layer.ceil_mode, layer.return_indices)
        case nn.Softplus() if kind is nn.Softplus:
            return _softplus(box, layer.beta, layer.threshold)
        case nn.LeakyReLU() if kind is nn.LeakyReLU:
            return _leaky_relu(box, layer.negative_slope)
        case nn.Linear() if kind is nn.Linear:
            return box.weighted(functional.linear, layer.weight, 0.0 if layer.bias is None else layer.bias)
        case nn.Conv2d(padding_mode="zeros") if kind is nn.Conv2d:
            options: Any = (layer.stride, layer.padding, layer.dilation, layer.groups)
            bias = 0.0 if layer.bias is None else layer.bias.view(-1, 1, 1)
            return box.weighted(lambda z, w: torch.conv2d(z, w, None, *options), layer.weight, bias)
        case nn.BatchNorm1d() | nn.BatchNorm2d() if kind is nn.modules.batchnorm._BatchNorm:
            if layer.running_mean is None or layer.running_var is None:
                raise NoBoundsError
            shape = (-1, *[1] * (box.like.dim() - 2))
            scale = (layer.running_var + layer.eps).rsqrt()
            scale = scale if layer.weight is None else scale * layer.weight
            shift = 0.0 if layer.bias is None else layer.bias.view(shape)
            return box.moved(-layer.running_mean.view(shape)).scaled(scale.view(shape)).moved(shift)
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
    if any(isinstance(argument, torch.dtype) for argument in (*args, *kwargs.values())):
        raise NoBoundsError  # what comes of it is computed in another type
    if target in _ARITHMETIC:
        return _ARITHMETIC[target](*args, **kwargs)
    if not args or not isinstance(args[0], ValueSet) or boxes_in((args[1:], kwargs)):
        raise NoBoundsError
    if target is getattr and args[1] in _ATTRIBUTES:
        return getattr(args[0].like, args[1])
    call = getattr(torch.Tensor, target) if isinstance(target, str) else target
    if target in _QUESTIONS:
        return call(args[0].like, *args[1:], **kwargs)
    if target in _ACTIVATIONS:
        return args[0].activated(lambda z: call(z, *args[1:], **kwargs))
    if target in _MONOTONE:
        return args[0].monotone(lambda z: call(z, *args[1:], **kwargs))
    if target in _REORDERING:
        return args[0].reordered(lambda z: call(z, *args[1:], **kwargs))
    if target in _REARRANGING:
        return args[0].rearranged(lambda z: call(z, *args[1:], **kwargs))
    raise NoBoundsError


def boxes_in(value: Any) -> bool:
    """Whether there is a box among the arguments of an operation."""
    if isinstance(value, dict):
        return boxes_in(list(value.values()))
    return any(map(boxes_in, value)) if isinstance(value, list | tuple) else isinstance(value, ValueSet)


def may_share_memory(operation: Any) -> bool:
    """Whether an operation may return its input's own memory, so that a change of the one is a change of the other.

    Args:
        operation: A layer, a function, or the name of a method.
    """
    if isinstance(operation, nn.Module):
        return isinstance(operation, (*PASSING, nn.Flatten, nn.Unflatten))
    return operation in _REARRANGING
